"""Figures and tables of an analysis as a folder that can be opened, printed, cited and computed with.

`write` makes one page that needs nothing beside it, the figures as files, the tables as CSV and Parquet, and
`run.json`: the only file that may differ when the same is made twice. `join` makes the page that leads to several.
"""

from r2viz.report.content import Drawing, Report, Section, Table
from r2viz.report.folder import write
from r2viz.report.joined import join

__all__ = ["Drawing", "Report", "Section", "Table", "join", "write"]
