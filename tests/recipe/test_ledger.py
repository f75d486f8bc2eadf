"""What a build of an engine is expected to take, and when it is refused."""

from __future__ import annotations

import pytest

from msao_compile.manifest.engine import Backend
from msao_compile.recipe.ledger import (
    PEAKS,
    TELLING_BYTES,
    BuildRun,
    Rate,
    at_once,
    predict,
    raised,
    short_here,
    short_there,
)
from msao_compile.recipe.room import GIB
from msao_compile.recipe.targets import find

MB = 1_000_000


def run(weights: int, peak: int, seconds: float = 4.0, file: int = 0) -> BuildRun:
    return BuildRun(weights * MB, peak * MB, file * MB, seconds)


@pytest.mark.parametrize("backend", ["trt", "trt_rtx"])
def test_without_a_measured_build_the_prior_speaks_and_the_time_is_unknown(backend: Backend) -> None:
    need = predict(backend, 100 * MB, [])
    assert need.peak_bytes == PEAKS[backend].base_bytes + PEAKS[backend].copies * 100 * MB
    assert need.seconds is None


def test_a_device_wants_three_and_a_half_copies_of_the_weights_beside_the_library() -> None:
    assert PEAKS["trt"] == Rate(900 * MB, 3.5)


BUILT_WITHOUT_A_GPU = [
    (269, 1617, 303), (269, 1447, 277), (187, 953, 194), (57, 395, 57), (10.0, 365, 19.1),
    (4.2, 342, 12.4), (5.05, 355, 15.6), (0.2, 227, 0.8), (0.54, 281, 3.5),
]  # fmt: skip
"""Megabytes of weights, of memory at the peak and of the engine; TensorRT-RTX 1.7.1, shapes and standard models."""


@pytest.mark.parametrize(("weights", "peak", "file"), BUILT_WITHOUT_A_GPU)
def test_no_build_that_was_measured_took_more_than_the_prior_says_and_large_ones_not_much_less(
    weights: float, peak: float, file: float
) -> None:
    need = predict("trt_rtx", int(weights * MB), [])
    assert need.peak_bytes >= peak * MB
    assert need.file_bytes >= file * MB
    assert weights < 100 or need.peak_bytes < 1.4 * peak * MB


SITUATIONS = {
    "nothing seen": ((), (100, 2.0)),
    "less than expected changes nothing": (((200, 300), (1, 50)), (100, 2.0)),
    "a large build raises the copies": (((200, 900),), (100, 4.0)),
    "the largest ratio counts, not the mean": (((200, 900), (400, 900)), (100, 4.0)),
    "a small build raises the base": (((1, 300),), (298, 2.0)),
    "both": (((200, 900), (2, 308)), (300, 4.0)),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_rate_is_raised_by_what_was_seen(name: str) -> None:
    seen, (base, copies) = SITUATIONS[name]
    pairs = [(weights * MB, found * MB) for weights, found in seen]
    found = raised(Rate(100 * MB, 2.0), pairs)
    assert (found.base_bytes, found.copies) == (base * MB, pytest.approx(copies))
    assert all(found.of(weights) >= bytes_seen for weights, bytes_seen in pairs)


def test_a_build_of_next_to_no_weights_says_nothing_of_their_copies() -> None:
    small = TELLING_BYTES // MB - 1
    assert raised(Rate(0, 1.0), [(small * MB, 100 * small * MB)]).copies == 1.0


def test_time_is_that_of_the_nearest_in_size_and_grows_with_what_is_larger() -> None:
    runs = [run(10, 300, seconds=2.0), run(100, 900, seconds=8.0)]
    assert predict("trt_rtx", 90 * MB, runs).seconds == 8.0
    assert predict("trt_rtx", 12 * MB, runs).seconds == pytest.approx(2.4)
    assert predict("trt_rtx", 200 * MB, runs).seconds == pytest.approx(16.0)


def test_a_refusal_has_both_numbers() -> None:
    assert short_here(6 * GIB, 8 * GIB) is None
    assert short_here(7 * GIB + 1, 8 * GIB) == (
        "a build of it needs about 7.0 GiB of memory where this machine has 8.0, 1 of them for the system"
    )
    assert short_here(7 * GIB + 1, None) is None


@pytest.mark.parametrize(
    ("device", "fits", "over"),
    [("jetson-orin-nano-4gb", 2, 2.1), ("jetson-orin-nano-8gb", 6, 6.1), ("nvidia-h100-sxm", 79, 79.1)],
)
def test_a_device_keeps_some_of_its_memory(device: str, fits: float, over: float) -> None:
    assert short_there(int(fits * GIB), find(device)) is None
    told = short_there(int(over * GIB), find(device))
    assert told is not None
    assert f"{over:.1f} GiB of memory where {device} has {find(device).memory_gib:.1f}" in told


@pytest.mark.parametrize(
    ("peaks", "jobs", "here", "found"),
    [
        ((3, 3, 3), 3, 10, 3),
        ((3, 3, 3), 3, 9, 2),
        ((3, 3, 1), 2, 6, 1),
        ((9,), 4, 4, 1),
        ((), 4, 4, 4),
        ((3, 3), 2, None, 2),
    ],
)
def test_builds_share_the_memory_that_there_is(peaks: tuple[int, ...], jobs: int, here: int | None, found: int) -> None:
    assert at_once([one * GIB for one in peaks], jobs, None if here is None else here * GIB) == found
