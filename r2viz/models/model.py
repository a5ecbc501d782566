"""A network ready to be looked at: module, preprocessing, class names and where its weights came from."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r2viz.errors import BadWeights, ModelError, R2VizError, UnknownName, nearest, one_line
from r2viz.geometry import Preprocess
from r2viz.models import count, layouts, zoo
from r2viz.models import weights as stored
from r2viz.models.elsewhere import plain
from r2viz.models.hub import fetch, fetch_url
from r2viz.models.pairs import choose, no_weights, pair
from r2viz.models.row import Row
from r2viz.models.weights import Weights

RANDOM_SEED = 0
EMBEDDED = Path(__file__).with_name("embedded")
_drawing = threading.Lock()
FITS = ("crop", "squash", "whole")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Model:
    """What an analysis needs to know of a network. Safe to use from several threads."""

    name: str
    title: str
    module: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    weights: Weights
    seed: int | None = None


def load(
    name: str,
    *,
    weights: str | os.PathLike[str] = "auto",
    seed: int | None = None,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> Model:
    """A network, in evaluation mode, channels-last.

    Args:
        name: a name or alias in `r2viz.models.zoo.ZOO`, or a network elsewhere: `timm:NAME`, `torchvision:NAME`,
            `path/to/file.py:factory`.
        weights: `"imagenet"` takes the public weights, `"mini"` those in the package, `"auto"` whichever of the two
            the network has, `"random"` seeded fresh ones (for tests and comparisons with "untrained"); anything else
            is a file: safetensors, or a pickle that holds tensors only.
        seed: of random weights; 0 unless given.
        classes: names of the classes, in the order of the head's outputs. A file with another number of classes
            than the network's own needs them for labels; without, its classes are called by their numbers.
        device: a torch device, or `"auto"`: CUDA, then MPS, then the CPU.
        precision: of weights and activations: fp32, bf16 or fp16. Maps, probabilities and records stay float32. Half
            the memory, and faster where the device computes in it; maps of a layer change in the third digit.

    Raises:
        UnknownName: no such network or precision.
        WeightsUnavailable: there are no public weights, or they are neither cached nor reachable.
        BadWeights: the file cannot be read, is not safe, or does not fit.
        ModelError: the number of class names is not the number of classes.
    """
    name = zoo.canonical(name)
    row = zoo.row(name)
    kind = os.fspath(weights)
    if precision not in PRECISIONS:
        raise UnknownName(
            f"no precision {precision!r}{nearest(precision, PRECISIONS)}; there are {', '.join(PRECISIONS)}",
            code="unknown_name.precision",
        )
    if seed is not None and kind != "random":
        raise ModelError(f"seed {seed} was given with weights {one_line(kind)!r}; a seed belongs to weights 'random'")
    if seed is not None and not 0 <= seed < 2**63:
        raise ModelError(f"seed {one_line(str(seed), 40)} is out of range; give a whole number from 0 to 2**63 - 1")
    if kind == "random":
        module, origin = _random(row, RANDOM_SEED if seed is None else seed)
    else:
        module, origin = _stored(name, row, kind)
    labels = _labels(row, module, classes)
    _reorder(module)
    module.eval().to(  # type: ignore[call-overload]
        device=resolve_device(device), dtype=PRECISIONS[precision], memory_format=torch.channels_last
    )
    return Model(
        plain(name),
        row.title,
        module,
        row.preprocess,
        labels,
        origin,
        RANDOM_SEED if origin.random and seed is None else seed,
    )


def _reorder(module: nn.Module) -> None:
    """Put the weights of convolutions into channels-last order, each where it is.

    `Module.to` would copy each into memory of its own, and what that frees is too scattered to be used again: loading
    took up to half a model more. Only the buffer, as large as the largest weight, is more here.
    """
    # 1x1 kernels as well: no number of theirs moves, but `Module.to` copies what has not the strides by the letter.
    weights = [one for one in module.parameters() if one.ndim == 4 and one.is_contiguous() and one.device.type == "cpu"]
    if len({weight.data_ptr() for weight in weights}) != len(weights):
        return  # weights that are one another's: left to `Module.to`
    buffer: torch.Tensor | None = None
    for weight in sorted(weights, key=torch.Tensor.numel, reverse=True):
        held = weight.data
        if buffer is None or buffer.dtype != held.dtype:
            buffer = torch.empty(held.numel(), dtype=held.dtype)
        copied = buffer[: held.numel()].view(held.shape).copy_(held)
        _, channels, height, width = held.shape
        weight.data = held.as_strided(
            held.shape, (channels * height * width, 1, width * channels, channels), held.storage_offset()
        )
        weight.data.copy_(copied)


def load_pair(name: str = "auto", **options: Any) -> tuple[Model, Model]:
    """Both networks of a pair, the baseline first; `options` as for `load`."""
    chosen = choose(name, os.fspath(options.get("weights", "auto")))
    first, second = (load(model, **options) for model in pair(chosen).models)
    return first, second


def fitted(model: Model, fit: str) -> Model:
    """The model with another way of fitting a picture into its input.

    `"crop"` is the weights' own (the margins are lost), `"squash"` shows it the whole picture with the aspect changed,
    `"whole"` the whole picture in its aspect, at the input's shorter side; the last makes inputs of different sizes.

    Raises:
        UnknownName: no such way.
    """
    own = model.preprocess
    if fit == "crop" or own.crop is None:
        return model
    if fit == "squash":
        return replace(model, preprocess=replace(own, mode="squash"))
    if fit == "whole":
        return replace(model, preprocess=replace(own, resize=min(own.crop), crop=None))
    raise UnknownName(f"no fit {fit!r}; there are {', '.join(FITS)}", code="unknown_name.fit")


def resolve_device(device: str | torch.device) -> torch.device:
    """`"auto"` as the best device there is; anything else checked.

    Raises:
        ModelError: torch does not know the device, or it is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()  # "meta" makes tensors too, but none with values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(str(error).splitlines()[0], 120)
        raise ModelError(f"device {str(device)!r} cannot be used ({reason}); try 'auto' or 'cpu'") from None
    return resolved


