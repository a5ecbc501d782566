"""`r2viz weights`: fetch them, verify them, say where they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

import click

from r2viz.cli.codes import DONE, FAILED, PARTLY
from r2viz.errors import R2VizError, WeightsUnavailable, one_line


@click.group("weights")
def command() -> None:
    """Weights of networks: fetch, verify, find.

    NAME is a network of `r2viz models`, an alias, timm:NAME, torchvision:NAME, or a pair (imagenet).

    For a machine without network: run `HF_HOME=folder r2viz weights fetch NAME` on one with network, copy the folder,
    and set HF_HOME to it there (HF_HUB_OFFLINE=1 lets nothing ask). Or copy the one file that `r2viz weights path NAME`
    prints, and pass it as --weights FILE. Weights of torchvision:NAME are below TORCH_HOME instead.
    """


@command.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--json", "as_json", is_flag=True, help="One object: path, or error, by name.")
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Download public weights into the cache; what is there already is not asked for again.

    Where one fails, the others go on: exit code 3, or 1 when all failed.
    """
    from r2viz.models.pairs import local, obtain
    from r2viz.models.zoo import row

    def one(name: str) -> str:
        obtain([(name, "auto")])
        path = local(row(name))
        assert path is not None, "fetched, and not there"
        return str(path)

    sys.exit(_each(_spelled(names), one, as_json, "path"))


@command.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--json", "as_json", is_flag=True, help="One object: what was found, or error, by name.")
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Compare weights with their hash, and see that they fit their network; all that are here unless named.

    Nothing is downloaded. Exit code 3 when some failed, 1 when all did.
    """
    from r2viz.models.pairs import local
    from r2viz.models.zoo import ZOO

    wanted = _spelled(names) or [name for name, row in ZOO.items() if local(row) is not None]

    def one(name: str) -> str:
        from r2viz.models.verify import verify as verified

        return verified(name)

    sys.exit(_each(wanted, one, as_json, "found"))


@command.command("path")
@click.argument("name")
def path(name: str) -> None:
    """Print the file of a network's weights, for --weights FILE elsewhere; exit code 1 when it is not here."""
    from r2viz.models.pairs import local, no_weights
    from r2viz.models.zoo import canonical, row

    name = canonical(name)
    found = local(row(name))
    if found is None:
        if not row(name).public:
            raise no_weights(name, row(name))
        raise WeightsUnavailable(
            f"the weights of {one_line(name)} are not in the cache; run r2viz weights fetch {one_line(name)}"
        )
    click.echo(found)


def _spelled(names: Sequence[str]) -> list[str]:
    """The table's names for what was typed, pairs as their networks; what is unknown is refused before the work."""
    from r2viz.models.pairs import PAIRS
    from r2viz.models.zoo import canonical

    spelled = [model for name in names for model in (PAIRS[name].models if name in PAIRS else (canonical(name),))]
    return list(dict.fromkeys(spelled))


def _each(names: Sequence[str], do: Callable[[str], str], as_json: bool, key: str) -> int:
    """Do it for every name whatever becomes of the others; the exit code."""
    told: dict[str, dict[str, str]] = {}
    failed = 0
    for name in names:
        try:
            told[name] = {key: do(name)}
        except R2VizError as error:
            failed += 1
            told[name] = {"error": str(error), "error_code": error.code}
            click.echo(f"r2viz: {error}", err=True)
            continue
        if not as_json:
            click.echo(f"{name}  {told[name][key]}")
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False, indent=1))
    return DONE if not failed else FAILED if failed == len(names) else PARTLY
