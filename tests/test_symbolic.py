"""What stands for tensors while a model is looked at."""

from __future__ import annotations

from pathlib import Path

import torch

from msao_compile.graph.state import StateTensor
from msao_compile.symbolic import zeros


def resident() -> int:
    """Bytes that this process holds in memory."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


def test_zeros_of_every_kind_have_their_shape() -> None:
    for kind in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        found = zeros((2, 0, 3), kind), zeros((), kind), zeros([3, 2], kind)
        assert [(tuple(one.shape), one.dtype, bool(one.any())) for one in found] == [
            (shape, kind, False) for shape in ((2, 0, 3), (), (3, 2))
        ]


def test_zeros_and_examples_of_state_take_no_memory() -> None:
    before = resident()
    held = [zeros((1 << 26,), torch.float32)]
    held.append(StateTensor(0, "key", (1, 64, 0, 64), torch.float32, 2).example(16, 1024))
    assert sum(value.nbytes for value in held) == 2 << 28
    assert resident() - before < 1 << 24
