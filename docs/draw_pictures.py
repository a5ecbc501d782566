"""Draws the pictures of README: `make pictures`. They are what the commands beside them give."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = {"german_shepherd.jpg": "cam-dog.png", "koala.jpg": "cam-koala.png"}
PANEL = ("bison.jpg", "panel-methods.png")
TABLES = "tradeoff.png"


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


def small(source: Path, target: Path) -> None:
    """At half its size, which is what a screen shows."""
    with Image.open(source) as picture:
        size = (picture.width // 2, picture.height // 2)
        picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(target, optimize=True)


if __name__ == "__main__":
    main()
