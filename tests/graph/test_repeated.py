"""However many layers repeat, and for however many media they are called, equal ones are traced once."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
import transformers

from msao_compile.errors import ShapeSpecialised
from msao_compile.families.subject import describe
from msao_compile.graph import export as exporting
from msao_compile.graph.layers import Stub, all_called, refuse_fixed, varying
from msao_compile.graph.whole import Call
from msao_compile.stages import split
from tests.checkpoints import IMAGE_TOKEN, QWEN_TOWER, TEXT, VIDEO_TOKEN

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}


def qwen(depth: int) -> Any:
    """A tower of layers that is asked for pictures and for clips."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **ROPE, "num_hidden_layers": depth},
        vision_config={**QWEN_TOWER, "depth": depth, "fullatt_block_indexes": [0]},
        image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def traced_layers(depth: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths: list[str] = []
    trace = exporting.trace_layer

    def noted(subject: Any, seen: Any, stub: Stub, *rest: Any) -> Any:
        paths.append(stub.path)
        return trace(subject, seen, stub, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "trace_layer", noted)
        description = describe(qwen(depth))
        subject, seen = next(iter(split._looked(description)))
        parts = exporting.export(subject, seen, "fused", description.needs)
    for component in ("vision_encoder", "video_encoder"):
        used = {name for name in parts[component].graph.initializers if ".blocks." in name}
        assert len({name.split(".blocks.")[1].split(".")[0] for name in used}) == depth
    return paths


def test_a_tower_that_pictures_and_clips_share_is_traced_once_however_many_layers_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (traced_layers(depth, monkeypatch) for depth in (3, 6))
    assert few == many  # a layer over windows, one over all, those of clips where their lengths vary otherwise
    assert 1 <= len([path for path in few if "visual" in path]) <= 4


def call(*shapes: tuple[int, ...], tail: tuple[None, ...] | None = None) -> Call:
    return Call(tuple(torch.zeros(shape, device="meta") for shape in shapes), {}, True, tail)


def test_stubs_have_been_called_when_all_have_been_for_the_same_whole_runs() -> None:
    tower, decoder = (Stub("tower", torch.nn.Identity(), [call((1,)), call((1,))]),
                      Stub("decoder", torch.nn.Identity(), [call((1,))]))  # fmt: skip
    given = torch.zeros(2, 3)
    tower(given)
    assert not all_called([tower]) and not all_called([tower, decoder])
    tower(given)
    assert all_called([tower]) and not all_called([tower, decoder])
    decoder(given)
    assert all_called([tower, decoder])
    tower(torch.zeros(4, 3)), tower(torch.zeros(6, 3))
    one, other = tower.examples(1)
    assert (one.args[0].shape, other.args[0].shape) == ((2, 3), (6, 3))


def test_calls_share_a_trace_where_the_same_lengths_vary() -> None:
    alike = varying(call((4, 8), (4, 2), (3,)), call((6, 8), (6, 2), (5,)))
    assert alike == varying(call((40, 8), (40, 2), (2,)), call((60, 8), (60, 2), (7,)))
    assert alike != varying(call((4, 8), (4, 2), (3,)), call((6, 8), (6, 2), (3,)))  # as many bounds each time
    assert alike != varying(call((4, 8), (5, 2), (3,)), call((6, 8), (9, 2), (5,)))  # of another length than the rows


def test_a_length_that_varies_and_came_out_as_a_number_is_refused() -> None:
    value = ir.val("t3", ir.DataType.INT32, ["s0", "2"])
    refuse_fixed(value, {0: "AUTO"})
    with pytest.raises(ShapeSpecialised, match="input 't3' of layer 7: axis 1 came out as 2 where it should vary"):
        refuse_fixed(value, {0: "AUTO", 1: "AUTO"}, " of layer 7")
