"""What is selected by masks of whole rows, and what is written back under them, in a graph that serves other masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msao_compile.graph import selections
from msao_compile.graph.rewrite import rewritten
from msao_compile.graph.selections import Sites


class _TwoKinds(nn.Module):
    """Sends the rows of two kinds of tokens through layers of their own; every mask is of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, tokens: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        mask = kinds.bool()[..., None].expand(-1, -1, 4)
        answer = torch.zeros_like(tokens)
        answer[~mask] = self.one(tokens[~mask].view(-1, 4)).flatten()
        answer[mask] = self.other(tokens[mask].view(-1, 4)).flatten()
        return answer


@pytest.mark.parametrize("kinds", [[0, 1, 1, 0, 1, 0], [0, 0, 0], [1, 1]])
def test_rows_of_one_kind_are_picked_and_put_back_as_rows(kinds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selections, "mark", lambda tensor, needs: tensor)  # a graph with borders runs only when cut
    model, sites = _TwoKinds().eval(), Sites(recording=True)
    example = torch.rand(2, 5, 4), torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 1, 0]])
    shapes = ({1: torch.export.Dim("length")}, {1: torch.export.Dim("length")})
    with torch.no_grad():
        with rewritten(model, sites):
            model(*example)
        with rewritten(model, Sites(everything=sites.everything)):
            program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
        given = torch.rand(2, len(kinds), 4), torch.tensor([kinds, kinds[::-1]])
        torch.testing.assert_close(program.module()(*given), model(*given))


class _Merge(nn.Module):
    def forward(self, embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return selections.scatter_rows(embeds, mask, features)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_place_beyond_the_features_keeps_its_embedding(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does a placeholder that the model itself has written, in a step without features."""
    monkeypatch.setattr(selections, "mark", lambda tensor, needs: tensor)
    mask = torch.tensor([[True, False, True, True, False]])
    shapes = ({1: torch.export.Dim("length")}, {1: torch.export.Dim("length")}, {0: torch.export.Dim("rows")})
    example = torch.rand(1, 5, 4), mask, torch.rand(3, 4)
    program = torch.export.export(_Merge(), example, dynamic_shapes=shapes, strict=False)
    embeds, features = torch.rand(1, 5, 4), torch.rand(count, 4)
    wanted = embeds.clone()
    wanted[0, [0, 2, 3][:count]] = features
    torch.testing.assert_close(program.module()(embeds, mask, features), wanted)
