"""Inputs that say how large something is, handed to a model so that their numbers are lengths and no data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from msao_compile.families.examples import Medium
from msao_compile.manifest.schema import HostCall
from msao_compile.symbolic import Numbers

Tensors = dict[str, torch.Tensor]
SIZED = re.compile(r"grid|sizes|shapes|position_ids|pooling|num_|lengths|aspect")
"""Inputs that say how large something is: what they describe is encoded one at a time."""
MANY = 8  # numbers; what has more says something of each patch


@dataclass(frozen=True)
class KnownSize:
    """One such input: for each of its numbers the tensor and the axis that has this length.

    Where no input of the medium has it the host gives one (`runtime.host.lengths`).
    """

    name: str
    shape: tuple[int, ...]
    where: tuple[tuple[str, int], ...]
    call: HostCall | None

    def of(self, values: Mapping[str, torch.Tensor]) -> Numbers:
        """The numbers as lengths of these tensors."""
        numbers = [values[name].shape[axis] for name, axis in self.where]
        held = np.empty(len(numbers), dtype=object)
        held[:] = numbers
        return Numbers(held.reshape(self.shape), values[self.name])


def known_sizes(pair: tuple[Medium, Medium], taken: Iterable[str]) -> list[KnownSize]:
    """The known sizes of one medium, but those in `taken`: inputs that host calls read whole."""
    found = []
    one, other = pair[0].inputs, pair[1].inputs
    for name, value in one.items():
        small = value.dtype == np.int64 and 0 < value.size <= MANY and value.shape == other[name].shape
        if small and SIZED.search(name) and not name.endswith(("_mask", "_ids")) and name not in taken:
            pairs = zip(value.reshape(-1).tolist(), other[name].reshape(-1).tolist(), strict=True)
            found.append(_known(name, value, list(pairs), pair))
    return found


def _known(name: str, value: np.ndarray, numbers: list[tuple[int, int]], pair: tuple[Medium, Medium]) -> KnownSize:
    where: list[tuple[str, int]] = []
    outputs = tuple(f"{name}.{index}" for index in range(len(numbers)))
    for index, number in enumerate(numbers):
        axis = _axis(number, pair, where) if number[0] != number[1] else None
        where.append(axis or (outputs[index], 0))
    made = any(source in outputs for source, _ in where)
    call = HostCall(function="lengths", settings={}, inputs={"sizes": name}, outputs=outputs) if made else None
    return KnownSize(name, value.shape, tuple(where), call)


def _axis(number: tuple[int, int], pair: tuple[Medium, Medium], taken: list[tuple[str, int]]) -> tuple[str, int] | None:
    """The input and axis that have this length in both examples and are none of `taken`: squares have two such."""
    for name, value in pair[0].inputs.items():
        other = pair[1].inputs[name]
        for axis in range(value.ndim) if value.dtype == np.float32 and value.ndim == other.ndim else ():
            if (value.shape[axis], other.shape[axis]) == number and (name, axis) not in taken:
                return name, axis
    return None
