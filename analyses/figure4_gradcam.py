"""The paper's figure 4: class activation maps of ResNet and Res2Net in a grid, one picture per column.

    python -m analyses.figure4_gradcam [PICTURE …] -o out/figure4

Without pictures it takes those of examples/. The paper names neither layer, target class nor colours; here: the last
stage, one shared class per picture, each map divided by its own maximum. A picture whose file name begins with a
WordNet id of ImageNet is not treated differently: the class is what the two networks hold most probable together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from r2viz.errors import R2VizError
from r2viz.explain import explain_many
from r2viz.figures import grid, provenance, render
from r2viz.inputs import decoded, gather
from r2viz.models.model import load_pair
from r2viz.records import CamRecord
from r2viz.store import as_dict, write_set
from r2viz.summary import lines

EXAMPLES = Path(__file__).parents[1] / "examples"


@click.command()
@click.argument("pictures", nargs=-1)
@click.option("--pair", default="auto", show_default=True, help="The two networks.")
@click.option("--weights", default="auto", show_default=True, help="auto or random.")
@click.option("--layer", default=None, help="The tap. [each network's last stage]")
@click.option("--target", default="shared", show_default=True, help="shared, a label or an index.")
@click.option("--columns", default=7, show_default=True, type=click.IntRange(1), help="Pictures per figure.")
@click.option("-o", "--output", default="out/figure4", show_default=True, help="Folder for figures and numbers.")
@click.option("--overwrite", is_flag=True, help="Replace figures that exist.")
def main(pictures: tuple[str, ...], pair: str, weights: str, output: str, overwrite: bool, **options: Any) -> None:
    """Draw the grid as PNG and PDF, with each panel's numbers as JSON. Exit codes are those of `r2viz cam`."""
    try:
        inputs = gather(pictures or [str(EXAMPLES)])
        columns = options.pop("columns")
        explained = explain_many(
            decoded(inputs),
            load_pair(pair, weights=weights),
            layers=[options["layer"]] if options["layer"] else None,
            target=options["target"],
        )
        records: list[CamRecord] = []
        for item, result in zip(inputs, explained, strict=True):
            if isinstance(result, R2VizError):
                click.echo(f"left out: {item.shown}: {result}", err=True)
            else:
                records.append(result)
                click.echo("\n".join(lines(result)))
        if not records:
            raise R2VizError(f"none of the {len(inputs)} pictures could be used, so there is nothing to draw")
        _write(records, columns, Path(output), overwrite)
    except R2VizError as error:
        click.echo(f"figure4: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if len(records) == len(inputs) else 3)


def _write(records: list[CamRecord], columns: int, folder: Path, overwrite: bool) -> None:
    files: dict[Path, bytes] = {}
    for number, start in enumerate(range(0, len(records), columns), start=1):
        part = records[start : start + columns]
        drawn = grid(part)
        for kind in ("png", "pdf"):
            embedded = "[" + ", ".join(provenance(record) for record in part) + "]"
            files[folder / f"figure4-{number}.{kind}"] = render(drawn, kind, provenance=embedded)
    numbers = [as_dict(record) for record in records]
    files[folder / "figure4.json"] = (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode()
    write_set(files, overwrite=overwrite)
    for path in files:
        click.echo(f"→ {path}")


if __name__ == "__main__":
    main()
