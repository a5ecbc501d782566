"""`r2viz cam`: class activation maps of pictures."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2viz.cli.codes import DONE, FAILED, PARTLY
from r2viz.errors import OutputError, R2VizError, one_line
from r2viz.version import __version__

if TYPE_CHECKING:
    from r2viz.inputs import Input
    from r2viz.models.model import Model
    from r2viz.records import CamRecord


@click.command("cam")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--pair", default=None, metavar="NAME", help="Two networks to compare: auto (default), imagenet, mini.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="One or two networks instead of a pair: of `r2viz models`, timm:NAME, torchvision:NAME, net.py:factory.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="W",
    help="auto, imagenet, mini, random, or a file (safetensors, or a pickle of tensors only); twice for two files.",
)
@click.option("--seed", type=click.IntRange(0), default=None, help="Seed of random weights. [0]")
@click.option("--classes", type=click.Path(), default=None, help="Names of the classes, one per line.")
@click.option(
    "--layer", "layers", multiple=True, metavar="TAP", help="layer4 (default), layer3.2.split1, …; repeatable."
)
@click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="How the map is made.")
@click.option(
    "--target",
    default="shared",
    show_default=True,
    metavar="T",
    help="Class to explain: shared (most probable on average), top1 (each network's own), agree, a label, an index.",
)
@click.option("--box", default=None, metavar="X0,Y0,X1,Y1", help="Where the object is: share of the map inside.")
@click.option("--mask", type=click.Path(), default=None, help="The same, as a picture that is white on the object.")
@click.option(
    "--fit",
    default="crop",
    show_default=True,
    metavar="HOW",
    help="crop (as the weights were trained), squash (whole picture, aspect changed), whole (whole picture).",
)
@click.option("--registration", default="rf", show_default=True, metavar="HOW", help="rf (unit centres) or grid.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …")
@click.option("-o", "--output", default="r2viz-out", show_default=True, type=click.Path(), help="Folder for results.")
@click.option("--format", "formats", multiple=True, metavar="F", help="png (default), pdf, svg; repeatable.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Pictures per forward pass.")
@click.option("--recursive", is_flag=True, help="Look into the folders of folders.")
@click.option("--json", "as_json", is_flag=True, help="Records on stdout: one object, or one per line for many.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("--resume", is_flag=True, help="Skip pictures whose results exist.")
@click.option("--strict", is_flag=True, help="Exit with 1 when any picture was bad.")
def command(images: tuple[str, ...], **options: Any) -> None:
    """Class activation maps: source | ResNet | Res2Net | difference.

    IMAGE is a file, a folder, a pattern or - for standard input. For each picture DIR gets NAME.cam.png, NAME.cam.npz
    (raw maps) and NAME.cam.json (everything else).
    """
    _check_usage(options)
    sys.exit(_cam(images, options))


def _check_usage(options: dict[str, Any]) -> None:
    """What can be refused before torch is imported."""
    if options["pair"] and options["models"]:
        raise click.UsageError("--pair and --model exclude each other; give one of them")
    if len(options["models"]) > 2:
        raise click.UsageError(f"{len(options['models'])} times --model; give one, or two to compare")
    if options["box"] is not None and options["mask"] is not None:
        raise click.UsageError("--box and --mask exclude each other; give one of them")
    if options["overwrite"] and options["resume"]:
        raise click.UsageError("--overwrite and --resume exclude each other; give one of them")
    for kind in options["formats"]:
        if kind not in ("png", "pdf", "svg"):
            raise click.UsageError(f"no figure format {kind!r}; there are png, pdf and svg")
    for kind, known in (("fit", ("crop", "squash", "whole")), ("registration", ("rf", "grid"))):
        if options[kind] not in known:
            raise click.UsageError(f"no {kind} {options[kind]!r}; there are {', '.join(known)}")
    for option in ("mask", "classes"):
        if options[option] is not None and not os.path.isfile(options[option]):
            raise click.UsageError(f"--{option}: there is no file {one_line(options[option], 200)!r}")
    if options["seed"] is not None and set(options["weights"]) != {"random"}:
        raise click.UsageError("--seed belongs to --weights random")


def _cam(images: Sequence[str], options: dict[str, Any]) -> int:
    from r2viz.inputs import decoded, gather
    from r2viz.store import refuse_existing

    inputs = gather(images, recursive=options["recursive"])
    many = len(images) > 1 or len(inputs) > 1
    marked = options["box"] is not None or options["mask"] is not None
    if marked and len(inputs) > 1:
        raise click.UsageError(f"--box and --mask belong to one picture, but {len(inputs)} came")
    box = _parse_box(options["box"])
    folder, kinds = Path(options["output"]), options["formats"] or ("png",)
    outputs = {item: _outputs(folder, item, kinds) for item in inputs}
    if not options["resume"]:
        for paths in outputs.values():
            refuse_existing(paths, overwrite=options["overwrite"])
    _prepare(folder)
    networks = _networks(options)
    request = _request(networks, options)
    done = [item for item in inputs if _kept(item, outputs[item], request)] if options["resume"] else []
    if done:
        click.echo(f"{len(done)} of {len(inputs)} pictures have their results already", err=True)
        inputs = [item for item in inputs if item not in set(done)]
        if options["as_json"]:
            for item in done:
                _line(item, "kept", files=[str(path) for path in outputs[item]])
    if not inputs:
        return DONE

    from r2viz.explain import explain_many

    models = _models(networks, options)
    bad = 0
    results = explain_many(
        decoded(inputs),
        models,
        batch=min(options["batch"], len(inputs)),
        layers=options["layers"] or ("layer4",),
        method=options["method"],
        target=options["target"],
        region=_region_maker(box, options["mask"]) if marked else None,
        registration=options["registration"],
    )
    for item, result in zip(inputs, _progress(results, len(inputs)), strict=True):
        if isinstance(result, R2VizError):
            bad += 1
            click.echo(f"r2viz: {_about(item, result)}", err=True)
            if options["as_json"]:
                _line(item, "failed", error_code=result.code, error=str(result))
            continue
        _write(result, outputs[item], kinds, request, overwrite=options["overwrite"] or options["resume"])
        _show(result, item, outputs[item], many, options["as_json"])
    if not bad:
        return DONE
    if many:
        click.echo(f"{bad} of {len(inputs)} pictures could not be used", err=True)
    return FAILED if options["strict"] or bad == len(inputs) + len(done) else PARTLY


def _networks(options: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, weights) of each network, public weights fetched: all before torch is imported, which takes seconds."""
    from r2viz.models.pairs import choose, obtain, pair
    from r2viz.models.zoo import canonical

    weights = options["weights"] or ("auto",)
    if options["models"]:
        names = tuple(canonical(name) for name in options["models"])
    else:
        names = pair(choose(options["pair"] or "auto", weights[0] if len(weights) == 1 else "file")).models
    if len(weights) not in (1, len(names)):
        raise click.UsageError(f"{len(weights)} times --weights for {len(names)} networks; give one for each")
    named = weights[0] in ("auto", "imagenet", "mini", "random")
    if len(weights) == 1 and len(names) == 2 and not named and os.path.exists(weights[0]):
        raise click.UsageError(f"one weights file for two networks ({', '.join(names)}); give --weights twice")
    networks = list(zip(names, weights * len(names) if len(weights) == 1 else weights, strict=True))
    obtain(networks)
    return networks


