"""`r2viz rf`: what the units of a network could see."""

from __future__ import annotations

import json

import click


@click.command("rf")
@click.argument("name")
@click.option("--split", "splits", is_flag=True, help="Every split of every block as well (code order).")
@click.option("--layer", "layers", multiple=True, metavar="TAP", help="Only this tap: layer4, layer3.2.split1, …")
@click.option("--json", "as_json", is_flag=True, help="One object, with the number of paths of every size.")
def command(name: str, splits: bool, layers: tuple[str, ...], as_json: bool) -> None:
    """Theoretical receptive fields of a network, in input pixels.

    \b
    min    the smallest path (mostly the one through all shortcuts)
    max    from the first to the last pixel that any path reaches
    sizes  how many different sizes there are
    paths  how many ways lead from the picture to a unit

    NAME is a network of `r2viz models`, timm:NAME, torchvision:NAME or file.py:factory. No weights are needed.
    """  # noqa: D301 - the backspace itself, which tells click to keep the lines
    from r2viz.receptive.verbs import main_taps, theoretical_rf

    found = theoretical_rf(name, layers or None)
    if not layers:
        found = {tap: found[tap] for tap in main_taps(found, splits=splits)}
    if as_json:
        click.echo(json.dumps({"model": name, "taps": {tap: field.as_dict() for tap, field in found.items()}}))
        return
    width = max(3, *(len(tap) for tap in found))
    click.echo(f"{'tap':{width}}  stride    min    max  sizes  paths")
    remarks = set()
    for tap, field in found.items():
        stride = f"{field.jump[0]:g}" if field.jump[0] == field.jump[1] else f"{field.jump[0]:g}x{field.jump[1]:g}"
        marks = ("*" if field.unbounded else "") + ("" if field.aligned else "~")
        remarks |= set(marks)
        paths = f"{field.paths:,}" if field.paths < 10**6 else f"{field.paths:.2e}"
        line = f"{tap:{width}}  {stride:>6}  {field.min:>5}  {field.max:>5}  {len(field.sizes):>5}  {paths:>9} {marks}"
        click.echo(line.rstrip())
    if "*" in remarks:
        click.echo("* some paths see the whole picture (a gate from global pooling): max holds for the others")
    if "~" in remarks:
        click.echo("~ paths with different centres meet")
