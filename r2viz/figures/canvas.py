"""What every figure has in common: inks, fitted lines of text, and the same bytes each time."""

from __future__ import annotations

import contextlib
import io
import warnings
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath
from PIL.PngImagePlugin import PngInfo

from r2viz.errors import OutputError, one_line

DPI = 300
INK = "#1a1a1a"
GREY = "#5c5c5c"
WARNING = "#b3261e"
TEXT: dict[str, Any] = {"parse_math": False}  # no name is taken for a formula


def render(drawing: Figure, kind: str, *, provenance: str = "") -> bytes:
    """The figure as PNG, PDF or SVG: the same bytes each time.

    `provenance` goes into a PNG's iTXt chunk `r2viz`, a PDF's subject, an SVG's description.

    Raises:
        OutputError: another kind of file.
    """
    buffer = io.BytesIO()
    with missing_glyphs_allowed():
        if kind == "png":
            info = PngInfo()
            if provenance:
                info.add_itxt("r2viz", provenance, zip=len(provenance) > 2000)
            drawing.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"pnginfo": info})
        elif kind == "pdf":
            drawing.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Subject": provenance or None})
        elif kind == "svg":
            import matplotlib

            with matplotlib.rc_context({"svg.hashsalt": "r2viz"}):
                drawing.savefig(buffer, format="svg", metadata={"Date": None, "Description": provenance or None})
        else:
            raise OutputError(f"no figure format {kind!r}; there are png, pdf and svg")
    return buffer.getvalue()


def titles(ax: Axes, title: str, *notes: str, least: float = 1.55, broken: bool = False) -> None:
    """Lines above a panel: the last one nearest to it; each made to fit the panel's width, or `least` inches.

    `broken` allows a title of several words two lines, in smaller letters, before it loses any.
    """
    inches = ax.figure.get_size_inches()[0]  # type: ignore[union-attr]
    room = max(ax.get_position().width * inches, least) * 72
    for number, note in enumerate(reversed(notes)):
        _line(ax, note, 6.5, 3 + 8.2 * number, room)
    up = 3 + 8.2 * len(notes)
    halves = _halves(one_line(title, 200))
    if broken and len(halves) == 2 and _width(" ".join(halves), 8, "bold") * 0.75 > room:
        for number, half in enumerate(reversed(halves)):
            _line(ax, half, 6, up + 6.3 * number, room, fontweight="bold")
    else:
        _line(ax, title, 8, up + 0.8, room, fontweight="bold")


def _halves(text: str) -> list[str]:
    """The text broken at the space that leaves the shortest lines."""
    places = [place for place, letter in enumerate(text.strip()) if letter == " "]
    if not places:
        return [text]
    middle = min(places, key=lambda place: max(place, len(text) - place))
    return [text[:middle].strip(), text[middle:].strip()]


def _width(text: str, size: float, weight: str) -> float:
    font = FontProperties(size=size, weight=weight)
    with missing_glyphs_allowed():
        return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]


def _line(ax: Axes, text: str, size: float, up: float, room: float, **more: Any) -> None:
    font = FontProperties(size=size, weight=more.get("fontweight", "normal"))

    def width(candidate: str) -> float:
        return TextToPath().get_text_width_height_descent(candidate, font, ismath=False)[0]

    text = one_line(text, 200)
    with missing_glyphs_allowed():
        if width(text) > room:  # smaller letters first, then fewer
            size *= max(0.7 if room < 72 else 0.8, room / width(text))
            font.set_size(size)
        if width(text) > room:
            fits = bisect_right(range(len(text)), room, key=lambda count: width(text[:count].rstrip() + "…"))
            text = text[: max(3, fits - 1)].rstrip() + "…"
    ax.annotate(
        text, (0.5, 1), (0, up), xycoords="axes fraction", textcoords="offset points", ha="center", va="bottom",
        fontsize=size, color=INK, **more, **TEXT,
    )  # fmt: skip


@contextlib.contextmanager
def missing_glyphs_allowed() -> Iterator[None]:
    """A letter that the font lacks is drawn as a box; one notice for every letter would say no more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "< 0.1 %"


def cut(text: str, limit: int) -> str:
    return one_line(text, max(4, limit))
