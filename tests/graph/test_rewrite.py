"""Each rewrite gives what the torch function that it stands for gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan, mamba2_selective_state_update
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalAudioModel
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from msao_compile.errors import StageError
from msao_compile.graph.attend import Setting, Watch
from msao_compile.graph.recurrence import gated_delta_rule, mamba2
from msao_compile.graph.resize import interpolated
from msao_compile.graph.rewrite import METHODS, growing, rewritten
from msao_compile.graph.selections import Picked, Sites, scatter_rows
from msao_compile.symbolic import Numbers, Whole


@pytest.fixture
def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_scattered_rows_are_those_of_masked_scatter(chance: torch.Generator) -> None:
    embeds = torch.rand(2, 5, 3, generator=chance)
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]).bool()
    features = torch.rand(4, 3, generator=chance)
    wanted = embeds.masked_scatter(mask[..., None].expand_as(embeds), features)
    for form in (mask, mask[..., None], mask[..., None].expand_as(embeds)):
        assert torch.equal(scatter_rows(embeds, form, features), wanted)


def test_no_features_leave_text_as_it_is(chance: torch.Generator) -> None:
    embeds = torch.rand(1, 4, 3, generator=chance)
    assert torch.equal(scatter_rows(embeds, torch.zeros(1, 4).bool(), torch.zeros(0, 3)), embeds)


def test_rows_added_to_picked_rows_stand_where_the_mask_is(chance: torch.Generator) -> None:
    embeds = torch.rand(1, 5, 3, generator=chance)
    mask = torch.tensor([[0, 1, 1, 0, 1]]).bool()
    added = torch.rand(3, 3, generator=chance)
    wanted = embeds.masked_scatter(mask[..., None], (embeds[mask] + added).view(-1))
    assert torch.equal(scatter_rows(embeds, mask[..., None], (Picked(embeds, mask) + added).view(-1)), wanted)


@pytest.mark.parametrize("sequence", [1, 15, 16, 37, 130])
@pytest.mark.parametrize("alike", [False, True])
def test_the_delta_rule_is_that_of_transformers(sequence: int, alike: bool, chance: torch.Generator) -> None:
    query, key = (torch.randn(2, sequence, 2, 8, generator=chance) for _ in range(2))
    if alike:  # equal keys are the hardest for the triangular system
        key = key[:, :1].expand(-1, sequence, -1, -1)
    value = torch.randn(2, sequence, 4, 6, generator=chance)
    decay, beta = -0.1 * torch.rand(2, sequence, 4, generator=chance), torch.rand(2, sequence, 4, generator=chance)
    for state in (None, torch.randn(2, 4, 8, 6, generator=chance)):
        named = {"g": decay, "beta": beta, "initial_state": state, "output_final_state": True}
        wanted = torch_chunk_gated_delta_rule(query, key, value, use_qk_l2norm_in_kernel=True, **named)
        found = gated_delta_rule(query, key, value, use_qk_l2norm_in_kernel=True, **named)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("sequence", [1, 15, 16, 37, 130])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.1, 0.6)])
def test_mamba2_is_that_of_transformers(sequence: int, limit: tuple[float, float], chance: torch.Generator) -> None:
    hidden, steps = (torch.randn(2, sequence, 4, *more, generator=chance) for more in ((6,), ()))
    written, read = (torch.randn(2, sequence, 2, 8, generator=chance) for _ in range(2))
    skip, bias, decay = (torch.rand(4, generator=chance) for _ in range(3))
    for state in (None, torch.randn(2, 4, 6, 8, generator=chance)):
        named = {"D": skip, "dt_bias": bias, "dt_softplus": True, "dt_limit": limit, "initial_states": state}
        given = (hidden, steps, -decay, written, read, 16)
        if sequence == 1 and state is not None and limit[0]:
            continue  # below
        wanted = mamba2_chunk_scan(*given, **named, return_final_states=True)
        for one, other in zip(mamba2(*given, **named, return_final_states=True), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    plain = (hidden, steps.abs(), *given[2:])
    torch.testing.assert_close(mamba2(*plain), mamba2_chunk_scan(*plain), atol=1e-5, rtol=1e-5)


def test_one_step_of_mamba2_is_that_of_transformers(chance: torch.Generator) -> None:
    """Which bounds no single step."""
    hidden, step = torch.randn(2, 1, 4, 6, generator=chance), torch.randn(2, 1, 4, generator=chance) - 3
    written, read = (torch.randn(2, 1, 2, 8, generator=chance) for _ in range(2))
    decay, state = -torch.rand(4, generator=chance), torch.randn(2, 4, 6, 8, generator=chance)
    more = {"dt_softplus": True, "initial_states": state, "return_final_states": True}
    found, left = mamba2(hidden, step, decay, written, read, 16, dt_limit=(0.5, float("inf")), **more)
    wide = step.transpose(1, 2).expand(-1, -1, 6), decay[:, None, None].expand(-1, 6, 8)
    wanted = mamba2_selective_state_update(state, hidden[:, 0], *wide, written[:, 0], read[:, 0], dt_softplus=True)
    torch.testing.assert_close(found[:, 0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left, state, atol=1e-5, rtol=1e-5)  # it writes the new one there


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(4, 5), (12, 3), (7, 20)])
def test_antialiased_resizing_is_that_of_torch(mode: str, size: tuple[int, int], chance: torch.Generator) -> None:
    tensor = torch.randn(1, 2, 7, 9, generator=chance)
    wanted = F.interpolate(tensor, size=size, mode=mode, antialias=True, align_corners=False)
    torch.testing.assert_close(interpolated(tensor, size=size, mode=mode, antialias=True), wanted, atol=3e-6, rtol=0)


def test_as_many_classes_as_a_symbolic_length_says_stay_symbolic() -> None:
    class Classes(nn.Module):
        def forward(self, places: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return F.one_hot(places, rows.shape[0] // 2)

    inputs = (torch.tensor([[0, 2, 1]]), torch.zeros(6))
    with rewritten(nn.Module(), Sites()):
        program = torch.export.export(Classes(), inputs, dynamic_shapes=(None, {0: torch.export.Dim("rows", min=4)}))
    found = program.module()(inputs[0], torch.zeros(10))
    assert torch.equal(found, F.one_hot(inputs[0], 5))


def test_other_resizing_is_left_to_torch() -> None:
    assert interpolated(torch.zeros(1, 1, 4, 4), size=(2, 2), mode="bilinear") is NotImplemented


class _Padded(nn.Module):
    """Drops empty tiles and the padding behind `count`, as towers do."""

    def forward(self, tiles: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = tiles[(tiles != 0).any(-1)]
        return kept[:count]


def test_a_line_that_kept_everything_keeps_everything() -> None:
    model, sites = _Padded(), Sites(recording=True)
    full, empty = torch.ones(3, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    sites.note("here", True)
    sites.note("here", False)
    assert not sites.everything["here"]
    with rewritten(model, sites):
        assert model(full, torch.tensor(3)).shape == (3, 2)
        assert model(empty, torch.tensor(1)).shape == (1, 2)


class _InParts(nn.Module):
    """Convolves a few items at a time, as towers do to save memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(2, 2, 1)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layer(part) for part in items.split(500, dim=0)])


