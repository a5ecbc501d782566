"""What a training run leaves behind: float16 weights, model cards (JSON, Markdown), learning curves (PNG, CSV)."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2viz.errors import OutputError, one_line
from r2viz.models.count import macs
from r2viz.models.weights import file_digest
from r2viz.training.data import DataSet, Pictures
from r2viz.training.recipe import Recipe, normalised
from r2viz.version import __version__

SCHEMA = 1
COLUMNS = ("network", "step", "epoch", "size", "rate", "loss", "top1", "top5")
_BINS = 15


@dataclass(frozen=True)
class Score:
    """Accuracy on `pictures` validation pictures, as fractions.

    Attributes:
        ece: expected calibration error of the top-1 confidence over 15 equal bins (Guo et al. 2017).
    """

    top1: float
    top5: float
    ece: float
    pictures: int


@dataclass(frozen=True)
class Run:
    """What the networks of a run have in common.

    Attributes:
        stream: the sha256 chain over every batch's indices, flips and crops: equal streams, equal digests.
        seen: pictures that each network was trained on, repetitions included.
        seconds: wall time of the training, checkpoints and evaluations included, summed over resumptions.
        precision: "float32", "bfloat16" or "float16": of the training's matrix products; parameters are float32.
    """

    data: DataSet
    recipe: Recipe
    seed: int
    models: tuple[str, ...]
    stream: str
    seen: int
    seconds: float
    precision: str
    device: str
    version: int = 1


# --- Measuring -------------------------------------------------------------------------------------------------------


def logits(module: nn.Module, pictures: Pictures, size: int, *, batch: int = 250) -> Tensor:
    """Logits `(N, classes)` of all pictures at `size` pixels, on the CPU; in the caller's precision and mode."""
    device = next(module.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, len(pictures.labels), batch):
            x = torch.from_numpy(np.ascontiguousarray(pictures.pixels[start : start + batch])).permute(0, 3, 1, 2)
            if x.shape[2] != size:
                x = nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
            found.append(module(normalised(x).to(device)).float().cpu())
    return torch.cat(found)


def score(values: Tensor, labels: np.ndarray) -> Score:
    """Score logits `(N, classes)` against int64 labels `(N,)`; with fewer than five classes top-5 is 1."""
    right = torch.from_numpy(labels)
    best = values.topk(min(5, values.shape[1]), dim=1).indices
    hits = best == right[:, None]
    confidence = values.double().softmax(1).amax(1)
    bins = (confidence * _BINS).long().clamp(0, _BINS - 1)
    ece = 0.0
    for index in bins.unique():
        chosen = bins == index
        gap = hits[chosen, 0].double().mean() - confidence[chosen].mean()
        ece += float(gap.abs() * chosen.double().mean())
    return Score(float(hits[:, 0].double().mean()), float(hits.any(1).double().mean()), ece, len(labels))


# --- Writing ---------------------------------------------------------------------------------------------------------


