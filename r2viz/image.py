"""Decode pictures: any file a user brings becomes upright RGB `uint8 (H, W, 3)`, or one clear refusal.

Pillow decodes, because it is the only one of the common decoders that neither crashes on broken files nor silently
accepts them. Its readers are called directly rather than through `Image.open`: the content alone then decides which
reader runs, our size cap replaces Pillow's (a process-wide setting, with a warning), and nothing of Pillow's state
is touched, so that threads may decode at once.

Colour profiles are ignored: the networks were trained on pictures read without them, as the usual loaders do.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from r2viz.errors import BadImage, nearest, one_line
from r2viz.geometry import Geometry, Preprocess

__all__ = ["SUFFIXES", "Geometry", "Picture", "Preprocess", "decode"]

SUFFIXES: frozenset[str] = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"})
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
    | {".heic", ".heif", ".hif"}
)
"""Lower-case file endings that a folder scan takes; what such a file really is, its content decides."""

MAX_FILE_BYTES = 1 << 29
"""More than 50 megapixels of uncompressed 16-bit RGBA; a larger file is no picture that the pixel cap lets through."""

_READERS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),  # also MPO, whose further frames are previews and gain maps
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "PPM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
}
_READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF, JPEG 2000, AVIF, PPM or HEIC"


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture.

    Attributes:
        rgb: uint8 `(H, W, 3)`, EXIF-upright, read-only (it is what `sha256` and every record speak of).
        name: for display: the file's base name, `<stdin>`, `<bytes>` or `<array>`; control characters escaped.
        sha256: of the encoded bytes; for arrays and Pillow images, of the shape and the pixels of `rgb`.
        format: as the content says: "JPEG", "PNG", …, or "array".
        notes: remarks on what was done to show it, such as "first of 3 frames" or "transparency laid on white".
        path: as given, if a path was given.
    """

    rgb: np.ndarray = field(repr=False)
    name: str
    sha256: str
    format: str
    notes: tuple[str, ...] = ()
    path: str | None = None


class _Limits(NamedTuple):
    pixels: int
    aspect: float


def decode(
    source: str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | Image.Image,
    *,
    name: str | None = None,
    max_pixels: int = 50_000_000,
    max_aspect: float = 100.0,
) -> Picture:
    """Decode one picture to upright RGB.

    Args:
        source: a path, encoded bytes, an open binary file, an RGB(A) or grey array (bool, uint8, uint16, or floats in
            0..1; channels last), or a Pillow image.
        name: what to call it, for sources without a name.
        max_pixels: larger pictures are refused before their pixels are decoded.
        max_aspect: the longest side over the shortest; beyond it a centre crop would show the network nothing useful.

    Raises:
        BadImage: with code `bad_image.` + missing, directory, unreadable, empty, format, heif, truncated, corrupt,
            values, array, too_large or aspect.
    """
    limits = _Limits(max_pixels, max_aspect)
    if isinstance(source, np.ndarray):
        label = _shown(name or "<array>")
        _check_size(source.shape[1::-1] if source.ndim in (2, 3) else (1, 1), label, limits)
        rgb, notes = _from_array(source, label)
        return Picture(rgb, label, _pixel_digest(rgb), "array", notes)
    if isinstance(source, Image.Image):
        label = _shown(name or os.path.basename(str(getattr(source, "filename", ""))) or "<image>")
        rgb, notes = _pixels(source, label, limits)
        return Picture(rgb, label, _pixel_digest(rgb), source.format or "array", notes)

    encoded, label, path = _read(source, name)
    kind = _format_of(encoded, label)
    with _refusing(kind, label):
        image = _reader(kind)(io.BytesIO(encoded))
    rgb, notes = _pixels(image, label, limits)
    shown = _shown(name or (os.path.basename(path) if path else label))
    return Picture(rgb, shown, hashlib.sha256(encoded).hexdigest(), kind, notes, path)


def _shown(text: str, limit: int = 160) -> str:
    """`text` fit for a message; of a long path the end is kept, where the file's name is."""
    safe = one_line(text, limit=len(text) * 10 + 1)
    return safe if len(safe) <= limit else "…" + safe[1 - limit :]