def test_what_is_split_to_save_memory_is_one_part_in_the_graph() -> None:
    model = _InParts()
    with rewritten(model, Sites()), torch.no_grad():
        shapes = {"items": {0: torch.export.Dim.AUTO}}
        program = torch.export.export(model, (torch.rand(3, 2, 4),), dynamic_shapes=shapes, strict=False)
    items = torch.rand(7, 2, 4)
    torch.testing.assert_close(program.module()(items), model(items))


class _Cropped(nn.Module):
    """Cuts off what a mask says is padding, as towers do for pictures made of tiles."""

    def forward(self, tiles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        useful = mask.sum().item()
        return tiles[:, :useful].reshape(1, -1) * 2.0


def test_a_length_read_from_data_is_that_of_what_it_cuts() -> None:
    model, tiles = _Cropped(), torch.rand(1, 6, 3)
    with rewritten(model, Sites()), torch.no_grad():
        program = torch.export.export(model, (tiles, torch.ones(6, dtype=torch.int64)), strict=False)
    again = program.run_decompositions()  # what export to ONNX does first
    mask = torch.tensor([1, 1, 1, 1, 0, 0])
    torch.testing.assert_close(again.module()(tiles, mask), model(tiles, mask))


@pytest.mark.parametrize(("chunk", "left"), [(-1, 4), (3, 0), (3, 1), (4, 2), (20, 1)])
def test_streaming_masks_are_those_of_transformers(chunk: int, left: int) -> None:
    original = Phi4MultimodalAudioModel._streaming_mask
    wanted = original(SimpleNamespace(training=False), 11, 2, chunk, left)
    assert torch.equal(METHODS["_streaming_mask"](None, 11, 2, chunk, left), wanted)


class _Scaled(nn.Module):
    """Attention over channels, scaled by how many tokens there are."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query = tokens.transpose(1, 2)[:, None]
        scale = tokens.shape[1] ** -0.5
        return Setting("portable").attention(self, query, query, query, scaling=scale)[0]


def test_attention_scaled_by_a_length_is_refused_where_the_length_varies() -> None:
    tokens = torch.rand(1, 6, 4)
    torch.export.export(_Scaled(), (tokens,), strict=False)
    shapes = {"tokens": {1: torch.export.Dim.AUTO}}
    with pytest.raises(StageError, match="_Scaled scales attention by a length, which therefore cannot vary"):
        torch.export.export(_Scaled(), (tokens,), dynamic_shapes=shapes, strict=False)


def test_attention_scaled_by_a_length_is_seen_in_the_runs_already() -> None:
    def seen(*counts: int) -> Watch:
        watch = Watch()
        for count in counts:
            watch.scales.append([])
            tokens = torch.rand(1, 1, count, 4)
            Setting("portable", watch=watch).attention(nn.Identity(), tokens, tokens, tokens, scaling=count**-0.5)
        return watch

    seen(6, 6).refuse_scaling_by_length()
    with pytest.raises(StageError, match="Identity scales attention by a length, which therefore cannot vary"):
        seen(6, 8).refuse_scaling_by_length()


def test_numbers_are_read_without_data() -> None:
    sizes = Numbers([[6, 4]], torch.tensor([[6, 4]]))
    [(high, wide)] = [tuple(row) for row in sizes]
    assert (high // 2, wide // 2) == (3, 2)
    assert (sizes // 2).prod(-1).tolist() == [6]
    assert torch.equal((sizes + 1).as_tensor(), torch.tensor([[7, 5]]))
    assert len(sizes.repeat(2, 1)) == 2
    assert sizes.repeat(2, 1)[1].tolist() == [6, 4]


def test_whole_is_int_for_everything_that_is_no_length() -> None:
    assert Whole("12") == 12
    assert Whole(2.9) == 2
    assert isinstance(3, Whole)


class _Before(nn.Module):
    """Each token beside the one before it."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([tokens, torch.roll(tokens, shifts=1, dims=-1)])


def test_a_roll_by_one_serves_one_token_too() -> None:
    shapes = {"tokens": {1: torch.export.Dim("length")}}
    with rewritten(_Before(), Sites()):
        program = torch.export.export(_Before(), (torch.rand(1, 7),), dynamic_shapes=shapes, strict=False)
    for length in (1, 2, 5):
        tokens = torch.rand(1, length)
        assert torch.equal(program.module()(tokens), _Before()(tokens))


def test_sums_of_weighted_rows_of_a_table_are_those_of_torch(chance: torch.Generator) -> None:
    places, table = torch.tensor([[0, 3], [2, 2], [1, 0]]), torch.rand(4, 5, generator=chance)
    weights = torch.rand(3, 2, generator=chance)
    wanted = F.embedding_bag(places, table, per_sample_weights=weights, mode="sum")
    with rewritten(nn.Module(), Sites()):
        program = torch.export.export(_Bags(), (places, table, weights), strict=False)
        assert torch.equal(F.embedding_bag(places, table), F.embedding_bag(places, table, mode="mean"))
    assert "bag" not in str(program.graph)
    torch.testing.assert_close(program.module()(places, table, weights), wanted)


class _Bags(nn.Module):
    def forward(self, places: torch.Tensor, table: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.embedding_bag(places, table, per_sample_weights=weights, mode="sum")


def test_a_split_by_one_known_size_is_the_tensor_itself() -> None:
    tensor = torch.rand(6, 2)
    with rewritten(nn.Module(), Sites()):
        [part] = torch.split(tensor, Numbers([6], torch.tensor([6])), dim=0)
    assert part is tensor


def test_functions_of_torch_take_the_rows_themselves(chance: torch.Generator) -> None:
    everything, mask = torch.rand(1, 5, 3, generator=chance), torch.tensor([[0, 1, 1, 0, 1]]).bool()
    weight = torch.rand(2, 3, generator=chance)
    assert torch.equal(F.linear(Picked(everything, mask), weight), F.linear(everything[mask], weight))
    assert torch.equal(Picked(everything, mask).reshape(-1, 9), everything[mask].reshape(-1, 9))


def test_how_many_rows_a_mask_picks_is_compared_with_nothing() -> None:
    assert Picked(torch.rand(1, 5, 3), torch.zeros(1, 5).bool()).numel() == 7


def test_frequencies_that_follow_the_length_are_constant_in_a_trace() -> None:
    class Rotary(nn.Module):
        def __init__(self, kind: object) -> None:
            super().__init__()
            self.rope_type = kind

    kinds = ("dynamic", "default", {"full": "dynamic", "sliding": "default"}, "longrope")
    model = nn.ModuleList(map(Rotary, kinds))
    assert growing(model) == [model[0], model[2]]
    with rewritten(model, Sites()):
        assert [part.rope_type for part in model] == [
            "default",
            "default",
            dict.fromkeys(kinds[2], "default"),
            "longrope",
        ]
    assert [part.rope_type for part in model] == list(kinds)


class _Counted(nn.Module):
    """Writes lengths into a small tensor and reads them again, as towers do that hand their grid on."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        grid = torch.tensor([[1, picture.shape[0], picture.shape[1]]])
        units = torch.tensor([2]).expand(len(grid))
        [(_, high, wide)], [unit] = grid.tolist(), units.tolist()
        return picture.reshape(high // unit, unit, wide // unit, unit).amax((1, 3)) + grid.sum()


def test_lengths_written_into_a_tensor_are_read_as_lengths() -> None:
    high, wide = 2 * torch.export.Dim("high"), 2 * torch.export.Dim("wide")
    with rewritten(_Counted(), Sites()):
        shapes = ({0: high, 1: wide},)
        program = torch.export.export(_Counted(), (torch.rand(4, 6),), dynamic_shapes=shapes, strict=False)
    picture = torch.rand(8, 2)
    torch.testing.assert_close(program.module()(picture), _Counted()(picture))