def _random(row: Row, seed: int) -> tuple[nn.Module, Weights]:
    # The caller's random numbers go on as if nothing had been drawn; the generator is the process's, so one at a time.
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every GPU
        module = row.build()
    return module, Weights("random", f"random weights, seed {seed}", stored.digest(module.state_dict()))


def _stored(name: str, row: Row, kind: str) -> tuple[nn.Module, Weights]:
    path, source = _located(name, row, kind)
    if row.lent and source.kind == "hub":
        return _as_its_library_would(name, row, path, source)
    state, layout = layouts.remap(stored.read(path, dtype=torch.float32), source=source.source)
    origin = replace(source, sha256=stored.file_digest(path), note=source.note or layout.note)
    module = unfilled(row)
    head, outputs = _head(module)
    size = stored.head_size(state, head)
    if size not in (None, outputs):
        module = unfilled(row, num_classes=size)
    stored.fit(module, state, name=name, source=origin.source)
    layouts.adapt(module, layout)
    return module, origin


def unfilled(row: Row, **more: Any) -> nn.Module:
    """The network for weights to be put in: no memory and no random numbers are spent on what a file replaces."""
    if row.lent:  # foreign code may compute with what it builds, or keep tensors that no state dict has
        return row.build(**more)
    with torch.device("meta"):
        return row.build(**more)


def _as_its_library_would(name: str, row: Row, path: Path, source: Weights) -> tuple[nn.Module, Weights]:
    try:
        module = row.build(file=path)
    except R2VizError:
        raise
    except Exception as error:  # damaged, or of another version of the library
        raise BadWeights(
            f"{source.source} does not fit {name} ({type(error).__name__}: {one_line(str(error), 160)}); remove "
            f"{one_line(str(path))} to fetch it again, or give --weights FILE"
        ) from error
    return module, replace(source, sha256=stored.file_digest(path))


def _located(name: str, row: Row, kind: str) -> tuple[Path, Weights]:
    """The file that `kind` of weights means for this network, and what to call it."""
    if kind == "auto":
        kind = "mini" if row.embedded is not None and not row.public else "imagenet"
    if kind == "imagenet":
        if row.url is not None:
            path = fetch_url(row.url)
            return path, Weights("hub", f"torchvision/{path.name}", "")
        if row.hub is None:
            raise no_weights(name, row)
        path, commit = fetch(row.hub)
        return path, Weights("hub", f"{row.hub}@{commit[:12]}", "")
    if kind == "mini":
        if row.embedded is None:
            raise UnknownName(f"{name} has no weights 'mini'; there are 'auto', 'imagenet', 'random' and files")
        path = EMBEDDED / row.embedded
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        said = f"r2viz mini v{card['version']}, 200 classes, 64 px, {card['score']['top1']:.1%} top-1"
        return path, Weights("embedded", said, "")
    return Path(kind), Weights("file", one_line(Path(kind).name), "")


def _labels(row: Row, module: nn.Module, classes: Sequence[str] | None) -> tuple[str, ...]:
    outputs = _outputs(row, module)
    if classes is not None:
        if len(classes) != outputs:
            raise ModelError(
                f"{len(classes)} class names came for a network of {outputs} classes; give one name per class, in order"
            )
        return tuple(classes)
    known = class_names(row.classes) if row.classes else ()
    return known if len(known) == outputs else tuple(f"class {index}" for index in range(outputs))


def _outputs(row: Row, module: nn.Module) -> int:
    if row.lent:  # where the head is in a foreign network is best seen by what comes out
        try:
            logits = count.shapes(module, row.size)
        except Exception:  # such code need not run on tensors without values
            return _head(module)[1]
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            said = f"{tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
            raise ModelError(
                f"{row.title} gives {said} for a picture; expected logits (1, classes): it is no classifier"
            )
        return logits.shape[1]
    return _head(module)[1]


def _head(module: nn.Module) -> tuple[str, int]:
    """Name and number of outputs of the last layer that could be a head: linear, or a convolution."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    if not found:
        return "", 0
    name, last = found[-1]
    return name, last.out_features if isinstance(last, nn.Linear) else last.out_channels


def class_names(vocabulary: str) -> tuple[str, ...]:
    """Names of the classes of a data set that the table's weights were trained on, in output order."""
    if vocabulary == "imagenet":
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    if vocabulary == "tiny-imagenet":
        return read_classes(EMBEDDED / "classes.txt")
    if vocabulary == "cifar100":
        return read_classes(EMBEDDED / "cifar100.txt")
    raise UnknownName(f"no class names for {vocabulary!r}")


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names from a text file, one per line, in output order.

    Raises:
        R2VizError: the file cannot be read, is empty, or names a class twice.
    """
    shown = one_line(os.fspath(path))
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise R2VizError(f"the class names {shown} cannot be read ({one_line(str(error), 120)})") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise BadWeights(f"the class names {shown} hold no line; expected one name per line", code="bad_classes")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise BadWeights(
            f"the class names {shown} hold {one_line(twice, 60)!r} twice; every class needs a name of its own",
            code="bad_classes",
        )
    return names
