"""A report's figures as files, and as data that a page carries within it."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from r2viz.figures.canvas import DPI, render
from r2viz.report.content import Drawing

_LEAST = 320
"""Pixels of a figure's width below which it is no longer made smaller."""


def png(drawing: Drawing) -> bytes:
    """The figure as it is kept."""
    if isinstance(drawing.image, bytes):
        return drawing.image
    return render(drawing.image, "png", provenance=drawing.provenance)


def pdf(drawing: Drawing) -> bytes:
    """The figure as lines and letters, or a picture laid into a page of its size."""
    if isinstance(drawing.image, Figure):
        return render(drawing.image, "pdf", provenance=drawing.provenance)
    with Image.open(io.BytesIO(drawing.image)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    page = Figure(figsize=(pixels.shape[1] / DPI, pixels.shape[0] / DPI), dpi=DPI)
    page.figimage(pixels)
    return render(page, "pdf")


def fitted(pictures: dict[str, bytes], limit: int) -> dict[str, bytes]:
    """PNGs that take no more than `limit` bytes together: the largest is halved until they fit.

    Those that are narrow already stay, so that in the end nothing may fit; the page says where the full ones are.
    """
    kept = dict(pictures)
    while sum(map(len, kept.values())) > limit:
        wide = [name for name in kept if _width(kept[name]) >= 2 * _LEAST]
        if not wide:
            break
        largest = max(wide, key=lambda name: len(kept[name]))
        kept[largest] = _halved(kept[largest])
    return kept


def uri(content: bytes) -> str:
    """PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def width_on_page(drawing: Drawing, content: bytes) -> int:
    """CSS pixels: a figure's own inches, larger by half, since it was set for paper; else the picture's pixels."""
    if isinstance(drawing.image, Figure):
        return round(float(drawing.image.get_size_inches()[0]) * 96 * 1.5)
    return _width(content)


def _width(content: bytes) -> int:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.width


def _halved(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as picture:
        small = picture.convert("RGB").reduce(2)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
