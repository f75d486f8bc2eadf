"""A batch is one request after another, or several side by side: each as if it were alone, with its own pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from msao_compile.errors import InputError
from msao_compile.runtime import load
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import greedy, rows
from msao_compile.runtime.loader import read_manifest
from msao_compile.runtime.session import ModelSession, Request

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


def clips(seed: int, *seconds: float) -> dict[str, np.ndarray]:
    """One row of 30 tokens with a clip for each of `seconds`, the time between two frames of it."""
    chance = np.random.default_rng(seed)
    grid = np.array([[2, 4, 4]] * len(seconds), np.int64).reshape(-1, 3)
    ids = chance.integers(10, 700, 30)
    for index in range(len(seconds)):
        ids[2 + 9 * index : 10 + 9 * index] = checkpoints.VIDEO_TOKEN
    pixels = chance.standard_normal((32 * len(seconds), 96)).astype(np.float32)
    return {"input_ids": ids[None], "pixel_values_videos": pixels, "video_grid_thw": grid,
            "second_per_grid_ts": np.array(seconds, np.float32),
            "mm_token_type_ids": 2 * (ids == checkpoints.VIDEO_TOKEN)[None].astype(np.int64)}  # fmt: skip


def test_every_clip_has_its_own_time_between_frames(
    built: Callable[[str], Path], checkpoint: Callable[..., Path]
) -> None:
    import torch

    given = clips(0, 0.5, 2.0)
    found = load(built("qwen2_5_vl")).forward(given)["logits"]
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in given.items()}
        wanted = checkpoints.original(checkpoint("qwen2_5_vl"))(**tensors).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("seconds", [((0.5,), (2.0,)), ((0.5, 2.0), (1.0,)), ((), (2.0,)), ((0.5, 2.0), (1.0, 3.0))])
def test_clips_are_dealt_to_rows_with_their_times(
    built: Callable[[str], Path], seconds: tuple[tuple[float, ...], ...]
) -> None:
    runtime = load(built("qwen2_5_vl"))
    requests = [clips(seed, *times) for seed, times in enumerate(seconds)]
    alone = np.concatenate([runtime.forward(_plain(request))["logits"] for request in requests])
    assert np.array_equal(runtime.forward(_plain(together(*requests)))["logits"], alone)


def _plain(request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what a request has none of."""
    return {name: value for name, value in request.items() if len(value)}


def test_a_single_truth_goes_with_every_row(runtime: Runtime, family: str) -> None:
    given = together(asked(family, 1, 0), asked(family, 1, 1))
    told = runtime.forward({**given, "use_audio_in_video": np.array(False)})["logits"]
    assert np.array_equal(told, runtime.forward(given)["logits"])


TAKEN = np.array([[41, 42, 43], [51, 52, 53]])


@pytest.fixture(params=["fused", "portable"])
def session(request: pytest.FixtureRequest, family: str, built: Callable[[str], Path]) -> ModelSession:
    deployment = read_manifest(built(family))
    return Engines(built(family), deployment, verify=True, dialect=request.param).session(deployment.models[0])


def requests(session: ModelSession, family: str, pictures: tuple[int, ...]) -> list[Request]:
    given = [asked(family, count, seed) for seed, count in enumerate(pictures)]
    return [found for one in given for found, _ in rows(session, one)]


@pytest.mark.parametrize("pictures", [(1, 1), (2, 1), (0, 2), (0, 0)])
def test_prompts_and_steps_are_those_of_each_alone(
    session: ModelSession, family: str, pictures: tuple[int, ...]
) -> None:
    pair = requests(session, family, pictures)
    logits, talk = session.prefill_batch(pair, Clock())
    steps = [session.extend_batch(TAKEN[:, [index]], talk, Clock()) for index in range(3)]
    for row, request in enumerate(pair):
        encoded = session.encode(request.tensors, Clock())
        prompt, alone = session.prefill(request, encoded, Clock(), every=True)
        np.testing.assert_allclose(logits[row], prompt, atol=1e-4)
        for index, step in enumerate(steps):
            expected = session.extend(TAKEN[row, [index]], alone, Clock())
            np.testing.assert_allclose(step[row], expected, atol=1e-4)


def test_prompts_of_two_lengths_are_refused_with_both(session: ModelSession, family: str) -> None:
    pair = requests(session, family, (1, 1))
    with pytest.raises(InputError, match="prompts of 79 and 80 tokens are no batch"):
        session.prefill_batch([pair[0], Request(pair[1].ids[:-1], pair[1].tensors)], Clock())


def test_a_hole_in_a_mask_is_refused(runtime: Runtime, family: str) -> None:
    given = asked(family, 1, 0)
    mask = np.ones_like(given["input_ids"])
    mask[0, :1] = mask[0, -2:] = 0
    if family == "llava":
        runtime.forward({**given, "attention_mask": mask})
    mask[0, 50] = 0
    with pytest.raises(InputError, match="attention_mask has a hole between tokens"):
        runtime.forward({**given, "attention_mask": mask})


def test_a_grid_that_cannot_be_merged_is_refused_with_its_numbers(built: Callable[[str], Path]) -> None:
    given = asked("qwen2_5_vl", 1, 0)
    with pytest.raises(InputError, match=r"has no answer for .*\[\[1, 3, 8\]\]"):
        load(built("qwen2_5_vl")).forward({**given, "image_grid_thw": np.array([[1, 3, 8]])})
