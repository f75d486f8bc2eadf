"""What of a picture crosses the link: nothing, a thumbnail, a thumbnail with the kept regions sharp, or the original.

Both sides see `seen(sent)`: a picture of the size that was given, whatever was sent, so that tokens and positions never
move. What crosses is one file, so its length is the exact cost.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from msao_compile.errors import PictureError
from msao_compile.runtime.mas.layout import Box
from msao_compile.runtime.preprocess.decode import MAX_PIXELS, decode

if TYPE_CHECKING:
    from PIL.Image import Image

Rung = Literal["drop", "thumbnail", "regions", "full"]
RUNGS: tuple[Rung, ...] = ("drop", "thumbnail", "regions", "full")
"""From the fewest bytes to the original."""
BLOCK = 8
"""Pixels of a JPEG block: regions end between blocks, so that none holds both sharp and smooth pixels."""
MID_GREY = 128
"""What normalisation makes zero, which some processors and encoders take for padding; black is it for others."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Form:
    """How pictures are reduced: a thumbnail has 1 / `shrink` of each side, `quality` is JPEG's, and `fill` is the
    colour of a picture that was dropped.
    """

    shrink: int
    quality: int
    fill: Color


@dataclass(frozen=True)
class Sent:
    """A picture as it crosses: the rung that was taken, one file, and the size [pixels] to see it in."""

    rung: Rung
    data: bytes
    width: int
    height: int

    @property
    def size_bytes(self) -> int:
        """What crosses."""
        return len(self.data)


def pack(picture: Image, original: bytes, boxes: Sequence[Box], rung: Rung, form: Form) -> Sent:
    """A picture on a rung of the ladder; the original where that is no larger, since it is better.

    Args:
        picture: `decode(original)`, upright and in RGB.
        original: the file that was given.
        boxes: what is kept, in shares of the picture; read for `regions` alone.
        rung: how much of it is to cross.
        form: how it is reduced.
    """
    if rung == "drop":
        return Sent("drop", b"", *picture.size)
    if rung != "full":
        small = _thumbnail(picture, form.shrink)
        reduced = small if rung == "thumbnail" else _composed(picture, grown(small, picture.size), boxes)
        data = _file(reduced, form.quality)
        if len(data) < len(original):
            return Sent(rung, data, *picture.size)
    return Sent("full", original, *picture.size)


def seen(sent: Sent, form: Form) -> Image:
    """The picture that a model sees: upright, RGB, of the size that was given.

    Raises:
        PictureError: the file cannot be decoded, or the size is none that a picture may have or that it has.
    """
    from PIL import Image as pil

    size = (sent.width, sent.height)
    if min(size) < 1 or sent.width * sent.height > MAX_PIXELS:
        raise PictureError(
            f"a picture of {sent.width} x {sent.height} pixels is not taken; send one of 1 to {MAX_PIXELS}"
        )
    if sent.rung == "drop":
        return pil.new("RGB", size, form.fill)
    picture = decode(sent.data)
    if sent.rung == "thumbnail":
        return grown(picture, size)
    if picture.size != size:
        raise PictureError(
            f"a picture that came as {sent.rung} is {picture.width} x {picture.height} where {sent.width} x "
            f"{sent.height} was told; send it again"
        )
    return picture


def rung_of(action: Literal["drop", "reduce", "full"]) -> Rung:
    """The rung that a reading asks for."""
    return "regions" if action == "reduce" else action


def safe_fill(mean: Sequence[float]) -> Color:
    """The mean colour of a sample set [red, green, blue] as a fill that cannot be taken for padding: neither black nor
    near mid-grey.
    """
    levels = [min(max(round(value), 1), 255) for value in mean]
    near = all(abs(level - MID_GREY) <= BLOCK for level in levels)
    red, green, blue = (level - 2 * BLOCK for level in levels) if near else levels
    return red, green, blue


def _thumbnail(picture: Image, shrink: int) -> Image:
    from PIL.Image import Resampling

    size = (max(1, round(picture.width / shrink)), max(1, round(picture.height / shrink)))
    return picture.resize(size, Resampling.BOX)


def grown(small: Image, size: tuple[int, int]) -> Image:
    """A thumbnail in the size [pixels] in which it is to be seen."""
    from PIL.Image import Resampling

    return small.resize(size, Resampling.BICUBIC)


def _composed(picture: Image, ground: Image, boxes: Sequence[Box]) -> Image:
    """The ground with the boxes of the picture laid on it, out to whole blocks."""
    for left, top, right, bottom in boxes:
        start = (_down(left * picture.width), _down(top * picture.height))
        area = (*start, _up(right * picture.width), _up(bottom * picture.height))
        ground.paste(picture.crop(area), start)  # what lies beyond the edge is cut off
    return ground


def _down(pixels: float) -> int:
    return math.floor(round(pixels, 6) / BLOCK) * BLOCK


def _up(pixels: float) -> int:
    return math.ceil(round(pixels, 6) / BLOCK) * BLOCK


def _file(picture: Image, quality: int) -> bytes:
    """JPEG or PNG, whichever is smaller; JPEG with all of its colours, since a colour may be what was asked for."""
    found = []
    jpeg = {"quality": quality, "subsampling": 0, "optimize": True}
    for kind, options in (("JPEG", jpeg), ("PNG", {"optimize": True})):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return min(found, key=len)
