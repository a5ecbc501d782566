"""`r2viz methods`: the table of methods."""

from __future__ import annotations

import json

import click

NEEDS = {
    "activations": "the layer",
    "gradients": "one gradient",
    "curvature": "two gradients",
    "rerun": "more passes",
    "pixels": "the pixels",
}
"""What a map costs beside the forward pass that all methods share, in words."""


@click.command("methods")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def command(as_json: bool) -> None:
    """List the methods: name, source, what each needs, and what to know of it."""
    from r2viz.attribution import METHODS

    if as_json:
        table = {
            name: {
                "title": row.title,
                "citation": row.citation,
                "needs": row.needs,
                "per_class": row.per_class,
                "note": row.note,
            }
            for name, row in METHODS.items()
        }
        click.echo(json.dumps(table, ensure_ascii=False, indent=1))
        return
    name_width, title_width = max(map(len, METHODS)), max(len(row.title) for row in METHODS.values())
    click.echo(f"{'name':{name_width}}  {'method':{title_width}}  {'needs':13}  {'of a class':10}  source")
    for name, row in METHODS.items():
        click.echo(
            f"{name:{name_width}}  {row.title:{title_width}}  {NEEDS[row.needs]:13}  "
            f"{'yes' if row.per_class else 'no':10}  {row.citation}"
        )
        if row.note:
            click.echo(f"{'':{name_width}}  {row.note}")
    click.echo(
        "more passes: the network, or what follows the layer, is run again; the pixels: a map of the input itself"
    )
