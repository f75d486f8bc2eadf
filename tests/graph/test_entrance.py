"""Where the decoder begins: at the layer that first asks for state, or at those that lead straight into it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from msao_compile.graph.attend import Setting
from msao_compile.graph.whole import Seen, _watched


class Layer(nn.Module):
    """Gives something else than it takes, and may ask for the state of a layer."""

    def __init__(self, asks: list[int] | None = None) -> None:
        super().__init__()
        self.asks = asks

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
        if self.asks is not None:
            self.asks.append(0)
        return (hidden + 1,)


class Model(nn.Module):
    """A tower, layers without state, then one that has state; `between` is done to what leads there."""

    def __init__(self, asked: list[int], between: Any) -> None:
        super().__init__()
        self.tower = nn.ModuleList([Layer()])
        self.cross = nn.ModuleList([Layer(), Layer()])
        self.layers = nn.ModuleList([Layer(asked)])
        self.between = between

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        [seen] = self.tower[0](hidden)
        hidden = hidden + seen
        for layer in self.cross:
            [hidden] = layer(hidden)
        [hidden] = self.layers[0](self.between(hidden))
        return hidden


@pytest.mark.parametrize(
    ("between", "entrance"),
    [(lambda hidden: hidden, "cross.0"), (lambda hidden: hidden * 2, "layers.0")],
)
def test_the_decoder_begins_where_the_way_into_its_state_does(between: Any, entrance: str) -> None:
    asked: list[int] = []
    model, setting, seen = Model(asked, between), Setting("portable"), Seen()
    setting.states = SimpleNamespace(asked=asked)  # type: ignore[assignment]
    paths = {part: path for path, part in model.named_modules()}
    runs: dict[str, list[Any]] = {path: [] for path in paths.values() if path.endswith(("0", "1"))}
    with _watched(model, paths, runs, [], setting, seen):
        model(torch.zeros(1, 2))
    assert seen.entrance == entrance
