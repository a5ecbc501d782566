"""Decoding: what must be shown is shown right, what must be refused is refused in one line that says what to do."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from r2viz.errors import BadImage
from r2viz.image import SUFFIXES, Picture, decode

HEIGHT, WIDTH = 30, 40


@pytest.fixture(autouse=True)
def no_warnings_leak() -> Any:
    """Pillow warns of large pictures, odd palettes and unclosed files; none of it may reach a user of `decode`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def rgb() -> np.ndarray:
    """A smooth picture whose every corner differs, uint8 (30, 40, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 6, y * 8, 255 - (x + y) * 3], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: what Pillow would not write, or not for so little."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def refusal(source: Any, code: str, match: str, **options: Any) -> str:
    """The one-line message with which `source` is refused."""
    with pytest.raises(BadImage, match=match) as caught:
        decode(source, **options)
    assert caught.value.code == f"bad_image.{code}"
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What every source gives


def test_a_path_bytes_and_a_stream_give_the_same_picture(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a cat.png"
    path.write_bytes(encoded(rgb))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with open(path, "rb") as stream:
        pictures = [decode(path), decode(str(path)), decode(path.read_bytes(), name="a cat.png"), decode(stream)]
    for picture in pictures:
        assert (picture.rgb == rgb).all()
        assert (picture.name, picture.sha256, picture.format, picture.notes) == ("a cat.png", digest, "PNG", ())
    assert [picture.path for picture in pictures] == [str(path), str(path), None, None]


def test_standard_input_is_named_so(rgb: np.ndarray) -> None:
    code = "import sys; from r2viz.image import decode; print(decode(sys.stdin.buffer).name)"
    done = subprocess.run([sys.executable, "-c", code], input=encoded(rgb), capture_output=True, check=True)
    assert done.stdout.decode().strip() == "<stdin>"


def test_pictures_are_read_only_and_the_callers_array_is_copied(rgb: np.ndarray) -> None:
    for source in (rgb, encoded(rgb), encoded(rgb, "JPEG"), Image.fromarray(rgb)):
        picture = decode(source)
        assert not picture.rgb.flags.writeable
        assert picture.rgb.flags.c_contiguous
        assert picture.rgb.dtype == np.uint8
    picture = decode(rgb)
    rgb[:] = 0
    assert picture.rgb.max() > 0


def test_arrays(rgb: np.ndarray) -> None:
    assert (decode(rgb).name, decode(rgb).format, decode(rgb).notes) == ("<array>", "array", ())
    assert (decode(rgb[..., 0]).rgb == rgb[..., :1]).all()
    assert (decode(rgb[..., :1]).rgb == rgb[..., :1]).all()
    assert (decode(rgb[:, ::-1]).rgb == rgb[:, ::-1]).all()
    assert (decode(rgb / 255).rgb == rgb).all()
    assert (decode((rgb / 255).astype(np.float32)).rgb == rgb).all()
    assert (decode(rgb.astype(np.uint16) * 257).rgb == rgb).all()
    assert decode(rgb > 100).rgb.max() == 255
    clear = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert (decode(clear).rgb == 255).all()
    assert decode(clear).notes == ("transparency laid on white",)
    assert decode(rgb).sha256 == decode(rgb.copy()).sha256 == decode(Image.fromarray(rgb)).sha256
    assert decode(rgb).sha256 != decode(rgb.reshape(HEIGHT // 2, -1, 3)).sha256


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"not \(3, 8, 8\); move the channels last"),
        (np.zeros((8,), np.uint8), r"must be \(H, W\), .* not \(8,\)"),
        (np.full((8, 8, 3), -2.1), "floats within 0..1, not float64 of -2.1 to -2.1"),
        (np.full((8, 8, 3), np.nan), "not float64 of nan to nan"),
        (np.full((8, 8, 3), 300, np.int64), "not int64 of 300 to 300; convert it first"),
        (np.full((8, 8, 3), "a"), "not <U1"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, match: str) -> None:
    refusal(array, "array", match)


def test_pillow_images_are_taken_as_they_are(rgb: np.ndarray) -> None:
    image = Image.open(io.BytesIO(encoded(rgb, exif=exif(6))))
    picture = decode(image)
    assert (picture.rgb == np.rot90(rgb, -1)).all()
    assert picture.format == "PNG"
    assert image.size == (WIDTH, HEIGHT)
    assert decode(Image.fromarray(rgb)).name == "<image>"


# Orientation


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_exif_upright(rgb: np.ndarray, kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    data = encoded(rgb, kind, exif=exif(orientation), **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(rgb, exif=exif(orientation))))))
    shown = decode(data).rgb
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < (4 if kind in ("JPEG", "AVIF") else 1e-9)


def test_orientations_outside_the_standard_are_ignored(rgb: np.ndarray) -> None:
    for orientation in (0, 9, 255):
        assert (decode(encoded(rgb, exif=exif(orientation))).rgb == rgb).all()


def test_a_broken_exif_block_does_not_cost_the_picture(rgb: np.ndarray) -> None:
    assert (decode(encoded(rgb, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).rgb == rgb).all()


# Modes


def test_sixteen_bits_are_scaled_not_clipped(rgb: np.ndarray) -> None:
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 54
    for kind in ("PNG", "TIFF", "PPM"):
        picture = decode(encoded(grey, kind))
        assert picture.notes == ("16-bit scaled to 8",)
        assert np.abs(picture.rgb - grey[..., None] / 257).max() <= 0.5
        assert (picture.rgb[..., 0] == picture.rgb[..., 2]).all()


def test_sixteen_bit_colour(rgb: np.ndarray) -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in rgb)
    picture = decode(png(WIDTH, HEIGHT, 16, 2, rows))
    assert (picture.rgb == rgb).all()
    assert picture.notes == ("16-bit scaled to 8",)


def test_deep_tiffs_are_scaled_and_the_notes_say_how(rgb: np.ndarray) -> None:
    unit = (rgb[..., 0] / 255).astype(np.float32)
    picture = decode(encoded(unit, "TIFF"))
    assert (picture.rgb == rgb[..., :1]).all()
    assert picture.notes == ("floating point scaled to 8 bit",)
    picture = decode(encoded(unit * 4000 - 2000, "TIFF"))
    assert np.abs(picture.rgb.astype(int) - np.rint((unit - unit.min()) / np.ptp(unit) * 255)[..., None]).max() <= 1
    assert picture.notes[0].startswith("range -2000 to ")
    constant = decode(encoded(np.full((4, 4), -7, np.int32), "TIFF"))
    assert (constant.rgb == 0).all()
    unit[3, 3] = np.nan
    refusal(encoded(unit, "TIFF"), "values", "values that are not finite")


def test_transparency_is_laid_on_white(rgb: np.ndarray) -> None:
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    rgba = np.dstack([rgb, alpha])
    expected = rgb * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    for kind, options in [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})]:
        picture = decode(encoded(rgba, kind, **options))
        assert np.abs(picture.rgb - expected).max() <= 1
        assert picture.notes == ("transparency laid on white",)
    grey_alpha = decode(encoded(Image.fromarray(rgba).convert("LA")))
    assert (grey_alpha.rgb[:10] == 255).all()
    assert (grey_alpha.rgb[20:] < 255).any()


def test_opaque_alpha_is_no_news(rgb: np.ndarray) -> None:
    picture = decode(encoded(np.dstack([rgb, np.full((HEIGHT, WIDTH), 255, np.uint8)])))
    assert (picture.rgb == rgb).all()
    assert picture.notes == ()


def test_palettes_with_and_without_a_transparent_entry() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (2, 0, 4, 2))
    assert decode(encoded(image)).rgb[0, [0, 3]].tolist() == [[10, 20, 30], [200, 100, 50]]
    for kind in ("PNG", "GIF"):
        assert decode(encoded(image, kind, transparency=0)).rgb[0, [0, 3]].tolist() == [[255] * 3, [200, 100, 50]]
    assert decode(encoded(image, transparency=b"\x00\xff")).rgb[0, 0].tolist() == [255] * 3


def test_a_colour_key_is_transparent() -> None:
    rgb = np.full((2, 3, 3), 7, np.uint8)
    rgb[0, 0] = 9
    assert decode(encoded(rgb, transparency=(9, 9, 9))).rgb[0, :2].tolist() == [[255] * 3, [7] * 3]
    deep = np.full((2, 3), 30000, np.uint16)
    deep[0, 0] = 5
    picture = decode(encoded(deep, transparency=5))
    assert picture.rgb[0, :2, 0].tolist() == [255, 117]


def test_grey_bilevel_and_cmyk(rgb: np.ndarray) -> None:
    grey = rgb[..., 0]
    assert (decode(encoded(grey)).rgb == grey[..., None]).all()
    bilevel = Image.fromarray(grey > 100)
    assert bilevel.mode == "1"
    assert (decode(encoded(bilevel)).rgb == np.where(grey > 100, 255, 0)[..., None]).all()
    cmyk = decode(encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.rgb.astype(int) - rgb).mean() < 4


def test_lab_colours_become_rgb() -> None:
    shown = decode(encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")).rgb
    assert np.abs(shown.astype(int) - 255).max() <= 1


def test_colour_profiles_are_ignored_and_foreign_ones_noted(rgb: np.ndarray) -> None:
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(encoded(rgb, icc_profile=srgb)).notes == ()
    picture = decode(encoded(rgb, icc_profile=srgb.replace(b"s\0R\0G\0B", b"P\0-\0P\x003").replace(b"sRGB", b"Disp")))
    assert (picture.rgb == rgb).all()
    assert picture.notes == ("colour profile ignored",)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_frames(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    picture = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert picture.notes == ("first of 3 frames",)
    assert np.abs(picture.rgb.astype(int) - (255, 0, 0)).max() < 10


def test_the_content_decides_not_the_suffix(tmp_path: Path, rgb: np.ndarray) -> None:
    for kind, name in [("PNG", "a.jpg"), ("JPEG", "a.png"), ("BMP", "a"), ("GIF", "a.txt")]:
        (tmp_path / name).write_bytes(encoded(rgb, kind))
        assert decode(tmp_path / name).format == kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "HEIF"])
def test_formats_and_their_truncated_files(kind: str, rgb: np.ndarray) -> None:
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif", reason="not run: needs the extra heif")
        file = io.BytesIO()
        heif.from_pillow(Image.fromarray(rgb).resize((160, 120))).save(file, quality=95)
        data = file.getvalue()
        assert "HEIF" not in Image.OPEN, "decode must not register readers with Pillow"
    else:
        data = encoded(Image.fromarray(rgb).resize((160, 120)), kind)
    picture = decode(data)
    assert picture.format == kind
    assert picture.rgb.shape == (120, 160, 3)
    assert np.abs(picture.rgb[::4, ::4].astype(int) - rgb).mean() < 8
    for part in (0.5, 0.9):
        with pytest.raises(
            BadImage, match=rf"x: (incomplete|damaged) {kind} \(.*\); fetch or export it again"
        ) as caught:
            decode(data[: int(len(data) * part)], name="x")
        assert caught.value.code in ("bad_image.truncated", "bad_image.corrupt")


def test_flipped_bytes_are_refused_or_shown_but_never_another_error() -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "PPM"):
        data = np.frombuffer(encoded(image, kind), np.uint8)
        for count in [1, 3, 20] * 20:
            broken = data.copy()
            broken[random.integers(0, random.choice([32, 256, len(data)]).clip(max=len(data)), count)] ^= 0x5A
            with contextlib.suppress(BadImage):
                assert decode(broken.tobytes()).rgb.dtype == np.uint8


# Refusals


def test_empty_text_and_drawings() -> None:
    refusal(b"", "empty", r"^<bytes>: is empty \(0 bytes\); fetch or export it again$")
    refusal(
        b"hello, not an image",
        "format",
        r"cat.jpg: is not a picture .*b'hello, not an im'.*; give a JPEG, PNG",
        name="cat.jpg",
    )
    refusal(b"<svg xmlns='x'/>", "format", "is an SVG drawing; .*; export the drawing as PNG")
    refusal(b"%PDF-1.7 ...", "format", "begins with b'%PDF-1.7")


def test_a_damaged_checksum() -> None:
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    data[len(data) // 2] ^= 0xFF
    refusal(bytes(data), "corrupt", "damaged PNG")


def test_a_bomb_is_refused_before_its_pixels_are_made() -> None:
    message = refusal(png(30000, 30000, 8, 2, b""), "too_large", "has 30000x30000 = 900 megapixels, more than the 50 ")
    assert message.endswith("scale it down")
    # Where Pillow would only warn.
    refusal(png(10000, 10000, 8, 2, b""), "too_large", "= 100 megapixels")
    refusal(png(100, 100, 8, 2, b""), "too_large", "more than the 0.005", max_pixels=5000)
    refusal(np.broadcast_to(np.uint8(0), (10000, 10000, 3)), "too_large", "100 megapixels")


def test_other_bombs() -> None:
    small = encoded(Image.new("RGB", (16, 16)), "TIFF")
    assert decode(small).rgb.shape == (16, 16, 3)
    webp = bytearray(encoded(Image.new("RGBA", (16, 16), (1, 2, 3, 4)), "WEBP", exif=exif(1)))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = b"\xff\x3f\x00\xff\x3f\x00"  # the header says 16384x16384; the canvas would be 1 GB
    with pytest.raises(BadImage):
        decode(bytes(webp))


def test_one_pixel_is_a_picture_and_a_thread_is_not() -> None:
    assert decode(png(1, 1, 8, 2, b"\0\x0a\x0b\x0c")).rgb.tolist() == [[[10, 11, 12]]]
    thin = png(20000, 2, 8, 0, (b"\0" + b"\x07" * 20000) * 2)
    refusal(thin, "aspect", "is 20000x2 pixels, one side more than 100 times the other; crop it")
    assert decode(thin, max_aspect=1e4).rgb.shape == (2, 20000, 3)


def test_missing_files_name_the_nearest(tmp_path: Path, rgb: np.ndarray) -> None:
    (tmp_path / "tabby.png").write_bytes(encoded(rgb))
    refusal(tmp_path / "taby.png", "missing", r"taby.png: no such file; did you mean 'tabby.png'\?")
    refusal(tmp_path / "no" / "such.png", "missing", "such.png: no such file; check the path")
    refusal(tmp_path / "tabby.png" / "x.png", "missing", "x.png: no such file")
    refusal("https://example.org/cat.jpg", "missing", "is an address, not a file; download the picture first")


def test_folders_and_unreadable_paths(tmp_path: Path, rgb: np.ndarray) -> None:
    refusal(tmp_path, "directory", "is a folder, not a picture; give a file in it")
    refusal("a\0b.png", "unreadable", r"^a\\x00b.png: cannot be read .*null")
    refusal("x" * 5000, "unreadable", "cannot be read .*too long")
    locked = tmp_path / "locked.png"
    locked.write_bytes(encoded(rgb))
    locked.chmod(0)
    if os.geteuid() != 0:
        refusal(locked, "unreadable", "Permission denied")


def test_streams_that_give_no_bytes(tmp_path: Path) -> None:
    refusal(io.StringIO("text"), "unreadable", "is open as text; open it in binary mode")
    closed = io.BytesIO(b"x")
    closed.close()
    refusal(closed, "unreadable", "<stream>: cannot be read .*closed")
    refusal(3, "unreadable", "a picture must be a path, bytes, .* not int")


def test_hostile_names_are_made_safe(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[31m.png"
    path.write_bytes(b"nothing")
    message = refusal(path, "format", "is not a picture")
    assert "\x1b" not in message
    assert "a\\nb\\x1b[31m.png: " in message
    named = decode(np.zeros((2, 2), np.uint8), name="x\r\n\x1b]0;y\x07")
    assert named.name.isprintable()
    assert len(refusal("d/" * 1000 + "cat.png", "missing", "d/cat.png: no such file")) < 300


def test_without_the_heif_extra_the_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    refusal(heic, "heif", r"^a.heic: HEIC needs .*: pip install 'r2viz\[heif\]', or export as JPEG$", name="a.heic")


def test_threads_and_pillows_settings(rgb: np.ndarray) -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    filters = list(warnings.filters)
    good, large, broken = encoded(rgb), png(10000, 10000, 8, 2, b""), encoded(rgb, "JPEG")[:400]
    wrong: list[object] = []

    def work() -> None:
        for _ in range(20):
            try:
                assert (decode(good).rgb == rgb).all()
                for data, code in [(large, "too_large"), (broken, "truncated")]:
                    with pytest.raises(BadImage) as caught:
                        decode(data)
                    assert caught.value.code == f"bad_image.{code}"
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert list(warnings.filters) == filters


def test_decoding_imports_neither_torch_nor_matplotlib(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(rgb))
    code = (
        "import sys; from r2viz.image import decode, Preprocess; decode(sys.argv[1]); Preprocess();"
        "assert not {'torch', 'matplotlib', 'pillow_heif'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


# The collected files

REFUSED = {
    "trunc.jpg": ("truncated", "incomplete JPEG"),
    "trunc_tail.jpg": ("truncated", "incomplete JPEG"),
    "trunc.png": ("truncated", "incomplete PNG"),
    "badcrc.png": ("corrupt", "damaged PNG"),
    "zero.jpg": ("empty", "is empty"),
    "text.jpg": ("format", "is not a picture that r2viz reads"),
    "svg.jpg": ("format", "is an SVG drawing"),
    "bomb900MP.png": ("too_large", "900 megapixels"),
    "big100MP.png": ("too_large", "100 megapixels"),
    "thin.png": ("aspect", "20000x2"),
}


@pytest.mark.shared
def test_every_odd_picture_ends_as_it_should(shared: Path) -> None:
    folder = shared / "data" / "odd-pictures"
    shown: dict[str, Picture] = {}
    for path in sorted(folder.iterdir()):
        if path.name in REFUSED:
            code, match = REFUSED[path.name]
            refusal(path, code, f"{path.name}: .*{match}")
        elif path.suffix == ".heic" and importlib.util.find_spec("pillow_heif") is None:
            refusal(path, "heif", "pip install")
        else:
            shown[path.name] = decode(path)
    assert len(shown) + len(REFUSED) >= 39

    reference = shown["ok.bmp"].rgb.astype(int)

    def distance(name: str, expected: np.ndarray) -> float:
        assert shown[name].rgb.shape == expected.shape, name
        return float(np.abs(shown[name].rgb - expected).mean())

    for name in ("ok.tif", "ok.jp2", "anim.png"):
        assert distance(name, reference) == 0, name
    for name in ("rgb16.png", "exif6.png"):
        assert distance(name, np.rot90(reference, -1) if "exif6" in name else reference) <= 1, name
    for name in ("ok.jpg", "ok.webp", "ok.avif", "ok.heic", "prog.jpg", "icc.jpg", "cmyk.jpg", "anim.webp"):
        if name in shown:
            assert distance(name, reference) < 9, name
    for name in ("ok.gif", "anim.gif", "pal.png"):  # 256 colours
        assert distance(name, reference) < 12, name
    for name in ("exif6.jpg", "exif6.webp"):
        assert distance(name, np.rot90(reference, -1)) < 9, name
    for name in ("anim.gif", "anim.png", "anim.webp"):
        assert shown[name].notes == ("first of 4 frames",)
    for name in ("gray16.png", "gray16.tif"):
        assert shown[name].notes == ("16-bit scaled to 8",)
        assert shown[name].rgb.mean() == pytest.approx(127.5, abs=0.5)
        assert {shown[name].rgb.min(), shown[name].rgb.max()} == {0, 255}
    for name in ("alpha.png", "alpha.webp", "png_named.jpg"):
        assert shown[name].notes == ("transparency laid on white",)
        # A quarter of the picture is opaque; the rest must be white, not the hidden pixels.
        assert (shown[name].rgb == 255).all(axis=2).mean() == pytest.approx(0.75, abs=0.01)
    assert shown["png_named.jpg"].format == "PNG"
    for name in ("gray.jpg", "la.png", "bilevel.png"):
        assert (shown[name].rgb[..., 0] == shown[name].rgb[..., 1]).all()
    assert set(np.unique(shown["bilevel.png"].rgb)) == {0, 255}
    assert shown["one.png"].rgb.shape == (1, 1, 3)
    assert shown["corrupt_mid.jpg"].rgb.shape == (240, 320, 3)


# The example pictures


def test_the_examples_decode_and_are_listed_with_their_licence() -> None:
    folder = Path(__file__).parent.parent / "examples"
    pictures = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    assert len(pictures) >= 8
    listed = (folder / "README.md").read_text()
    for path in pictures:
        row = next(line for line in listed.splitlines() if line.startswith(f"| `{path.name}` |"))
        assert "CC0" in row or "public domain" in row
        assert path.stat().st_size <= 200_000
        assert decode(path).notes == ()
