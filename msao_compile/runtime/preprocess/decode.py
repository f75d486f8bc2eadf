"""A picture from a file, bytes or memory, upright and in RGB, refused with a reason where that cannot be."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from msao_compile.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a gibibyte as RGB (PIL.Image.MAX_IMAGE_PIXELS)."""

MAX_SIDE = 2**16
"""JPEG has no longer ones. A thinner picture takes Pillow ten times as long to resize as a square of as many pixels."""

MAX_BYTES = 2**28
"""No picture of so many pixels needs more, compressed or not."""

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Formats decoded inside this process; the others of Pillow start programs (EPS) or have no use here."""

_DECODER_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders are known to raise on damaged data."""


def decode(source: str | os.PathLike[str] | bytes | Image, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode a picture as `transformers.image_utils.load_image` does: EXIF orientation applied, then RGB.

    Args:
        source: a path, the file's bytes, or a picture that is already open.
        max_pixels: width x height above which the picture is refused, read from its header before decoding; so is one
            with a side above `MAX_SIDE`.

    Raises:
        PictureError: the source is missing, a directory, unreadable, empty, not an image, too large, or damaged.
    """
    from PIL import Image as pil

    if isinstance(source, pil.Image):
        return _upright_rgb(source, "the given picture", max_pixels)
    if not isinstance(source, bytes | str | os.PathLike):
        kind = type(source).__name__
        raise PictureError(f"a picture is given as {kind}; give a path, the bytes of an image file, or a PIL picture.")
    if isinstance(source, bytes):
        return _decode_bytes(source, f"{len(source)} bytes", max_pixels)
    return _decode_bytes(read(source), os.fspath(source), max_pixels)


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a picture file, not looked at.

    Raises:
        PictureError: there is no such file, it is none (a directory, pipe or device), too large, or cannot be read.
    """
    if not os.fspath(path):
        raise PictureError("the path of the picture is empty; give the path of an image file.")
    try:
        file = Path(path)
        if not (file.is_file() or file.is_dir()) and file.exists():  # a pipe would wait, a device may never end
            raise PictureError(f"{path} is a pipe or a device; give the path of an image file.")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise PictureError(f"{path} does not exist; give the path of an image file.") from error
    except IsADirectoryError as error:
        raise PictureError(f"{path} is a directory; give the path of one image file in it.") from error
    except (OSError, ValueError) as error:
        raise PictureError(f"{path!s} cannot be read ({error}); check the path and its permissions.") from error
    if len(content) > MAX_BYTES:
        raise PictureError(f"{path} has more than {MAX_BYTES} bytes; make the picture smaller.")
    return content


def count_pixels(content: bytes, where: str) -> int:
    """Width x height of a picture, from its header alone; `where` is how errors call it.

    Raises:
        PictureError: as `decode`, but for damage behind the header.
    """
    with _open(content, where) as picture:
        return picture.width * picture.height


def _decode_bytes(content: bytes, where: str, max_pixels: int) -> Image:
    with _open(content, where) as picture:
        return _upright_rgb(picture, where, max_pixels)


def _open(content: bytes, where: str) -> Image:
    from PIL import Image as pil
    from PIL import UnidentifiedImageError

    if not content:
        raise PictureError(f"{where} has no bytes; copy or download the image again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pil.DecompressionBombWarning)  # refused below, in our own words
            picture = pil.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise _unknown(where) from error
    except pil.DecompressionBombError as error:
        raise PictureError(f"{where} is refused ({error}); make the picture smaller.") from error
    except _DECODER_FAULTS as error:
        raise _damaged(where, error) from error
    if picture.format not in FORMATS:
        raise _unknown(where)
    return picture


def _upright_rgb(picture: Image, where: str, max_pixels: int) -> Image:
    from PIL import ImageOps

    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise PictureError(
            f"{where} is {picture.width} x {picture.height} = {pixels} pixels, above the limit of {max_pixels};"
            " make the picture smaller."
        )
    if max(picture.size) > MAX_SIDE:
        raise PictureError(
            f"{where} is {picture.width} x {picture.height} pixels, where a side has {MAX_SIDE} at most; crop it."
        )
    if pixels == 0:
        raise PictureError(f"{where} is {picture.width} x {picture.height} pixels; give a picture that has some.")
    try:
        return ImageOps.exif_transpose(picture).convert("RGB")
    except _DECODER_FAULTS as error:
        raise _damaged(where, error) from error


def _unknown(where: str) -> PictureError:
    readable = ", ".join(FORMATS)
    return PictureError(f"{where} is not an image that can be read; convert it to PNG or JPEG ({readable} are read).")


def _damaged(where: str, error: BaseException) -> PictureError:
    return PictureError(f"{where} is a truncated or damaged image ({error}); copy or download it again.")
