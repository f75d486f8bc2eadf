"""A batch is one request after another: each row gets its own pictures, and what belongs to no row is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from msao_compile.errors import InputError
from msao_compile.runtime import load
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.forward import greedy

FAMILIES = ("llava", "qwen2_5_vl")
PICTURE = {"llava": 36, "qwen2_5_vl": 6}


def asked(family: str, pictures: int, seed: int) -> dict[str, np.ndarray]:
    """One row of 80 tokens with so many pictures in it."""
    chance = np.random.default_rng(seed)
    ids = chance.integers(10, 700, 2 + (PICTURE[family] + 1) * pictures)
    for index in range(pictures):
        start = 1 + index * (PICTURE[family] + 1)
        ids[start : start + PICTURE[family]] = checkpoints.IMAGE_TOKEN
    ids = np.concatenate([ids, np.full(80 - len(ids), 9)])[None]
    found = {"input_ids": ids}
    if pictures and family == "llava":
        found["pixel_values"] = chance.standard_normal((pictures, 3, 72, 72)).astype(np.float32)
    if pictures and family == "qwen2_5_vl":
        found["pixel_values"] = chance.standard_normal((24 * pictures, 96)).astype(np.float32)
        found["image_grid_thw"] = np.array([[1, 4, 6], [1, 6, 4]][:pictures])
    if family == "qwen2_5_vl":
        found["mm_token_type_ids"] = (ids == checkpoints.IMAGE_TOKEN).astype(np.int64)
    return found


def together(*requests: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for request in requests for name in request)
    return {name: np.concatenate([request[name] for request in requests if name in request]) for name in names}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runtime(family: str, built: Callable[[str], Path]) -> Runtime:
    return load(built(family))


@pytest.mark.parametrize("pictures", [(1, 1), (2, 1), (0, 2), (1, 0, 2), (0, 0)])
def test_pictures_are_dealt_to_the_rows_that_have_room_for_them(
    runtime: Runtime, family: str, pictures: tuple[int, ...]
) -> None:
    requests = [asked(family, count, seed) for seed, count in enumerate(pictures)]
    alone = np.concatenate([runtime.forward(request)["logits"] for request in requests])
    assert np.array_equal(runtime.forward(together(*requests))["logits"], alone)


def test_every_row_of_a_batch_is_answered_as_it_is_alone(runtime: Runtime, family: str) -> None:
    requests = [asked(family, count, seed) for seed, count in enumerate((1, 2))]
    session = runtime.session("edge")
    alone = np.concatenate([greedy(session, request, 5) for request in requests])
    assert np.array_equal(greedy(session, together(*requests), 5), alone)


def test_a_picture_that_no_row_has_room_for_is_refused(runtime: Runtime, family: str) -> None:
    given = together(asked(family, 1, 0), asked(family, 2, 1))
    given["input_ids"][1] = asked(family, 1, 1)["input_ids"]
    with pytest.raises(InputError, match="1 more pictures are given than the rows have placeholders for"):
        runtime.forward(given)


def test_room_for_a_picture_that_is_not_there_is_refused_with_both_numbers(runtime: Runtime, family: str) -> None:
    given = together(asked(family, 1, 0), asked(family, 1, 1))
    given["input_ids"][1] = asked(family, 2, 1)["input_ids"]
    size = PICTURE[family]
    with pytest.raises(
        InputError, match=f"holds {2 * size} picture placeholders where the pictures give {size} features"
    ):
        runtime.forward(given)
