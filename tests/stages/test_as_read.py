"""An encoder in the manifest says what its graphs read, and no more."""

from __future__ import annotations

import pytest
import torch

from msao_compile.manifest.schema import Encoder, HostCall
from msao_compile.stages import split

ONE = ({"grid": torch.ones(1, 3), "pixel_values": torch.ones(1, 3)},) * 2


def encoder(*inputs: str, host: tuple[HostCall, ...] = ()) -> Encoder:
    return Encoder(component="vision_encoder", modality="image", inputs=inputs, each=True, placeholder=4, host=host)


def modules(*names: str) -> dict[str, dict[str, list[dict[str, str]]]]:
    return {"vision_encoder": {"inputs": [{"name": name} for name in names]}}


def test_a_host_call_that_nothing_reads_is_left_out() -> None:
    def call(source: str, *outputs: str) -> HostCall:
        return HostCall(function="any", settings={}, inputs={"value": source}, outputs=outputs)

    calls = (call("grid:frames", "lengths"), call("lengths", "places"), call("grid", "unread"), call("unread", "more"))
    kept = split._as_read(encoder("grid", host=calls), modules("grid", "places"), ONE)
    assert kept.host == calls[:2]
    assert kept.each


@pytest.mark.parametrize(("name", "placed"), [("image_features", 4), ("cross_key_values", None)])
def test_a_placeholder_is_counted_only_where_features_take_the_place_of_tokens(name: str, placed: int | None) -> None:
    assert split._as_read(encoder("pixel_values"), modules(name), ONE).placeholder == placed


def test_items_that_are_read_packed_are_encoded_at_once() -> None:
    names = ("pixel_values", "pooling", "grids")
    examples = tuple(dict(zip(names, map(torch.ones, (crops, 4, 1)), strict=True)) for crops in (1, 2))
    for read, each in ((("pixel_values", "pooling"), False), (names, True)):
        assert split._as_read(encoder(*names), modules(*read), examples).each == each
