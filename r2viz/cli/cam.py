"""`r2viz cam`: class activation maps of pictures."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2viz.cli import networks as chosen
from r2viz.cli import progress, results
from r2viz.cli.codes import DONE, FAILED, PARTLY
from r2viz.errors import R2VizError, one_line
from r2viz.version import __version__

CHANNELS_OF_ALL = 128
"""For `--method all` unless the user says otherwise: with all channels, SS-CAM of the 50-layer pair takes hours. What
a map loses by it is measured in docs/methods.md; 32 lost too much (rank correlation 0.73 at worst, now 0.96)."""

if TYPE_CHECKING:
    from r2viz.image import Picture
    from r2viz.models.model import Model
    from r2viz.panels import Panel
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
@click.option(
    "--seed", type=click.IntRange(0), default=None, help="Seed of random weights, checks, methods that draw. [0]"
)
@click.option("--classes", type=click.Path(), default=None, help="Names of the classes, one per line.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="TAP",
    help="layer3, layer3.2.split1, …, of `r2viz models show`; repeatable. [each network's last stage]",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=("gradcam",),
    metavar="NAME",
    help="How the map is made: gradcam (default) or another of `r2viz methods`; repeatable; all: every one "
    f"(with --channels {CHANNELS_OF_ALL} unless you say otherwise).",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("shared",),
    metavar="T",
    help="Class to explain: shared (default: most probable on average), top1 (each network's own), agree, a label, "
    'an index, "cat vs dog" (a contrast); repeatable; top5: the five most probable.',
)
@click.option(
    "--fuse", default=None, metavar="HOW", help="Join the layers' maps: mean or max, each by its own maximum."
)
@click.option("--smooth", is_flag=True, help="Mean map over six flips and zooms of the picture.")
@click.option(
    "--channels",
    type=click.IntRange(1),
    default=None,
    metavar="K",
    help="Methods that go channel by channel look only at the K most varying ones. Score-CAM's lowest rank correlation "
    "with the map of all 640 (mini pair, six pictures): 0.73 for 32, 0.87 for 64, 0.96 for 128, 0.99 for 256.",
)
@click.option(
    "--compile", is_flag=True, help="For many pictures: compile the networks first, which takes a minute each."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="P",
    help="fp32, bf16 or fp16: of weights and activations. bf16 is about twice as fast where the processor computes in "
    "it, and keeps a map's ranks to 0.999.",
)
@click.option("--check", is_flag=True, help="Is the map to be trusted? Deletion, insertion, ROAD, random weights.")
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
    (raw maps) and NAME.cam.json (everything else). Several methods or targets make one panel instead: NAME.panel.png,
    NAME.panel.npz and NAME.panel.json.
    """
    _check_usage(options)
    if "all" in options["methods"]:
        options["channels"] = options["channels"] or CHANNELS_OF_ALL
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
    for kind, known in (
        ("fit", ("crop", "squash", "whole")),
        ("registration", ("rf", "grid")),
        ("fuse", ("mean", "max", None)),
        ("precision", ("fp32", "bf16", "fp16")),
    ):
        if options[kind] not in known:
            raise click.UsageError(f"no {kind} {options[kind]!r}; there are {', '.join(filter(None, known))}")
    if options["fuse"] and len(set(options["layers"])) < 2:
        raise click.UsageError("--fuse joins the maps of several layers; name at least two with --layer")
    for option in ("mask", "classes"):
        if options[option] is not None and not os.path.isfile(options[option]):
            raise click.UsageError(f"--{option}: there is no file {one_line(options[option], 200)!r}")


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
    what = "panel" if _several(options) else "cam"
    outputs = {item: results.outputs(folder, item, kinds, what) for item in inputs}
    if not options["resume"]:
        for paths in outputs.values():
            refuse_existing(paths, overwrite=options["overwrite"])
    results.prepare(folder)
    networks = chosen.named(options["models"], options["pair"], options["weights"])
    request = _request(networks, options)
    everything = inputs
    done = [item for item in inputs if results.kept(item, outputs[item], request)] if options["resume"] else []
    if done:
        click.echo(f"{len(done)} of {len(inputs)} pictures have their results already", err=True)
        inputs = [item for item in inputs if item not in set(done)]
        if options["as_json"]:
            for item in done:
                results.json_line(item, "kept", files=[str(path) for path in outputs[item]])
    judged = {item: results.kept_verdicts(outputs[item][-1]) for item in done} if options["check"] else {}
    if not inputs:
        if many:
            results.summarise([judged[item] for item in everything if item in judged], options["as_json"])
        return DONE

    models = _models(networks, options)
    region = _region_maker(box, options["mask"]) if marked else None
    answers = _answers(decoded(inputs), models, options, batch=min(options["batch"], len(inputs)), region=region)
    bad = 0
    for item, found in zip(inputs, progress.counted(answers, len(inputs), "picture"), strict=True):
        if isinstance(found, R2VizError):
            bad += 1
            click.echo(f"r2viz: {results.about(item, found)}", err=True)
            if options["as_json"]:
                results.json_line(item, "failed", error_code=found.code, error=str(found))
            continue
        checks = (
            results.checked(found, models, layers=options["layers"] or None, seed=_seed(options))
            if options["check"]
            else []
        )
        judged[item] = results.verdicts_of(found, checks)
        again = options["overwrite"] or options["resume"]
        results.write(found, checks, outputs[item], kinds, request, overwrite=again)
        results.show(found, checks, item, outputs[item], many=many, as_json=options["as_json"])
    if many:
        results.summarise([judged[item] for item in everything if item in judged], options["as_json"])
    if not bad:
        return DONE
    if many:
        click.echo(f"{bad} of {len(inputs)} pictures could not be used", err=True)
    return FAILED if options["strict"] or bad == len(inputs) + len(done) else PARTLY


