"""`r2viz models`: what the table of networks holds, and what a network is made of."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from r2viz.errors import UnknownName

if TYPE_CHECKING:
    from r2viz.models.outline import Block, Stage, Tap
    from r2viz.models.row import Row


class _ListedByDefault(click.Group):
    """`models FILTER` means `models list FILTER`; only `list` and `show` cannot be filters."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and not {"-h", "--help"} & set(args)):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("models", cls=_ListedByDefault)
def command() -> None:
    """The networks, and what each is made of.

    \b
    r2viz models [FILTER]      all of them, or those with FILTER in their names
    r2viz models show NAME     one: stages, blocks, splits, taps

    Beside those of the table, NAME may be timm:NAME, torchvision:NAME or path/to/file.py:factory, here and wherever
    a network is named. The function `factory` returns a torch.nn.Module; if it takes num_classes, files of weights
    may have another number of classes. The file may say how its pictures are prepared:
    PREPROCESS = r2viz.geometry.Preprocess(resize=256, crop=(224, 224)), which is the default.
    """  # noqa: D301 - the backspace itself, which tells click to keep the lines


# --- All of them -----------------------------------------------------------------------------------------------------


@command.command("list")
@click.argument("text", default="", metavar="[FILTER]")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def listing(text: str, as_json: bool) -> None:
    """List the networks: size, the paper's accuracy, where their weights are, and the pairs."""
    from r2viz.models.zoo import ZOO

    wanted = text.casefold()
    found = {name: row for name, row in ZOO.items() if wanted in " ".join((name, row.title, *row.aliases)).casefold()}
    if as_json:
        click.echo(json.dumps({name: _facts(name, row) for name, row in found.items()}, ensure_ascii=False, indent=1))
    elif found:
        _table(found)
    if not found:
        raise UnknownName(f"no model has {text!r} in its name; `r2viz models` lists all {len(ZOO)}")


def _table(found: dict[str, Row]) -> None:
    from r2viz.models.pairs import local, of_network

    name_width = max(len(name) for name in found)
    title_width = max(len(row.title) for row in found.values())
    click.echo(f"{'name':{name_width}}  {'network':{title_width}}  params   GMACs  top-1  weights")
    groups = list(dict.fromkeys(row.classes for row in found.values()))
    told = ""
    for name, row in sorted(found.items(), key=lambda item: groups.index(item[1].classes)):
        if row.classes != told:
            told = row.classes
            click.echo(f"— {told}")
        where = "package" if row.embedded else "public" if row.public else "-"
        if row.public:
            where += ", cached" if local(row) is not None else ""
        pairs = of_network(name)
        click.echo(
            f"{name:{name_width}}  {row.title:{title_width}}  {row.params / 1e6:5.1f}M {row.macs / 1e9:7.3f}  "
            f"{'' if row.top1 is None else format(row.top1, '.2f'):>5}  {where}"
            f"{f' (pair {pairs[0]})' if pairs else ''}"
        )
    click.echo("top-1: the paper's, in percent; GMACs: at the network's own input size. More: r2viz models show NAME")


def _facts(name: str, row: Row) -> dict[str, Any]:
    from r2viz.models.pairs import local, of_network

    return {
        "title": row.title,
        "pairs": of_network(name),
        "weights": "package" if row.embedded else row.hub or row.url,
        "at_hand": local(row) is not None,
        "classes": row.classes,
        "params": row.params or None,
        "macs": row.macs or None,
        "size": row.size,
        "published": [
            {"table": claim.table, "called": claim.called, "top1": claim.top1, "top5": claim.top5}
            for claim in row.published
        ],
        "published_top1": row.top1,
        "measured_top1": row.measured_top1,
        "equals": row.oracle,
        "aliases": row.aliases,
        "licence": row.licence,
        "citation": row.citation,
        "note": row.note,
    }


