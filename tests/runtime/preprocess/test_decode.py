"""Decoding equals transformers' load_image, and everything else is refused in one sentence."""

from __future__ import annotations

import importlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from msao_compile.errors import PictureError
from msao_compile.runtime.preprocess import decode

from .pictures import MODES, noise

KEPT_BY_PNG = {name: MODES[name] for name in ("L", "LA", "RGBA", "P", "P transparent", "1", "I;16", "exif")}


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=picture.getexif())
    return buffer.getvalue()


def header_only_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    checked = chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + checked + struct.pack(">I", 1) + b"IDAT"


@pytest.mark.parametrize("name", KEPT_BY_PNG)
def test_a_file_decodes_as_load_image_does(name: str, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(png(KEPT_BY_PNG[name]))
    reference = load_image(str(tmp_path / "picture.png"))
    for source in (tmp_path / "picture.png", str(tmp_path / "picture.png"), png(KEPT_BY_PNG[name])):
        assert decode(source).mode == "RGB"
        assert np.array_equal(np.asarray(decode(source)), np.asarray(reference))


@pytest.mark.parametrize("name", MODES)
def test_an_open_picture_decodes_as_load_image_does(name: str) -> None:
    assert np.array_equal(np.asarray(decode(MODES[name])), np.asarray(load_image(MODES[name])))


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "CMYK"), ("TIFF", "F"), ("GIF", "P"), ("WEBP", "RGBA")])
def test_other_formats_decode_as_load_image_does(kind: str, name: str, tmp_path: Path) -> None:
    MODES[name].save(tmp_path / "picture", kind)
    reference = load_image(str(tmp_path / "picture"))
    assert np.array_equal(np.asarray(decode(tmp_path / "picture")), np.asarray(reference))


def test_a_rotated_photograph_is_turned_upright() -> None:
    assert decode(png(MODES["exif"])).size == (20, 50)


def test_text_is_refused_as_not_an_image() -> None:
    with pytest.raises(PictureError, match="5 bytes is not an image that can be read; convert it to PNG or JPEG"):
        decode(b"hello")


def test_formats_that_start_programs_are_not_opened() -> None:
    postscript = io.BytesIO()
    noise(4, 4).save(postscript, "EPS")
    with pytest.raises(PictureError, match="is not an image that can be read"):
        decode(postscript.getvalue())


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_truncated_file_is_refused(kind: str, kept: float) -> None:
    buffer = io.BytesIO()
    noise(200, 150).save(buffer, kind)
    content = buffer.getvalue()
    with pytest.raises(PictureError, match="truncated or damaged|not an image"):
        decode(content[: int(len(content) * kept)])


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_never_raise_anything_but_picture_error() -> None:
    chance = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "JPEG2000"):
        buffer = io.BytesIO()
        noise(16, 16).save(buffer, kind)
        for _ in range(30):
            content = bytearray(buffer.getvalue())
            content[chance.integers(0, min(len(content), 64))] = chance.integers(0, 256)
            try:
                decode(bytes(content), max_pixels=100_000)
            except PictureError:
                continue


def test_a_bomb_is_refused_from_its_header_before_decoding() -> None:
    with pytest.raises(PictureError, match="5000 x 4000 = 20000000 pixels, above the limit of 1000000"):
        decode(header_only_png(5000, 4000), max_pixels=1_000_000)


@pytest.mark.parametrize(("width", "height"), [(24_000_000, 1), (1, 24_000_000), (2**16 + 1, 1)])
def test_a_picture_with_an_endless_side_is_refused_from_its_header(width: int, height: int) -> None:
    with pytest.raises(PictureError, match="where a side has 65536 at most; crop it"):
        decode(header_only_png(width, height))


@pytest.mark.filterwarnings("error")
def test_a_large_picture_is_refused_in_one_sentence_without_a_warning() -> None:
    with pytest.raises(PictureError, match="above the limit of 89478485; make the picture smaller.$"):
        decode(header_only_png(10_000, 9_000))


def test_a_bomb_beyond_pillows_own_limit_is_refused() -> None:
    with pytest.raises(PictureError, match="is refused"):
        decode(header_only_png(60_000, 60_000))


def test_an_open_picture_above_the_limit_is_refused() -> None:
    with pytest.raises(PictureError, match="6 x 6 = 36 pixels, above the limit of 35"):
        decode(noise(6, 6), max_pixels=35)


def test_no_bytes_are_refused() -> None:
    with pytest.raises(PictureError, match="has no bytes"):
        decode(b"")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(PictureError, match=r"empty\.png has no bytes"):
        decode(tmp_path / "empty.png")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="is a directory; give the path of one image file in it"):
        decode(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"photo\.png does not exist"):
        decode(tmp_path / "photo.png")


def test_an_unreadable_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(PictureError, match=r"loop\.png cannot be read"):
        decode(tmp_path / "loop.png")


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(PictureError, match="0 x 5 pixels"):
        decode(Image.new("RGB", (0, 5)))


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(PictureError, match=f"{path} is a pipe or a device; give the path of an image file"):
            decode(path)


def test_a_file_larger_than_any_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("msao_compile.runtime.preprocess.decode"), "MAX_BYTES", 8)
    (tmp_path / "large.png").write_bytes(bytes(9))
    with pytest.raises(PictureError, match=r"large\.png has more than 8 bytes; make the picture smaller"):
        decode(tmp_path / "large.png")


def test_an_empty_path_is_named_as_such() -> None:
    with pytest.raises(PictureError, match="the path of the picture is empty"):
        decode("")
