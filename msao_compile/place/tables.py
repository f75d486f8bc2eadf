"""What a request takes for every choice of its slots at once, as an array: `latency.latency_s`, vectorised.

Shape: one axis for each slot, the encoders in order and the head last; along an axis the options of the slot's module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from msao_compile.place.problem import Ask, Problem


def cells(problem: Problem, ask: Ask) -> int:
    """How many choices a request has."""
    return math.prod(len(problem.options[module]) for module in ask.slots)


def table(problem: Problem, ask: Ask, copies: Sequence[tuple[int, ...]] | None = None) -> np.ndarray:
    """Seconds by choice, of the options that are in `copies` by module where they are given; infinite where no link
    leads.
    """
    rank = len(ask.slots)
    options = [
        problem.options[module] if copies is None else [problem.options[module][index] for index in copies[module]]
        for module in ask.slots
    ]
    devices = [np.array([option.device for option in held], int) for held in options]
    seconds = [np.array([option.seconds for option in held]) for held in options]
    shape = tuple(len(held) for held in devices)

    def along(values: np.ndarray, *axes: int) -> np.ndarray:
        """Values that depend on these axes alone."""
        return values.reshape([shape[axis] if axis in axes else 1 for axis in range(rank)])

    head = rank - 1
    ends: list[np.ndarray] = []
    start = np.zeros([1] * rank)
    for place in range(head):
        begins = along(np.array(ask.arrivals[place])[devices[place]], place)
        for earlier, ended in enumerate(ends):
            beside = along(devices[earlier], earlier) == along(devices[place], place)
            begins = np.maximum(begins, np.where(beside, ended, 0.0))
        ends.append(begins + along(seconds[place], place))
        travel = np.array(problem.features[ask.slots[place]])[np.ix_(devices[place], devices[head])]
        start = np.maximum(start, ends[-1] + along(travel, place, head))
    last = along(seconds[head] + np.array(ask.reply)[devices[head]], head)
    return np.ascontiguousarray(np.broadcast_to(start + last, shape))
