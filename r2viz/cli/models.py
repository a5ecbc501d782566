"""`r2viz models`: what the table of networks holds."""

from __future__ import annotations

import json
from typing import Any

import click

from r2viz.errors import UnknownName


@click.command("models")
@click.argument("text", default="", metavar="[FILTER]")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def command(text: str, as_json: bool) -> None:
    """List the networks, where their weights are, and the pairs."""
    from r2viz.models.hub import cached
    from r2viz.models.pairs import PAIRS
    from r2viz.models.zoo import ZOO

    found: dict[str, dict[str, Any]] = {}
    for name, row in ZOO.items():
        if text.casefold() in f"{name} {row.title}".casefold():
            found[name] = {
                "title": row.title,
                "pairs": [key for key, known in PAIRS.items() if name in known.models],
                "weights": "package" if row.embedded else row.hub,
                "at_hand": row.embedded is not None or cached(str(row.hub)) is not None,
                "classes": row.classes,
                "published_top1": row.top1,
                "aliases": row.aliases,
                "licence": row.licence,
                "citation": row.citation,
            }
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        for name, about in found.items():
            where = "in the package" if about["weights"] == "package" else str(about["weights"])
            click.echo(f"{name:<18} {about['title']:<18} pair {', '.join(about['pairs']) or '-':<9} {where}", nl=False)
            click.echo("" if about["at_hand"] else " (not cached)")
    if not found:
        raise UnknownName(f"no model has {text!r} in its name; there are {', '.join(ZOO)}")