def replace(path: Path, write: Callable[[Path], object], *, what: str) -> None:
    """Write a file beside `path`, and put it in its place when it is whole and on the disk.

    Raises:
        OutputError: it cannot be written; what stood at `path` is as it was.
    """
    new = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        before = f"the previous {what} is intact" if path.exists() else "nothing was left behind"
        raise OutputError(
            f"{one_line(str(path))}: the {what} cannot be written ({one_line(reason, 100)}); {before}; "
            "free some space or choose another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def export(module: nn.Module, path: Path) -> None:
    """Write weights as safetensors: matrices in float16; normalisation, which is small, stays float32."""
    from safetensors.torch import save

    state = {
        key: (value.half() if value.ndim > 1 else value).detach().cpu().contiguous()
        for key, value in module.state_dict().items()
    }
    # Not `save_file`, which makes files that only their owner may read.
    content = save(state, metadata={"format": "pt"})
    replace(path, lambda new: new.write_bytes(content), what="weights")


def publish(
    out: Path,
    networks: Mapping[str, nn.Module],
    build: Mapping[str, Callable[[int], nn.Module]],
    run: Run,
    history: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Write everything that a finished run leaves into `out`, and return the cards by name.

    The score on a card is that of the file beside it, read back and evaluated in float32.
    """
    from safetensors.torch import load_file

    cards: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        file = out / f"{name}.safetensors"
        export(network, file)
        with torch.random.fork_rng(devices=[]):
            stored = build[name](len(run.data.classes)).eval()
        stored.load_state_dict(load_file(file))
        network.eval()
        exact, shipped = (logits(m, run.data.validation, run.recipe.size) for m in (network, stored))
        cards[name] = _card(name, stored, file, run, score(shipped, run.data.validation.labels))
        cards[name]["float16"] = {
            "same_top1": float((exact.argmax(1) == shipped.argmax(1)).double().mean()),
            "largest_logit_change": float((exact - shipped).abs().max()),
        }
    for name, card in cards.items():
        card["pair"] = {other: card_["score"]["top1"] for other, card_ in cards.items() if other != name}
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        _write(out / f"{name}.json", text)
        _write(out / f"{name}.md", markdown(card))
    _write(out / "classes.txt", "".join(f"{label}\n" for label in run.data.classes))
    curves(out, history)
    return cards


def _write(path: Path, text: str) -> None:
    replace(path, lambda new: new.write_text(text, encoding="utf-8"), what="file")


def _card(name: str, module: nn.Module, file: Path, run: Run, found: Score) -> dict[str, Any]:
    data = run.data
    return {
        "schema": SCHEMA,
        "name": name,
        "version": run.version,
        "score": asdict(found),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "multiply_adds": macs(module, (run.recipe.size, run.recipe.size)),
        "input": {
            "size": run.recipe.size,
            "preprocess": "RGB, shorter side resized to the size (bilinear, antialiased), centre crop",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "data": {
            "name": data.name,
            "classes": len(data.classes),
            "training_pictures": len(data.training.labels),
            "validation_pictures": len(data.validation.labels),
            "sha256": data.digest,
        },
        "training": {
            "recipe": run.recipe.as_dict(),
            "seed": run.seed,
            "trained_alike": list(run.models),
            "stream_sha256": run.stream,
            "pictures_seen": run.seen,
            "wall_seconds": round(run.seconds, 1),
            "precision": run.precision,
            "device": run.device,
        },
        "weights": {"file": file.name, "bytes": file.stat().st_size, "sha256": file_digest(file)},
        "versions": {
            "r2viz": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "torchvision", "numpy", "pillow")},
        },
    }


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    found, data, training, weights = card["score"], card["data"], card["training"], card["weights"]
    recipe = training["recipe"]
    phases = ", then ".join(f"{epochs} at {size} px" for size, epochs in recipe["phases"])
    others = "; ".join(f"{name} {value:.1%}" for name, value in card["pair"].items())
    rows = [
        ("Top-1", f"{found['top1']:.2%} of {found['pictures']:,} validation pictures"),
        ("Top-5", f"{found['top5']:.2%}"),
        ("Calibration", f"ECE {found['ece']:.3f} (15 bins, top-1)"),
        ("Trained alike", others or "alone"),
        ("Parameters", f"{card['parameters']:,}"),
        ("Multiply-adds", f"{card['multiply_adds']:,} at {card['input']['size']} px"),
        ("Data", f"{data['name']}: {data['training_pictures']:,} pictures, {data['classes']} classes"),
        ("Data's sha256", f"`{data['sha256']}`"),
        ("Epochs", f"{phases}; {training['pictures_seen']:,} pictures seen"),
        (
            "Optimiser",
            f"{recipe['optimiser']}, batch {recipe['batch']}, peak rate {recipe['rate']} ({recipe['schedule']}), "
            f"weight decay {recipe['weight_decay']}, label smoothing {recipe['label_smoothing']}",
        ),
        ("Augmentation", f"random crop of {recipe['least_area']:.0%}-100 % of the area, horizontal flip"),
        ("Seed", f"{training['seed']}; sha256 of the stream `{training['stream_sha256']}`"),
        ("Wall time", f"{training['wall_seconds'] / 60:.0f} min on {training['device']}, {training['precision']}"),
        ("Weights", f"`{weights['file']}`, {weights['bytes']:,} bytes, sha256 `{weights['sha256']}`"),
        ("float16", f"same top-1 as float32 on {card['float16']['same_top1']:.2%} of the validation pictures"),
        ("Versions", ", ".join(f"{name} {value}" for name, value in card["versions"].items())),
    ]
    size = card["input"]["size"]
    return (
        f"# {card['name']}, version {card['version']}\n\n"
        f"A small network for pictures of {size}x{size} pixels, to be compared with the one that was trained alike: "
        "same pictures in the same order, same crops and flips, same schedule, same seed. It knows the "
        f"{data['classes']} classes of `classes.txt` and answers with one of them whatever it is shown.\n\n"
        "| | |\n|---|---|\n" + "".join(f"| {left} | {right} |\n" for left, right in rows) + "\n"
        f"Input: {card['input']['preprocess']}; values in 0..1 less the mean {tuple(card['input']['mean'])}, divided "
        f"by {tuple(card['input']['std'])}. `{card['name']}.json` beside this file says the same to machines.\n"
    )


# --- Curves ----------------------------------------------------------------------------------------------------------


def curves(out: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `curves.csv` (one row per network and point) and `curves.png`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(history)
    _write(out / "curves.csv", text.getvalue())
    figure = draw_curves(history)
    replace(
        out / "curves.png",
        lambda new: figure.savefig(new, format="png", dpi=120, metadata={"Software": None}),
        what="figure",
    )


def draw_curves(history: Sequence[Mapping[str, Any]]) -> Any:
    """A matplotlib figure: training loss and top-1 over epochs, one line per network, the picture sizes shaded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracy = figure.subplots(1, 2)
    for name in dict.fromkeys(row["network"] for row in history):
        rows = [row for row in history if row["network"] == name]
        trained = [row for row in rows if "loss" in row]
        tested = [row for row in rows if "top1" in row]
        losses.plot([row["epoch"] for row in trained], [row["loss"] for row in trained], label=name)
        accuracy.plot(
            [row["epoch"] for row in tested], [100 * row["top1"] for row in tested], marker="o", ms=3, label=name
        )
    first = [row for row in history if row["network"] == history[0]["network"]]
    changes = [
        (before["epoch"], row["size"]) for before, row in itertools.pairwise(first) if row["size"] != before["size"]
    ]
    for axes in (losses, accuracy):
        for epoch, size in changes:
            axes.axvline(epoch, color="0.8", lw=0.8, zorder=0)
            axes.annotate(f"{size} px", (epoch, 1), xycoords=("data", "axes fraction"), fontsize=7, va="top")
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    losses.set_ylabel("training loss (smoothed labels)")
    accuracy.set_ylabel("validation top-1 (%), at the size trained on")
    return figure
