"""Which layers share one trace: equal ones, and only those."""

from __future__ import annotations

import torch
from torch import nn

from msao_compile.graph.layers import signature as of
from msao_compile.graph.whole import Call

KEYS = (("key", (None, 2, None, 8), 2),)


class Layer(nn.Module):
    """A layer with what layers of transformers have: a number of its own, plain settings, parts, a buffer."""

    def __init__(
        self, index: int, width: int = 8, window: int | None = None, scale: float = 1.0, act: str = "silu"
    ) -> None:
        super().__init__()
        self.layer_idx = index
        self.window, self.scale = window, scale
        self.proj = nn.Linear(width, 8)
        self.act = nn.SiLU() if act == "silu" else nn.GELU()
        self.register_buffer("table", torch.arange(4))


def signature(layer: nn.Module, hidden: torch.Tensor | None = None, state: tuple = KEYS, **kwargs: object) -> str:
    given = torch.zeros(1, 3, 8) if hidden is None else hidden
    return of(layer, Call((given,), {"mask": torch.zeros(1), **kwargs}, True, None), state)


def test_layers_that_differ_in_index_and_weights_share_a_trace() -> None:
    assert signature(Layer(0)) == signature(Layer(1))


def test_a_call_of_another_length_shares_the_trace() -> None:
    assert signature(Layer(0), torch.zeros(1, 3, 8)) == signature(Layer(1), torch.zeros(2, 7, 8))


def test_layers_that_differ_in_anything_else_do_not() -> None:
    plain = signature(Layer(0))
    trained = Layer(0).eval()
    trained.proj.bias = None
    turned = Layer(0)
    turned.table = turned.table + 1
    others = {
        "width": signature(Layer(0, width=16)),
        "number": signature(Layer(0, scale=2.0)),
        "window": signature(Layer(0, window=8)),
        "part": signature(Layer(0, act="gelu")),
        "parameter": signature(trained),
        "buffer": signature(turned),
        "rank": signature(Layer(0), torch.zeros(3, 8)),
        "argument": signature(Layer(0), causal=True),
        "type": signature(Layer(0), torch.zeros(1, 3, 8, dtype=torch.float64)),
        "state": signature(Layer(0), state=(("conv", (None, 8, 4), None),)),
        "no state": signature(Layer(0), state=()),
    }
    assert plain not in others.values()
    assert len(set(others.values())) == len(others)


def test_layers_that_differ_in_a_window_of_none_and_a_number_do_not() -> None:
    assert signature(Layer(0, window=None)) != signature(Layer(0, window=4))


def test_layers_that_differ_in_a_function_they_hold_do_not() -> None:
    one, other = Layer(0), Layer(1)
    one.inner, other.inner = torch.relu, torch.tanh
    assert signature(one) != signature(other)
