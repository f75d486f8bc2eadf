"""Whether a target can hold a model."""

from __future__ import annotations

import pytest

from msao_compile.recipe.room import GIB, OWN_RESERVE_BYTES, UNIFIED_RESERVE_BYTES, room
from msao_compile.recipe.targets import find


@pytest.mark.parametrize(
    ("device", "reserve"), [("jetson-orin-nano-8gb", UNIFIED_RESERVE_BYTES), ("nvidia-l4", OWN_RESERVE_BYTES)]
)
def test_weights_cache_and_reserve_must_fit_the_memory(device: str, reserve: int) -> None:
    target = find(device)
    assert target.memory_gib is not None
    memory = int(target.memory_gib * GIB)
    full = room("edge", target, "fp16", memory - reserve - 100, 100, here_bytes=None)
    assert (full.fits, full.free_bytes, full.reserve_bytes) == (True, 0, reserve)
    over = room("edge", target, "fp16", memory - reserve - 100, 101, here_bytes=None)
    assert (over.fits, over.free_bytes) == (False, -1)


def test_this_machine_has_the_memory_it_says() -> None:
    assert room("local", find("local-cpu"), "fp32", GIB, GIB, here_bytes=3 * GIB).fits
    assert not room("local", find("local-cpu"), "fp32", GIB, GIB, here_bytes=2 * GIB).fits
    assert room("local", find("local-cpu"), "fp32", GIB, GIB, here_bytes=None).fits is None
    assert room("local", find("local-cuda"), "fp32", GIB, GIB, here_bytes=3 * GIB).fits is None  # of a GPU's memory