def _read(source: Any, name: str | None) -> tuple[bytes, str, str | None]:
    """(encoded bytes, label for messages, path if any) of a path, bytes or an open binary file."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        encoded, label, path = bytes(source), _shown(name or "<bytes>"), None
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        label = _shown(path)
        encoded = _read_path(path, label)
    elif hasattr(source, "read"):
        own = getattr(source, "name", None)
        label, path = _shown(name or (os.path.basename(own) if isinstance(own, str) and own else "<stream>")), None
        try:
            encoded = source.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise BadImage(f"{label}: cannot be read ({one_line(str(error))})", code="bad_image.unreadable") from None
        if not isinstance(encoded, bytes):
            raise BadImage(
                f"{label}: is open as text; open it in binary mode ('rb')", code="bad_image.unreadable"
            ) from None
    else:
        raise BadImage(
            "a picture must be a path, bytes, a binary file, a NumPy array or a Pillow image, "
            f"not {type(source).__name__}",
            code="bad_image.unreadable",
        )
    if not encoded:
        raise BadImage(f"{label}: is empty (0 bytes); fetch or export it again", code="bad_image.empty")
    if len(encoded) > MAX_FILE_BYTES:
        raise BadImage(
            f"{label}: is larger than {MAX_FILE_BYTES >> 20} MB; export it as a JPEG or PNG", code="bad_image.too_large"
        )
    return encoded, label, path


def _read_path(path: str, label: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        if path.startswith(("http://", "https://")):
            message = f"{label}: is an address, not a file; download the picture first"
        else:
            message = f"{label}: no such file{_similar(path) or '; check the path'}"
        code = "missing"
    except IsADirectoryError:
        message, code = f"{label}: is a folder, not a picture; give a file in it", "directory"
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or str(error)
        message, code = (
            f"{label}: cannot be read ({one_line(reason)}); check the path and its permissions",
            "unreadable",
        )
    raise BadImage(message, code=f"bad_image.{code}")


def _similar(path: str) -> str:
    """`"; did you mean 'x'?"` for a file beside the missing one, or `""`."""
    with contextlib.suppress(OSError, ValueError), os.scandir(os.path.dirname(path) or ".") as entries:
        # The first thousand only: a folder of a data set may hold a million.
        known = [_shown(entry.name) for entry in itertools.islice(entries, 1000)]
        return nearest(_shown(os.path.basename(path)), known)
    return ""


def _format_of(encoded: bytes, label: str) -> str:
    """The key of `_READERS` that the content's first bytes name."""
    head = encoded[:256]
    kind = None
    if head.startswith(b"\xff\xd8\xff"):
        kind = "JPEG"
    elif head.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "PNG"
    elif head.startswith((b"GIF87a", b"GIF89a")):
        kind = "GIF"
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        kind = "WEBP"
    elif head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        kind = "TIFF"
    elif head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        kind = "JPEG2000"
    elif head[4:8] == b"ftyp":
        # AVIF and HEIC share a container and its generic brand mif1; the list of compatible brands tells them apart.
        brands = head[8 : max(int.from_bytes(head[:4], "big"), 12)]
        if b"avif" in brands or b"avis" in brands:
            kind = "AVIF"
        elif any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")):
            kind = "HEIF"
    elif head.startswith(b"BM"):
        kind = "BMP"
    elif head[:1] == b"P" and head[1:2] in b"123456fF" and (head[2:3].isspace() or head[2:3] == b"#"):
        kind = "PPM"
    if kind is not None:
        return kind
    svg = b"<svg" in head.lower()
    came = "an SVG drawing" if svg else f"not a picture that r2viz reads (it begins with {head[:16]!r})"
    raise BadImage(
        f"{label}: is {came}; give a {_READABLE} file" + ("; export the drawing as PNG" if svg else ""),
        code="bad_image.format",
    )


def _reader(kind: str) -> Any:
    module, cls = _READERS[kind]
    try:
        return getattr(importlib.import_module(module), cls)
    except ImportError:
        if kind == "HEIF":
            raise BadImage(
                "HEIC needs the extra `heif`; install it with: pip install 'r2viz[heif]', or export as JPEG",
                code="bad_image.heif",
            ) from None
        raise BadImage(
            f"this Pillow reads no {kind}; upgrade it with: pip install -U pillow", code="bad_image.format"
        ) from None


@contextlib.contextmanager
def _refusing(kind: str, label: str) -> Iterator[None]:
    """Turn whatever a reader raises on hostile bytes into one BadImage that names the file."""
    try:
        yield
    except BadImage as error:
        raise error if str(error).startswith(label) else BadImage(f"{label}: {error}", code=error.code) from None
    except Image.DecompressionBombError:
        raise BadImage(
            f"{label}: declares more pixels than r2viz decodes; scale it down", code="bad_image.too_large"
        ) from None
    except MemoryError:
        raise BadImage(f"{label}: does not fit into memory; scale it down", code="bad_image.too_large") from None
    except Exception as error:  # readers raise nearly anything: OSError, SyntaxError, struct.error, IndexError, …
        reason = one_line(" ".join(str(error).split()), limit=120) or type(error).__name__
        cut_off = isinstance(error, EOFError) or any(word in reason.lower() for word in ("truncated", "eof", "short"))
        what, code = ("incomplete", "truncated") if cut_off else ("damaged", "corrupt")
        raise BadImage(
            f"{label}: {what} {kind} ({reason}); fetch or export it again", code=f"bad_image.{code}"
        ) from None


def _check_size(size: tuple[int, ...], label: str, limits: _Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"{label}: has no pixels ({width}x{height})", code="bad_image.empty")
    if width * height > limits.pixels:
        raise BadImage(
            f"{label}: has {width}x{height} = {width * height / 1e6:.0f} megapixels, more than the "
            f"{limits.pixels / 1e6:g} that r2viz decodes; scale it down",
            code="bad_image.too_large",
        )
    if max(size) > limits.aspect * min(size):
        raise BadImage(
            f"{label}: is {width}x{height} pixels, one side more than {limits.aspect:g} times the other; "
            "crop it to the part that matters",
            code="bad_image.aspect",
        )


