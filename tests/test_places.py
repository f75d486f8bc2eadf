"""Where weights lie: in the checkpoint's file where it has their bytes, else in one that is written for the module."""

from __future__ import annotations

from typing import Any

import pytest

from msao_compile.places import DataFile, Places
from msao_compile.stages.compose import ModelParts

HEADER = 80  # bytes before the first tensor


def tensor(name: str, offset: int, size: int = 96, **changed: Any) -> dict[str, Any]:
    source = {"file": "model.safetensors", "key": name, "offset": HEADER + offset, "dtype": "F32"}
    source |= {key: changed.pop(key) for key in ("file", "dtype") if key in changed}
    return {"name": name, "shape": [size // 4], "dtype": "float32", "size_bytes": size, "digest": name * 64,
            "source": source, **changed}  # fmt: skip


def part(component: str, letter: str, *tensors: dict[str, Any]) -> dict[str, Any]:
    return {"component": component, "id": letter * 64, "tensors": list(tensors)}


def model(name: str, *parts: dict[str, Any]) -> ModelParts:
    return ModelParts(name, "draft", {"components": list(parts)}, 32, {})


def sizes(size: int, name: str = "m") -> dict[str, dict[str, int]]:
    return {name: {"model.safetensors": size}}


EMBED = part("embed_tokens", "a", tensor("e", 0))
HEAD = part("decoder", "b", tensor("h", 0, borrowed=["embed_tokens", "e"]), tensor("n", 96))


def test_a_file_that_modules_read_almost_whole_is_read_as_it_lies() -> None:
    one = model("m", EMBED, HEAD)
    places = Places([one], sizes(2 * 96 + 20))  # 192 of 212 bytes
    assert places.written(HEAD) == ([], 0)
    assert {name: (place["file"], place["offset"]) for name, place in places.layout(one, HEAD).items()} == {
        "h": ("model.safetensors", HEADER), "n": ("model.safetensors", HEADER + 96),
    }  # fmt: skip
    assert places.files(one, HEAD) == [DataFile("model.safetensors", checkpoint=("m", "model.safetensors"))]


@pytest.mark.parametrize("held", [{}, sizes(2 * 96 + 22)])
def test_a_file_of_which_much_would_lie_idle_is_not(held: dict[str, dict[str, int]]) -> None:
    one = model("m", EMBED, HEAD)
    places = Places([one], held)
    entries, size = places.written(HEAD)
    assert [(entry["name"], entry["offset"]) for entry in entries] == [("n", 0)] and size == 128  # aligned
    assert {name: (place["file"], place["offset"]) for name, place in places.layout(one, HEAD).items()} == {
        "h": ("embed_tokens.onnx.data", 0), "n": ("decoder.onnx.data", 0),
    }  # fmt: skip
    assert [file.module for file in places.files(one, HEAD)] == ["b" * 64, "a" * 64]


@pytest.mark.parametrize(
    "changed", [{"dtype": "BF16"}, {"dtype": "F16"}, {"dtype": "F64"}, {"file": "converted.bin"}], ids=str
)
def test_what_has_to_be_cast_or_converted_is_written(changed: dict[str, str]) -> None:
    odd = part("decoder", "b", tensor("n", 96, 8, **changed))
    one = model("m", EMBED, odd)
    places = Places([one], sizes(100))
    assert [entry["name"] for entry in places.written(odd)[0]] == ["n"]
    assert places.written(EMBED) == ([], 0)


def test_numbers_that_no_graph_could_read_in_place_are_written() -> None:
    """The format aligns nothing: a tensor may begin at any byte."""
    odd = part("decoder", "b", tensor("n", 97))
    one = model("m", EMBED, odd)
    assert [entry["name"] for entry in Places([one], sizes(100)).written(odd)[0]] == ["n"]


def test_whole_numbers_are_as_wide_in_a_graph_as_in_the_file() -> None:
    one = model("m", part("vision_encoder", "v", tensor("i", 0, dtype="I64")))
    assert Places([one], sizes(100)).written(one.split["components"][0]) == ([], 0)


def test_a_module_that_another_model_has_first_lies_in_that_one_s_file() -> None:
    """The second model's decoder is its own and borrows from an embedding that is held once for both."""
    own = part("decoder", "c", tensor("h", 0, borrowed=["embed_tokens", "e"]), tensor("x", 96))
    one, two = model("one", EMBED, HEAD), model("two", EMBED, own)
    places = Places([one, two], {**sizes(200, "one"), **sizes(200, "two")})
    assert {name: (place["file"], place["offset"]) for name, place in places.layout(two, own).items()} == {
        "h": ("one.model.safetensors", HEADER), "x": ("decoder.onnx.data", 0),
    }  # fmt: skip
    assert DataFile("one.model.safetensors", checkpoint=("one", "model.safetensors")) in places.files(two, own)
    written = Places([one, two], {})
    assert {name: (place["file"], place["offset"]) for name, place in written.layout(two, own).items()} == {
        "h": ("embed_tokens.onnx.data", 0), "x": ("decoder.onnx.data", 0),
    }  # fmt: skip