def _request(networks: Sequence[tuple[str, str]], options: dict[str, Any]) -> str:
    """A digest of what was asked for, by content and without paths: results of another request are not ours to keep."""
    from r2viz.models.elsewhere import identity
    from r2viz.models.weights import file_digest

    def content(path: str | None) -> str | None:
        return file_digest(path) if path is not None and os.path.isfile(path) else path

    asked: list[Any] = [__version__, [[identity(name), content(weights)] for name, weights in networks]]
    asked += [options["layers"], *(options[key] for key in ("method", "target", "box", "fit", "registration", "seed"))]
    asked += [content(options["mask"]), content(options["classes"])]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _kept(item: Input, paths: Sequence[Path], request: str) -> bool:
    """Whether the picture's results are there already, from this very picture and this very request.

    Raises:
        OutputError: they are there, but from another.
    """
    from r2viz.models.weights import file_digest
    from r2viz.store import made_by

    if item.path is None or item.error is not None or not all(map(os.path.exists, paths)):
        return False
    picture, asked = made_by(paths[-1])
    if asked == request and os.path.isfile(item.path) and picture == file_digest(item.path):
        return True
    raise OutputError(
        f"{one_line(str(paths[-1]))} was made from another picture or with other options, so --resume cannot go on "
        "from it; use --overwrite, or another folder with -o",
        code="output.other",
    )