def _pixels(image: Image.Image, label: str, limits: _Limits) -> tuple[np.ndarray, tuple[str, ...]]:
    """Load a Pillow image's first (current) frame as upright RGB, and say what that took."""
    kind = image.format or "picture"
    _check_size(image.size, label, limits)
    tile_size = [
        getattr(image, "tag_v2", {}).get(tag, 1) for tag in (322, 323)
    ]  # TIFF's own buffer, another way to ask
    if all(isinstance(side, int) for side in tile_size) and tile_size[0] * tile_size[1] > 4 * limits.pixels // 3:
        raise BadImage(f"{label}: declares tiles of {tile_size[0]}x{tile_size[1]} pixels", code="bad_image.too_large")
    notes: list[str] = []
    sixteen_bits = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    with _refusing(kind, label):
        image.load()
        _check_size(image.size, label, limits)  # some readers learn the true size only now
        rgb = _to_rgb(image, label, notes)
    if sixteen_bits and not notes:
        notes.append("16-bit scaled to 8")
    orientation = 1
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block is no reason to refuse good pixels
        notes.append("unreadable EXIF ignored")
    rgb = np.ascontiguousarray(_upright(rgb, orientation))
    if _foreign_profile(image.info.get("icc_profile")):
        notes.append("colour profile ignored")
    frames = _frames(image)
    if frames != "1":
        notes.append(f"first of {frames} frames")
    rgb.setflags(write=False)
    return rgb, tuple(notes)


def _to_rgb(image: Image.Image, label: str, notes: list[str]) -> np.ndarray:
    """A loaded image's pixels as uint8 `(H, W, 3)`: deep modes scaled, transparency laid on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = _to_eight_bits(values, label, notes)
        key = image.info.get("transparency")
        if isinstance(key, int) and (values == key).any():
            grey = np.where(values == key, np.uint8(255), grey)
            notes.append("transparency laid on white")
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        lowest = rgba.getchannel("A").getextrema()[0]
        if isinstance(lowest, (int, float)) and lowest < 255:
            notes.append("transparency laid on white")
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(rgba)
            rgba = white
        return np.array(rgba.convert("RGB"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_eight_bits(values: np.ndarray, label: str, notes: list[str]) -> np.ndarray:
    """Grey `(H, W)` of 16 or 32 bits or floats → uint8; scaled, never clipped, and `notes` says how."""
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise BadImage(f"{label}: holds values that are not finite; export it as 8- or 16-bit", code="bad_image.values")
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        notes.append("floating point scaled to 8 bit")
        return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    if values.dtype.kind != "f" and low >= 0 and high <= 65535:
        notes.append("16-bit scaled to 8")
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    notes.append(f"range {low:g} to {high:g} stretched to 8 bit")
    wide = values.astype(np.float64)
    return np.rint((wide - wide.min()) * (255 / max(float(np.ptp(wide)), 1e-300))).astype(np.uint8)


def _from_array(array: np.ndarray, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """An array that the caller holds → a copy as uint8 `(H, W, 3)`; never stretched, so that no error hides."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        hint = "; move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise BadImage(
            f"{label}: an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}{hint}",
            code="bad_image.array",
        )
    notes: list[str] = []
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16 or (array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1):
        array = _to_eight_bits(array, label, notes)
    elif array.dtype != np.uint8:
        came = f"{array.dtype} of {array.min():g} to {array.max():g}" if array.dtype.kind in "fiu" else str(array.dtype)
        raise BadImage(
            f"{label}: an array must be bool, uint8, uint16 or floats within 0..1, not {came}; convert it first",
            code="bad_image.array",
        )
    if array.shape[2] == 4:
        rgb = _to_rgb(Image.fromarray(np.ascontiguousarray(array)), label, notes)
    else:
        rgb = np.array(np.broadcast_to(array, (*array.shape[:2], 3)), order="C")
    rgb.setflags(write=False)
    return rgb, tuple(notes)


def _upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """Undo EXIF's orientation tag (2-8; anything else is upright already)."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return np.rot90(pixels, -1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(pixels)
    return pixels


def _frames(image: Image.Image) -> str:
    """How many frames the file holds; "several" when a later frame is broken, which the first does not mind."""
    try:
        return str(
            getattr(image, "n_frames", 1)
        )  # GIF and TIFF walk through the file for this: after the pixels are out
    except Exception:
        return "several"


def _foreign_profile(profile: object) -> bool:
    """Whether an embedded ICC profile is something other than sRGB (named so, in one- or two-byte letters)."""
    return isinstance(profile, bytes) and bool(profile) and b"sRGB" not in profile.replace(b"\0", b"")


def _pixel_digest(rgb: np.ndarray) -> str:
    return hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest()
