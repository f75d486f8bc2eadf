"""What crosses is as long as it says, and what is seen has the size that was given."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msao_compile.errors import PictureError
from msao_compile.runtime.mas.payload import RUNGS, Form, Rung, Sent, pack, rung_of, safe_fill, seen
from msao_compile.runtime.preprocess import decode

FORM = Form(shrink=4, quality=85, fill=(84, 96, 112))


def noisy(width: int = 96, height: int = 64) -> tuple[Image.Image, bytes]:
    """A picture that no codec makes small, and its file."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Image.fromarray(pixels), buffer.getvalue()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(RUNGS), st.integers(1, 9))
def test_whatever_is_sent_the_picture_that_is_seen_keeps_its_size(
    width: int, height: int, rung: Rung, shrink: int
) -> None:
    picture, original = noisy(width, height)
    sent = pack(picture, original, [(0.1, 0.2, 0.7, 0.9)], rung, Form(shrink, 85, FORM.fill))
    assert seen(sent, FORM).size == (width, height)
    assert sent.size_bytes == len(sent.data) <= len(original)


def test_the_full_rung_is_the_file_itself() -> None:
    picture, original = noisy()
    sent = pack(picture, original, [], "full", FORM)
    assert sent.data == original and np.array_equal(np.asarray(seen(sent, FORM)), np.asarray(picture))


def test_nothing_crosses_for_a_dropped_picture_and_a_flat_one_is_seen() -> None:
    sent = pack(*noisy(), [], "drop", FORM)
    assert (sent.rung, sent.size_bytes) == ("drop", 0)
    assert np.asarray(seen(sent, FORM)).reshape(-1, 3).tolist() == [list(FORM.fill)] * (96 * 64)


def test_a_thumbnail_costs_less_than_regions_and_these_less_than_all() -> None:
    picture, original = noisy(192, 192)
    costs = [pack(picture, original, [(0, 0, 0.25, 0.25)], rung, FORM).size_bytes for rung in RUNGS]
    assert costs == sorted(costs) and len(set(costs)) == 4


def test_kept_regions_are_sharp_and_the_rest_is_smooth() -> None:
    picture, original = noisy(96, 96)
    sent = pack(picture, original, [(0.0, 0.5, 1 / 3, 1.0)], "regions", Form(4, 100, FORM.fill))
    fault = np.abs(np.asarray(seen(sent, FORM), np.float64) - np.asarray(picture)).mean(-1)
    assert fault[48:, :32].mean() < 5
    assert min(fault[:48].mean(), fault[48:, 32:].mean()) > 40


def test_regions_go_out_to_whole_blocks_and_never_beyond_the_picture() -> None:
    picture = Image.new("RGB", (20, 20), (200, 30, 30))
    picture.paste((30, 200, 30), (0, 0, 4, 20))
    _, original = noisy(40, 40)  # a dear original, so that regions pay
    sent = pack(picture, original, [(0.45, 0.45, 0.95, 0.95)], "regions", Form(20, 95, FORM.fill))
    shown = np.asarray(seen(sent, FORM), np.int64)
    assert np.abs(shown[8:, 8:] - [200, 30, 30]).max() < 12  # sharp from 8 (not 9) to 20
    assert np.abs(shown[:7, :3] - np.asarray(picture)[:7, :3]).max(-1).min() > 20


def test_a_rung_that_saves_nothing_gives_way_to_the_original() -> None:
    picture = Image.new("RGB", (64, 64), (9, 9, 9))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    sent = pack(picture, buffer.getvalue(), [(0, 0, 1, 1)], "regions", FORM)
    assert (sent.rung, sent.data) == ("full", buffer.getvalue())


def test_the_smaller_of_two_codecs_is_taken() -> None:
    flat, noise = Image.new("RGB", (96, 64), (9, 9, 9)), noisy()[0]
    dear = noisy(200, 200)[1]
    kinds = [Image.open(io.BytesIO(pack(one, dear, [], "thumbnail", FORM).data)).format for one in (flat, noise)]
    assert kinds == ["PNG", "JPEG"]


def test_an_original_is_seen_upright() -> None:
    picture = noisy()[0]
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(buffer, "JPEG", exif=exif, quality=95)
    upright = decode(buffer.getvalue())
    for rung in RUNGS:
        assert seen(pack(upright, buffer.getvalue(), [], rung, FORM), FORM).size == (64, 96)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (Sent("drop", b"", 100_000, 100_000), "100000 x 100000 pixels is not taken"),
        (Sent("thumbnail", noisy(8, 8)[1], 10**6, 10**6), "is not taken"),
        (Sent("drop", b"", 0, 5), "0 x 5 pixels is not taken"),
        (Sent("regions", noisy(8, 8)[1], 9, 8), "came as regions is 8 x 8 where 9 x 8 was told"),
        (Sent("full", b"", 8, 8), "no bytes"),
    ],
)
def test_what_cannot_be_seen_is_refused(sent: Sent, said: str) -> None:
    with pytest.raises(PictureError, match=said):
        seen(sent, FORM)


@pytest.mark.parametrize(
    ("mean", "fill"),
    [((84, 96, 112), (84, 96, 112)), ((128, 128, 128), (112, 112, 112)), ((0, 0, 0), (1, 1, 1)),
     ((121, 135, 128), (105, 119, 112)), ((121, 160, 128), (121, 160, 128))],
)  # fmt: skip
def test_the_fill_is_neither_black_nor_mid_grey(mean: tuple[int, int, int], fill: tuple[int, int, int]) -> None:
    assert safe_fill(mean) == fill


def test_readings_name_their_rung() -> None:
    assert [rung_of(action) for action in ("drop", "reduce", "full")] == ["drop", "regions", "full"]
