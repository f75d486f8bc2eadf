"""How long the inputs of a tower are that packs its patches: rows, windows and positions all follow from one grid.

Ranges that were chosen one by one would not fit each other, which a builder refuses. So three whole requests are made,
small, typical and large, and the host's own functions tell what each of them gives.
"""

from __future__ import annotations

import math
import re

import numpy as np

from msao_compile.errors import InputError
from msao_compile.manifest.schema import Encoder, Graph
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.encoding import host_inputs

GRID = "grid_thw"
"""Ends the name of the input that has time, height and width of each picture or clip, in patches."""
FRAMES = {"image": (1, 1, 1), "video": (1, 3, 6)}
"""Of one picture, and of a short, a typical and a long clip: pairs of frames, mostly."""
GROWTH = 2
"""How many times as high and as wide as a typical picture the largest is."""
MERGED = 2
"""Patches on the side of a square that one token stands for, where no function of the host says it."""


def lengths(encoder: Encoder, graph: Graph, tokens: int | None) -> dict[str, tuple[int, int, int]]:
    """Every length of a tower's inputs at its three sizes, by name; empty for one that takes no grid.

    `tokens` is how many stand for a typical picture or clip, None where it is not known.
    """
    grid = next((name for name in encoder.inputs if name.endswith(GRID)), None)
    if grid is None or encoder.modality not in FRAMES:
        return {}
    unit = next((int(call.settings["spatial_merge_size"]) for call in encoder.host
                 if "spatial_merge_size" in call.settings), MERGED)  # fmt: skip
    times = FRAMES[encoder.modality]
    side = max(1, round(math.sqrt((tokens or 64 * times[1]) / times[1])))
    ends = []
    for time, squares in zip(times, (1, side, GROWTH * side), strict=True):
        try:
            ends.append(_lengths(encoder, graph, grid, (time, squares * unit, squares * unit)))
        except InputError:  # its functions read more than a grid: each length has a range of its own
            return {}
    named = {name: sorted(end[name] for end in ends) for name in ends[0] if all(name in end for end in ends)}
    return {name: (low, best, high) for name, (low, best, high) in named.items()}


def _lengths(encoder: Encoder, graph: Graph, grid: str, shape: tuple[int, int, int]) -> dict[str, int]:
    """The lengths of one request, by the names that the graph gives them."""
    given: Arrays = {grid: np.array([shape], np.int64)}
    known = {**given, **host_inputs(encoder.host, given)}
    sizes = {name: value.shape for name, value in known.items()}
    sizes[encoder.inputs[0]] = (math.prod(shape),)  # rows of patches; what one is made of is fixed
    return {
        length: size
        for spec in graph.inputs
        for length, size in zip(spec.shape, sizes.get(spec.name, ()), strict=False)
        if isinstance(length, str) and re.fullmatch(r"[\w.]+", length)  # a name, and not what follows from one
    }