def _models(networks: Sequence[tuple[str, str]], options: dict[str, Any]) -> list[Model]:
    from r2viz.models.model import fitted, load, read_classes, resolve_device

    common: dict[str, Any] = {"device": resolve_device(options["device"])}
    if options["seed"] is not None:
        common["seed"] = options["seed"]
    if options["classes"]:
        common["classes"] = read_classes(options["classes"])
    return [fitted(load(name, weights=weights, **common), options["fit"]) for name, weights in networks]


def _parse_box(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"the box {text!r} is not four numbers; expected x0,y0,x1,y1 in pixels") from None
    return (x0, y0, x1, y1)


def _region_maker(box: tuple[float, float, float, float] | None, mask: str | None) -> Any:
    """A region can be made only when its picture's size is known."""
    from r2viz.coverage import box_region, read_mask

    def make(size: tuple[int, int]) -> Any:
        return box_region(box, size) if box is not None else read_mask(str(mask), size)

    return make


def _outputs(folder: Path, item: Input, kinds: Sequence[str]) -> list[Path]:
    stem = folder / item.key.parent / f"{item.key.name}.cam"
    return [Path(f"{stem}.{kind}") for kind in (*kinds, "npz", "json")]


def _prepare(folder: Path) -> None:
    """Learn before the work, not after, that nothing can be written; a run that fails leaves no empty folder."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise OutputError(
            f"{one_line(str(there))} is a file, so no folder for results; choose another with -o", code="output.denied"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"the folder {one_line(str(there))} cannot be written to; choose another with -o", code="output.denied"
        )


def _write(record: CamRecord, paths: Sequence[Path], kinds: Sequence[str], request: str, *, overwrite: bool) -> None:
    from r2viz.figures import figure, provenance, render
    from r2viz.store import files, write_set

    drawn = {
        path: render(figure(record), kind, provenance=provenance(record))
        for path, kind in zip(paths, kinds, strict=False)
    }
    write_set({**drawn, **files(record, paths[-1], request=request)}, overwrite=overwrite)


def _line(item: Input, status: str, **more: Any) -> None:
    """A line of JSON about a picture that has no new record."""
    from r2viz.records import SCHEMA

    click.echo(json.dumps({"schema": SCHEMA, "input": item.shown, "status": status, **more}, ensure_ascii=False))


def _show(record: CamRecord, item: Input, paths: Sequence[Path], many: bool, as_json: bool) -> None:
    from r2viz.store import as_dict
    from r2viz.summary import lines

    if as_json:
        document = as_dict(record, arrays=paths[-2].name)
        document |= {"input": item.shown, "status": "ok", "files": [str(path) for path in paths]}
        click.echo(json.dumps(document, allow_nan=False, ensure_ascii=False, indent=None if many else 1))
        return
    for line in lines(record):
        click.echo(line)
    click.echo(f"  → {one_line(str(paths[0]), 1000)}")


def _progress(results: Iterator[Any], total: int) -> Iterator[Any]:
    """A bar on a terminal's stderr for more than a few pictures; silent elsewhere."""
    from tqdm import tqdm

    return iter(tqdm(results, total=total, unit="picture", file=sys.stderr, disable=True if total < 3 else None))


def _about(item: Input, error: R2VizError) -> str:
    """The message, with the picture's name where it does not begin with it (or with the end of a long one) already."""
    text = str(error)
    return text if item.error is not None or text.startswith((f"{item.shown}: ", "…")) else f"{item.shown}: {text}"
