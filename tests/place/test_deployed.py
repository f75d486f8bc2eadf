"""A deployment as an instance: what is placed as one, its bytes, and its times on other devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import InputError
from msao_compile.place.certify import Terms, place
from msao_compile.place.deployed import devices_of, instance_of, placement_of, units_of

from .deployments import devices, measured


def test_shared_modules_are_one_and_a_decoder_takes_its_embeddings_along(tmp_path: Path) -> None:
    held = measured(tmp_path)
    found = units_of(held)
    assert [unit.names for unit in found] == [
        ("edge.vision_encoder", "cloud.vision_encoder"), ("edge.decoder",), ("cloud.decoder",),
    ]  # fmt: skip
    assert found[1].components == ("embed_tokens", "decoder") and len(found[1].ids) == 2


def test_bytes_are_the_manifests_and_seconds_those_measured_times_how_much_slower(tmp_path: Path) -> None:
    held = measured(tmp_path)
    eyes, edge, cloud = instance_of(held, devices_of(devices(), "d.json"), "d.json").modules
    assert eyes.memory_bytes == {"": 186e6} and edge.memory_bytes == {"": 327e6}
    assert eyes.output_bytes == 589_824 and edge.output_bytes == 0
    assert eyes.seconds[""] == pytest.approx({"phone": 0.06, "server": 0.006})
    assert edge.seconds[""] == pytest.approx({"phone": 3.5, "server": 0.1 + 0.05 + 10 * 0.02})
    assert cloud.seconds[""] == pytest.approx({"phone": 7.0, "server": 0.7})


def test_what_the_file_knows_better_counts(tmp_path: Path) -> None:
    known = {
        "cloud.vision_encoder": {"seconds": {"server": 0.25}, "output_bytes": 5},
        "edge.decoder": {"memory_bytes": {"fp16": 9.0, "int4": 3.0}, "allowed": ["int4"]},
    }
    given = devices_of(devices(modules=known), "d.json")
    eyes, edge, _ = instance_of(measured(tmp_path), given, "d.json").modules
    assert eyes.seconds == {"": {"server": 0.25}} and eyes.output_bytes == 5
    assert edge.dtypes == ("int4",) and edge.memory_bytes == {"fp16": 9.0, "int4": 3.0}


def test_a_placement_names_the_modules_of_the_manifest(tmp_path: Path) -> None:
    pytest.importorskip("highspy")
    held = measured(tmp_path)
    found = place(instance_of(held, devices_of(devices(), "d.json"), "d.json"), Terms())
    told = placement_of(held, found)
    assert [(copy.module, copy.device) for copy in told.copies] == [
        ("edge.vision_encoder", "server"), ("edge.decoder", "server"), ("cloud.decoder", "server"),
    ]  # fmt: skip
    assert told.copies[1].ids == tuple(held.model("edge").components[name] for name in ("embed_tokens", "decoder"))
    assert told.certificate.optimal


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modules": {"edge.ears": {}}}, "modules names 'edge.ears', which is none of pictures-and-questions"),
        ({"work": {"prompt_tokens": 0, "new_tokens": 1}}, "work.prompt_tokens is 0"),
        ({"devices": [{"name": "a", "memory_bytes": 1.0, "slower": 0.0}]}, "devices[0].slower is 0.0"),
        ({"links": None}, "links is None"),
        ({"requests": []}, "requests"),
        ({"devices": [{"name": "phone", "memory_bytes": 1.0}]}, "links[0].to names 'server', which is no device"),
    ],
)
def test_a_devices_file_that_is_wrong_is_told_in_one_sentence(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as told:
        instance_of(measured(tmp_path), devices_of(devices(**change), "d.json"), "d.json")
    assert str(told.value).startswith(f"d.json: {words}")


@pytest.mark.parametrize(
    ("gone", "words"),
    [("primitives", "nothing was measured of edge.vision_encoder"), ("partition_points", "nothing says what leaves")],
)
def test_what_nobody_measured_has_to_be_given(gone: str, words: str, tmp_path: Path) -> None:
    held = measured(tmp_path).model_copy(update={gone: ()})
    with pytest.raises(InputError, match=words):
        instance_of(held, devices_of(json.loads(json.dumps(devices())), "d.json"), "d.json")
