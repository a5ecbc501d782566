"""`r2viz report`: the analyses, each of which leaves a folder with a page, figures and tables."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import click

from r2viz.cli.codes import DONE
from r2viz.errors import UnknownName, nearest, one_line

_PACKAGE = "r2viz.analyses"


@click.command("report", context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PICTURES or options of NAME …]")
@click.option("-o", "--output", default=None, type=click.Path(), help="Folder for the report. [the own one of NAME]")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
@click.option("--list", "listed", is_flag=True, help="The analyses that there are, one a line.")
@click.option("--json", "as_json", is_flag=True, help="With --list: as JSON.")
def command(
    name: str | None, arguments: tuple[str, ...], output: str | None, overwrite: bool, listed: bool, as_json: bool
) -> int:
    """Run an analysis by NAME: figures and tables of the paper, and claims of ours.

    What follows NAME is handed on to the analysis; `r2viz report NAME -- --help` shows what it takes.
    """
    known = analyses()
    if listed:
        click.echo(json.dumps(known, ensure_ascii=False, indent=1) if as_json else _lines(known))
        return DONE
    if name is None:
        raise click.UsageError(f"no analysis was named; there are {', '.join(known)}")
    if name not in known:
        raise UnknownName(
            f"no analysis {one_line(name, 60)!r}{nearest(name, known)}; there are {', '.join(known)}",
            code="unknown_name.analysis",
        )
    options = ["-o", output] if output is not None else []
    options += ["--overwrite"] if overwrite else []
    run = importlib.import_module(f"{_package().__name__}.{name}").main
    code = run.main(args=[*options, *arguments], prog_name=f"r2viz report {name}", standalone_mode=False)
    return code if isinstance(code, int) else DONE


def analyses() -> dict[str, str]:
    """The first sentence of every analysis by its name; none of them is imported."""
    found = {}
    for path in sorted(_folder().glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # A script is what has a command; the rest is what scripts share.
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return found


def _folder() -> Path:
    """Where the analyses are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for place in (package / "analyses", package.parent / "analyses"):
        if (place / "__init__.py").is_file():
            return place
    raise UnknownName("this installation of r2viz has no analyses; install the wheel, or run it in a checkout")


def _package() -> ModuleType:
    """The analyses as `r2viz.analyses`, wherever they are: a checkout need not be the working folder."""
    if _PACKAGE not in sys.modules:
        folder = _folder()
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise UnknownName(f"the analyses in {one_line(str(folder))} cannot be read")
        module = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = module
        spec.loader.exec_module(module)
    return sys.modules[_PACKAGE]


def _lines(known: dict[str, str]) -> str:
    room = max(map(len, known), default=0)
    return "\n".join(f"{name:<{room}}  {said}" for name, said in known.items())
