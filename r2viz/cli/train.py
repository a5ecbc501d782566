"""`r2viz train`: train networks alike."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command("train")
@click.argument("data", type=click.Path())
@click.option(
    "--models",
    default="resnet26_mini,res2net26_mini",
    show_default=True,
    metavar="NAMES",
    help="Networks to train alike, by name, with commas.",
)
@click.option("--out", default="trained", show_default=True, type=click.Path(), help="Folder for weights and cards.")
@click.option("--epochs", default=13, show_default=True, type=click.IntRange(1), help="Passes over the pictures.")
@click.option("--size", default=64, show_default=True, type=click.IntRange(16), help="Side of the pictures in use.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of weights, order and crops.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the folder.")
@click.option("--overwrite", is_flag=True, help="Start anew although there is a checkpoint.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option(
    "--precision", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16", "float16"])
)
@click.option(
    "--version-number",
    "version",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="The version that the cards show; it changes nothing else.",
)
@click.option("--json", "as_json", is_flag=True, help="The cards as one object.")
def command(data: str, models: str, as_json: bool, **options: Any) -> None:
    """Train networks alike: same pictures, order, crops, schedule and seed.

    DATA is a folder of Parquet shards (train*.parquet, val*.parquet) or an ImageFolder (train/CLASS/*.jpg, val/…).
    Start it under torchrun for several GPUs.
    """
    from r2viz.training import train as run

    names = [name.strip() for name in models.split(",") if name.strip()]
    cards = run(data, names, **options)
    if as_json:
        click.echo(json.dumps(cards, ensure_ascii=False, indent=1))
        return
    for name, card in cards.items():
        score = card["score"]
        click.echo(f"{name}: top-1 {score['top1']:.2%}, top-5 {score['top5']:.2%}, {card['weights']['bytes']:,} bytes")
    if cards:
        click.echo(f"  → {options['out']}")
