"""An encoder in the manifest says what its graphs read, and no more."""

from __future__ import annotations

import pytest

from msao_compile.manifest.schema import Encoder, HostCall
from msao_compile.stages import split


def test_a_host_call_that_nothing_reads_is_left_out() -> None:
    def call(source: str, *outputs: str) -> HostCall:
        return HostCall(function="any", settings={}, inputs={"value": source}, outputs=outputs)

    calls = (call("grid:frames", "lengths"), call("lengths", "places"), call("grid", "unread"), call("unread", "more"))
    encoder = Encoder(component="vision_encoder", modality="image", inputs=("grid",), each=True, host=calls)
    kept = split._read_only(encoder, {"vision_encoder": {"inputs": [{"name": "grid"}, {"name": "places"}]}})
    assert kept.host == calls[:2]


@pytest.mark.parametrize(("name", "placed"), [("image_features", 4), ("cross_key_values", None)])
def test_a_placeholder_is_counted_only_where_features_take_the_place_of_tokens(name: str, placed: int | None) -> None:
    encoder = Encoder(component="vision_encoder", modality="image", inputs=("pixel_values",), each=True, placeholder=4)
    kept = split._read_only(encoder, {"decoder": {"inputs": [{"name": name}]}})
    assert kept.placeholder == placed
