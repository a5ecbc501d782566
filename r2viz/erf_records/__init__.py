"""Effective receptive fields as frozen results; NumPy only. They neither draw nor save themselves."""

from r2viz.erf_records.field import GOOD_FIT, SHARES, Box, Erf, Gaussian, Pair, Reach, Sizes, finite
from r2viz.erf_records.record import ERF_SCHEMA, ErfRecord, ErfView, Inputs

__all__ = [
    "ERF_SCHEMA",
    "GOOD_FIT",
    "SHARES",
    "Box",
    "Erf",
    "ErfRecord",
    "ErfView",
    "Gaussian",
    "Inputs",
    "Pair",
    "Reach",
    "Sizes",
    "finite",
]