# --- One of them -----------------------------------------------------------------------------------------------------


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One object, with every tap.")
def show(name: str, as_json: bool) -> None:
    """Show what a network is made of: stages, blocks, splits, and every tap with its shape and stride."""
    from r2viz.models import count, zoo
    from r2viz.models.model import unfilled
    from r2viz.models.outline import outline

    name = zoo.canonical(name)
    row = zoo.row(name)
    module = unfilled(row)
    found = outline(module, row.size)
    params, macs = row.params or count.params(module), row.macs or count.macs(module, row.size)
    if as_json:
        document = {"name": name, **_facts(name, row), "params": params, "macs": macs}
        document["stages"] = [
            {**_tap(stage.tap), "blocks": [_described(block) for block in stage.blocks]} for stage in found.stages
        ]
        document["taps"] = [_tap(tap) for tap in found.taps]
        click.echo(json.dumps(document, ensure_ascii=False, indent=1))
        return
    click.echo(f"{name}: {row.title}")
    click.echo(f"  {params:,} parameters, {macs:,} multiply-adds at {row.size[0]}x{row.size[1]} px")
    for line in _about(row):
        click.echo(f"  {line}")
    width = max([len(stage.tap.name) for stage in found.stages] + [5])
    click.echo(f"\n  {'tap':{width}}  {'shape':>14}  stride  made of")
    for stage in found.stages:
        made = _made_of(stage)
        line = f"  {stage.tap.name:{width}}  {_shape(stage.tap):>14}  {_stride(stage.tap):>6}  {made}"
        click.echo(line.rstrip())
    example = _example(found.stages)
    if example:
        click.echo(f"\n  taps inside, for example: {example}")
    click.echo(f"  {len(found.taps)} taps in all: r2viz models show {name} --json")


def _about(row: Row) -> list[str]:
    from r2viz.models.pairs import local

    lines = []
    if row.aliases:
        lines.append(f"also called {', '.join(row.aliases)}")
    for claim in row.published:
        top5 = "" if claim.top5 is None else f", top-5 {claim.top5:.2f} %"
        lines.append(f"the paper's table {claim.table[1:]}: top-1 {claim.top1:.2f} %{top5} ({claim.called})")
    if row.measured_top1 is not None:
        lines.append(f"its weights as timm measured them: top-1 {row.measured_top1:.2f} %")
    where = "in the package" if row.embedded else row.hub or row.url
    if where is None:
        lines.append("weights: none to fetch; give --weights FILE or --weights random")
    else:
        lines.append(f"weights: {where}{'' if local(row) is not None else ' (not cached)'}; {row.licence}")
    if row.note:
        lines.append(f"note: {row.note}")
    prepared = row.preprocess
    how = f"shorter side to {prepared.resize}, crop" if prepared.mode == "crop" else "the whole picture to"
    lines.append(f"pictures: {how} {row.size[0]}x{row.size[1]}, {prepared.interpolation}")
    lines.append(f"source: {row.citation}" + (f"; equals {row.oracle}" if row.oracle and not row.lent else ""))
    return lines


def _made_of(stage: Stage) -> str:
    if not stage.blocks or stage.blocks[0].tap.name == stage.tap.name:
        return "" if stage.blocks else stage.tap.kind
    first, last = stage.blocks[0], stage.blocks[-1]
    kinds = Counter(block.tap.kind for block in stage.blocks)
    text = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    if last.splits:
        text += f", {len(last.splits)} splits of {last.splits[0].shape[0]} channels"
        plain = sum(not block.cascade for block in stage.blocks) if len(last.splits) > 2 else 0
        text += f", {plain} without cascade" if 0 < plain < len(stage.blocks) else ""
    return text + f": {first.tap.name} … {last.tap.name}" if len(stage.blocks) > 1 else f"{text}: {first.tap.name}"


def _example(stages: tuple[Stage, ...]) -> str:
    blocks = [block for stage in stages for block in stage.blocks]
    if not blocks:
        return ""
    block = blocks[-1]
    if not block.splits:
        return f"{block.tap.name} ({_shape(block.tap)})"
    last = len(block.splits) - 1
    return (
        f"{block.tap.name} ({_shape(block.tap)}), {block.tap.name}.split0 … split{last} ({_shape(block.splits[0])}), "
        f"{block.tap.name}.conv3_in[0] … [{last}] (direct path only)"
    )


def _described(block: Block) -> dict[str, Any]:
    return {**_tap(block.tap), "splits": [_tap(split) for split in block.splits], "cascade": block.cascade}


def _tap(tap: Tap) -> dict[str, Any]:
    return {"name": tap.name, "kind": tap.kind, "shape": tap.shape, "stride": tap.stride}


def _shape(tap: Tap) -> str:
    return "x".join(map(str, tap.shape))


def _stride(tap: Tap) -> str:
    if tap.stride is None:
        return "-"
    y, x = tap.stride
    return f"{y:g}" if y == x else f"{y:g},{x:g}"