def _seed(options: dict[str, Any]) -> int:
    return options["seed"] or 0


def _several(options: dict[str, Any]) -> bool:
    """Whether a picture gets several records: it must be known before the networks are, for the results' names."""
    methods, targets = set(options["methods"]), set(options["targets"])
    ranked = any(re.fullmatch("top[0-9]{1,3}", target) and target != "top1" for target in targets)
    return len(methods) > 1 or "all" in methods or len(targets) > 1 or ranked


def _answers(
    pictures: Iterator[Picture | R2VizError], models: Sequence[Model], options: dict[str, Any], **more: Any
) -> Iterator[CamRecord | Panel | R2VizError]:
    """For each picture a record, a panel, or the error that stands in its place."""
    from r2viz.attribution import METHODS
    from r2viz.explain import explain_many, panel_many
    from r2viz.panels import panel_of

    more |= {key: options[key] for key in ("registration", "fuse", "smooth", "channels", "compile")}
    more |= {"layers": options["layers"] or None, "seed": _seed(options), "progress": progress.Steps()}
    methods, targets = (list(dict.fromkeys(options[key])) for key in ("methods", "targets"))
    if not _several(options):
        yield from explain_many(pictures, models, method=methods[0], target=targets[0], **more)
        return
    methods = list(METHODS) if "all" in methods else methods
    for answer in panel_many(pictures, models, methods=methods, targets=targets, **more):
        if isinstance(answer, R2VizError):
            yield answer
        else:
            yield panel_of(answer, methods, [METHODS[name].title for name in methods])


def _request(networks: Sequence[tuple[str, str]], options: dict[str, Any]) -> str:
    """A digest of what was asked for, by content and without paths: results of another request are not ours to keep."""
    from r2viz.models.elsewhere import identity
    from r2viz.models.weights import file_digest

    def content(path: str | None) -> str | None:
        return file_digest(path) if path is not None and os.path.isfile(path) else path

    asked: list[Any] = [__version__, [[identity(name), content(weights)] for name, weights in networks]]
    asked += [options["layers"], *(options[key] for key in ("box", "fit", "registration", "seed"))]
    asked += [options[key] for key in ("methods", "targets", "fuse", "smooth", "channels", "compile", "check")]
    asked += [content(options["mask"]), content(options["classes"])]
    asked += [options["precision"]] if options["precision"] != "fp32" else []
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _models(networks: Sequence[tuple[str, str]], options: dict[str, Any]) -> list[Model]:
    from r2viz.models.model import fitted, load, read_classes, resolve_device

    common: dict[str, Any] = {"device": resolve_device(options["device"]), "precision": options["precision"]}
    if options["classes"]:
        common["classes"] = read_classes(options["classes"])
    found = []
    for name, weights in networks:
        seed = {"seed": options["seed"]} if options["seed"] is not None and weights == "random" else {}
        found.append(fitted(load(name, weights=weights, **seed, **common), options["fit"]))
    return found


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
