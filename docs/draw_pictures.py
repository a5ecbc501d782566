"""Draws the pictures of README: `make pictures`. They are what the commands beside them give."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from r2viz.datasets import open_dataset
from r2viz.datasets.scenes import scenes
from r2viz.explain.survey import survey
from r2viz.figures import Stairs, render, scale_response, staircase
from r2viz.models.model import load_pair
from r2viz.receptive.verbs import main_taps, theoretical_rf

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = {"german_shepherd.jpg": "cam-dog.png", "koala.jpg": "cam-koala.png"}
PANEL = ("bison.jpg", "panel-methods.png")
TABLES = "tradeoff.png"
ERF, STAIRCASE, COVERAGE = "erf-pair.png", "staircase.png", "coverage.png"


def main() -> None:
    """One figure per picture, at a resolution for screens."""
    with tempfile.TemporaryDirectory() as folder:
        names = [str(ROOT / "examples" / name) for name in PICTURES]
        command = [sys.executable, "-m", "r2viz", "cam", *names, "-o", folder, *sys.argv[1:]]
        subprocess.run(command, check=True)
        for name, target in PICTURES.items():
            shutil.copyfile(Path(folder) / f"{Path(name).stem}.cam.png", HERE / target)
            print(f"docs/{target}")
        name, target = PANEL
        command = [sys.executable, "-m", "r2viz", "cam", str(ROOT / "examples" / name), "--method", "all", "-o", folder]
        subprocess.run([*command, *sys.argv[1:]], check=True)
        small(Path(folder) / f"{Path(name).stem}.panel.png", HERE / target)
        print(f"docs/{target}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "r2viz", "tables", "1", "2", "3", "-o", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.copyfile(Path(folder) / "tradeoff.png", HERE / TABLES)
        print(f"docs/{TABLES}")
        command = [sys.executable, "-m", "r2viz", "erf", str(ROOT / "examples"), "--pair", "mini", "-o", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        small(next(Path(folder).glob("*.erf.png")), HERE / ERF, colours=256)
        print(f"docs/{ERF}")
    save(stairs(), STAIRCASE)
    save(response(), COVERAGE)


def stairs() -> Figure:
    """Every theoretical field of the paper's pair, as the report of receptive fields draws it."""
    networks = []
    for name, title in (("resnet50", "ResNet-50"), ("res2net50_26w_4s", "Res2Net-50 26w-4s")):
        fields = theoretical_rf(name)
        taps = {tap: fields[tap].sizes for tap in main_taps(fields, splits=True)}
        networks.append(Stairs(title, taps))
    return staircase(networks, picture=224)


def response() -> Figure:
    """The mini pair's maps while the objects of examples/ grow on other pictures' backgrounds."""
    objects = [entry.open() for entry in open_dataset(ROOT / "examples")]
    return scale_response(survey(scenes(objects, backgrounds=2), load_pair("mini"), target="shared"))


def save(drawing: Figure, target: str) -> None:
    """Write a figure at half its size."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / target
        whole.write_bytes(render(drawing, "png"))
        small(whole, HERE / target, colours=256)
    print(f"docs/{target}")


def small(source: Path, target: Path, *, colours: int | None = None) -> None:
    """At half its size, which is what a screen shows; lines and letters need no more than 256 colours."""
    with Image.open(source) as picture:
        size = (picture.width // 2, picture.height // 2)
        shown = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        (shown if colours is None else shown.quantize(colours)).save(target, optimize=True)


if __name__ == "__main__":
    main()
