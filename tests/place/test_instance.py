"""What an instance file may say, and the sentence for each thing that it may not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import InputError
from msao_compile.place.instance import checked, read_json

from .small import link, module, problem, two


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Remove a field."""

    def change(content: dict[str, Any]) -> None:
        *above, last = path
        for step in above:
            content = content[step]
        del content[last]

    return change


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set a field."""

    def change(content: dict[str, Any]) -> None:
        *above, last = path
        for step in above:
            content = content[step]
        content[last] = value

    return change


def more(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Add to a list."""
    return lambda content: content[name].append(value)


NAN = float("nan")
FAULTS = [
    (put("devices", 0, "memory_bytes", value=-1.0), "devices[0].memory_bytes is -1.0"),
    (put("devices", 0, "memory_bytes", value=NAN), "devices[0].memory_bytes is nan"),
    (put("devices", 0, "memory_bytes", value="8e9"), "devices[0].memory_bytes is '8e9'"),
    (put("devices", 0, "memory_bytes", value=True), "devices[0].memory_bytes is True"),
    (without("devices", 1, "memory_bytes"), "devices[1].memory_bytes is missing"),
    (put("devices", value=[]), "devices"),
    (more("devices", {"name": "edge", "memory_bytes": 1.0}), "devices has 'edge' 2 times"),
    (put("devices", 0, "name", value=""), "devices[0].name"),
    (put("devices", 0, "memroy", value=1), "devices[0].memroy is not a field here"),
    (put("links", 0, "rtt_ms", value=-1), "links[0].rtt_ms is -1"),
    (put("links", 0, "mbps", value=0), "links[0].mbps is 0"),
    (put("links", 0, "mbps", value=float("inf")), "links[0].mbps is inf"),
    (without("links", 0, "mbps"), "links[0].mbps is missing"),
    (put("links", 0, "to", value="moon"), "links[0].to names 'moon', which is no device: known are cloud, edge"),
    (put("links", 0, "from", value="moon"), "links[0].from names 'moon'"),
    (put("links", 0, "to", value="edge"), "links[0] leads from 'edge' to itself"),
    (more("links", link("edge", "cloud")), "links has 'edge to cloud' 2 times"),
    (without("links"), "links is missing"),
    (put("modules", 0, "memory_bytes", value=-1), "modules[0].memory_bytes is -1"),
    (put("modules", 0, "memory_bytes", value=None), "modules[0].memory_bytes is None"),
    (put("modules", 0, "memory_bytes", value={}), "modules[0].memory_bytes: it is empty"),
    (put("modules", 0, "memory_bytes", value={"fp16": -2}), "modules[0].memory_bytes.fp16 is -2"),
    (without("modules", 0, "memory_bytes"), "modules[0].memory_bytes is missing"),
    (without("modules", 0, "output_bytes"), "modules[0].output_bytes is missing"),
    (without("modules", 0, "seconds"), "modules[0].seconds is missing"),
    (put("modules", 0, "seconds", value={"edge": -0.1}), "modules[0].seconds.edge is -0.1"),
    (put("modules", 0, "seconds", value={"edge": NAN}), "modules[0].seconds.edge is nan"),
    (put("modules", 0, "seconds", value={"moon": 1.0}), "the seconds of module 'eyes' names 'moon'"),
    (put("modules", 0, "seconds", value={"fp16": {"edge": 1.0}}), "modules[0]: seconds names the dtype 'fp16'"),
    (put("modules", 0, "allowed", value=["int4"]), "modules[0]: allowed names the dtype 'int4'"),
    (put("modules", 0, "allowed", value=[]), "modules[0]: allowed is empty"),
    (more("modules", module("eyes", 1.0)), "modules has 'eyes' 2 times"),
    (put("requests", value=[]), "requests is empty: give at least one"),
    (put("requests", 0, "weight", value=-1), "requests[0].weight is -1"),
    (without("requests", 0, "weight"), "requests[0].weight is missing"),
    (put("requests", 0, "source", value="moon"), "requests[0].source names 'moon', which is no device"),
    (put("requests", 0, "head", value="tail"), "requests[0].head names 'tail', which is no module"),
    (put("requests", 0, "encoders", 0, "module", value="ears"), "requests[0].encoders names 'ears', which is no"),
    (put("requests", 0, "encoders", 0, "input_bytes", value=-1), "requests[0].encoders[0].input_bytes is -1"),
    (without("requests", 0, "encoders"), "requests[0].encoders is missing"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_what_is_wrong_is_told_in_one_sentence_that_names_the_field(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    content = two()
    checked(content, "file.json")
    change(content)
    with pytest.raises(InputError) as told:
        checked(content, "file.json")
    assert str(told.value).startswith(f"file.json: {words}") and "\n" not in str(told.value)


@pytest.mark.parametrize("content", [5, None, [], "x", {"devices": 3}])
def test_what_is_no_instance_at_all_is_refused(content: Any) -> None:
    with pytest.raises(InputError, match=r"^file\.json: "):
        checked(content, "file.json")


def test_a_file_that_is_missing_or_no_json_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"devices": [')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "half.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "deep.json")
    (tmp_path / "whole.json").write_text(json.dumps(two()))
    assert read_json(tmp_path / "whole.json") == two()


def test_seconds_may_be_given_once_for_all_dtypes_or_for_each() -> None:
    content = two()
    content["modules"][0] = module("eyes", {"fp16": 4.0, "int4": 1.0}, {"edge": 0.5})
    assert [(one.dtype, one.memory_bytes, one.seconds) for one in problem(content).options[0]] == [
        ("int4", 1.0, 0.5)
    ]  # as fast and smaller: nobody would take the other
    content["modules"][0]["seconds"] = {"fp16": {"edge": 0.5}, "int4": {"edge": 0.7}}
    assert [(one.dtype, one.seconds) for one in problem(content).options[0]] == [("fp16", 0.5), ("int4", 0.7)]
    content["modules"][0]["allowed"] = ["fp16"]
    assert [one.dtype for one in problem(content).options[0]] == ["fp16"]
