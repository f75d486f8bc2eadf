"""From a processor's tensors to features: one picture at a time, without padding, with what the host computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from msao_compile.errors import InputError
from msao_compile.manifest.schema import DecoderFacts, Encoder, HostCall, Model
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.encoding import _without_padding, encode, host_inputs, items
from msao_compile.runtime.session import ModelSession, Request

Arrays = dict[str, np.ndarray]
GRID = np.array([[1, 2, 2], [1, 2, 4]], np.int64)
PATCHES = np.arange(12 * 3, dtype=np.float32).reshape(12, 3)


class Sums:
    """Stands for an encoder: a feature for each entry of the first axis, the sum of its numbers."""

    def __init__(self, kinds: Mapping[str, str], shapes: Mapping[str, tuple[int | str, ...]]) -> None:
        self.types, self.inputs, self.fed = kinds, shapes, []

    def run(self, feed: Arrays) -> Arrays:
        self.fed.append(feed)
        pixels = feed["pixel_values"]
        return {"image_features": pixels.reshape(len(pixels), -1).sum(-1, keepdims=True)}


def model(**changed: object) -> Model:
    encoder = Encoder(component="vision_encoder", modality="image", each=False, **changed)  # type: ignore[arg-type]
    facts = DecoderFacts(hidden_size=1, vocab_size=9, kv_capacity=9, tokens="input_ids", position="rope", facts={})
    return Model(
        name="edge", role="draft", family="any", components={"vision_encoder": "a" * 64}, encoders=(encoder,),
        decoder=facts, tokenizer="t", preprocessor="p", files=(),
    )  # fmt: skip


def encoded(given: Arrays, engine: Sums, **changed: object) -> Arrays:
    return encode(model(**changed), {"vision_encoder": engine}, given, Clock())


def test_text_alone_runs_no_encoder() -> None:
    assert encoded({"input_ids": np.ones((1, 3), np.int64)}, Sums({}, {}), inputs=("pixel_values",)) == {}


def test_packed_pictures_are_taken_apart_by_their_grids() -> None:
    found = list(items({"pixel_values": PATCHES, "image_grid_thw": GRID}))
    assert [part["pixel_values"].shape[0] for part in found] == [4, 8]
    assert [part["image_grid_thw"].tolist() for part in found] == [[[1, 2, 2]], [[1, 2, 4]]]
    assert np.array_equal(np.concatenate([part["pixel_values"] for part in found]), PATCHES)


def test_other_tensors_are_taken_apart_by_their_first_axis() -> None:
    pixels, scale = np.arange(6).reshape(2, 3), np.ones(7)
    found = list(items({"pixel_values": pixels, "scale": scale}))
    assert [part["pixel_values"].tolist() for part in found] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert all(part["scale"] is scale for part in found)  # of another length: it belongs to all


STRIP = np.arange(3 * 2 * 12, dtype=np.float32).reshape(1, 3, 2, 12)


def test_pictures_side_by_side_are_taken_apart_by_their_sizes() -> None:
    found = list(items({"pixel_values": STRIP, "target_sizes": np.array([[1, 2], [2, 2]])}))
    assert [part["pixel_values"].shape for part in found] == [(1, 3, 2, 4), (1, 3, 2, 8)]
    assert [part["target_sizes"].tolist() for part in found] == [[[1, 2]], [[2, 2]]]
    assert np.array_equal(np.concatenate([part["pixel_values"] for part in found], -1), STRIP)


@pytest.mark.parametrize("sizes", [[1, 2], [[1, 2]], [[1, 2], [2, 3]], [[-1, -2], [2, 2]], [[1.0, 2.0], [2.0, 2.0]]])
def test_sizes_that_do_not_describe_the_strip_are_refused(sizes: object) -> None:
    with pytest.raises(InputError, match="does not describe the strip"):
        list(items({"pixel_values": STRIP, "target_sizes": np.array(sizes)}))


@pytest.mark.parametrize(
    "grid", [[1, 2, 4], [[2, 4]], [[1, 2, 3]], [[1, 8, 1]], [[-1, -2, 4]], [[1.0, 2.0, 4.0]], [[1, 2, 2]]]
)
def test_a_grid_that_does_not_describe_the_patches_is_refused(grid: object) -> None:
    with pytest.raises(InputError, match="does not describe the 12 patches"):
        list(items({"pixel_values": PATCHES, "image_grid_thw": np.array(grid)}))


def test_features_of_pictures_that_are_encoded_one_by_one_are_joined_in_order() -> None:
    names = ("pixel_values", "image_grid_thw")
    engine = Sums({"pixel_values": "float32"}, {"pixel_values": ("num_patches", 3)})
    tower = model(inputs=names).encoders[0].model_copy(update={"each": True})
    found = encode(model(inputs=names).model_copy(update={"encoders": (tower,)}), {"vision_encoder": engine},
                   {"pixel_values": PATCHES, "image_grid_thw": GRID}, Clock())  # fmt: skip
    assert [len(fed["pixel_values"]) for fed in engine.fed] == [4, 8]
    assert np.array_equal(found["image_features"], PATCHES.sum(-1, keepdims=True))


def test_what_comes_without_its_companion_is_refused() -> None:
    with pytest.raises(InputError, match="pixel_values comes without image_grid_thw: give everything that the proc"):
        encoded({"pixel_values": PATCHES}, Sums({}, {}), inputs=("pixel_values", "image_grid_thw"))


@pytest.mark.parametrize("kind", ["f8", "f2", "i8", "u1"])
def test_pixels_of_another_type_are_refused(kind: str) -> None:
    engine = Sums({"pixel_values": "float32"}, {"pixel_values": ("n", 3)})
    with pytest.raises(InputError, match=r"pixel_values has type \w+ where this model takes float32"):
        encoded({"pixel_values": PATCHES.astype(kind)}, engine, inputs=("pixel_values",))


def test_masks_are_taken_as_numbers_and_as_truths() -> None:
    names = ("pixel_values", "mask")
    engine = Sums({"pixel_values": "float32", "mask": "bool"}, {"pixel_values": ("n", 3), "mask": ("n",)})
    encoded({"pixel_values": PATCHES, "mask": np.ones(12, np.int64)}, engine, inputs=names)
    assert engine.fed[0]["mask"].dtype == bool


def test_without_a_mask_every_pixel_of_a_tile_is_one() -> None:
    names = ("pixel_values", "pixel_attention_mask")
    engine = Sums(
        {"pixel_values": "float32", "pixel_attention_mask": "bool"},
        {"pixel_values": (1, "tiles", 3, 4, 6), "pixel_attention_mask": (1, "tiles", 4, 6)},
    )
    encoded({"pixel_values": np.ones((1, 2, 3, 4, 6), np.float32)}, engine, inputs=names)
    assert engine.fed[0]["pixel_attention_mask"].shape == (1, 2, 4, 6)
    assert engine.fed[0]["pixel_attention_mask"].all()


@pytest.mark.parametrize("shape", [(1, 3, 4, 6), (1, 2, 4, 5), (1, 4, 6), (2, 2, 4, 6)])
def test_a_mask_of_another_shape_than_the_tiles_is_refused(shape: tuple[int, ...]) -> None:
    engine = Sums(
        {"pixel_values": "float32", "pixel_attention_mask": "bool"},
        {"pixel_values": (1, "tiles", 3, "rows", "columns"), "pixel_attention_mask": (1, "tiles", "rows", "columns")},
    )
    given = {"pixel_values": np.ones((1, 2, 3, 4, 6), np.float32), "pixel_attention_mask": np.ones(shape, np.int64)}
    with pytest.raises(InputError, match="pixel_attention_mask has shape"):
        encoded(given, engine, inputs=("pixel_values", "pixel_attention_mask"))


def test_patches_without_a_place_are_padding() -> None:
    places = np.array([[[0, 0], [1, 0], [-1, -1]]])
    item = {"pixel_values": PATCHES[None, :3], "image_position_ids": places, "num_frames": np.ones(1, np.int64)}
    found = _without_padding(item)
    assert np.array_equal(found["pixel_values"], PATCHES[None, :2])
    assert found["image_position_ids"].tolist() == [[[0, 0], [1, 0]]]
    assert found["num_frames"] is item["num_frames"]


def session(tokens: str) -> ModelSession:
    """Without modules; its pictures stand where token 4 is."""
    found = model(inputs=("pixel_values",), placeholder=4)
    decoder = found.decoder.model_copy(update={"tokens": tokens})
    return ModelSession(found.model_copy(update={"decoder": decoder}), Path(), {}, None)


def test_placeholders_are_counted_in_the_text_that_an_encoder_reads() -> None:
    features, answer = {"image_features": np.ones((2, 1), np.float32)}, np.array([1])
    reads = session("decoder_input_ids")
    reads.check_placeholders(Request(answer, {"input_ids": np.array([[4, 9, 4]])}), features)
    with pytest.raises(InputError, match="holds 1 picture placeholder where the pictures give 2 features"):
        reads.check_placeholders(Request(answer, {"input_ids": np.array([[4, 9, 9]])}), features)
    with pytest.raises(InputError, match="holds 0 picture placeholders where"):
        session("input_ids").check_placeholders(Request(answer, {"input_ids": np.array([[4, 9, 4]])}), features)


def test_whole_zero_tiles_are_padding_and_left_out() -> None:
    pixels = np.ones((1, 3, 3, 8, 8), np.float32)
    pixels[0, 1] = 0
    item = {"pixel_values": pixels, "pixel_attention_mask": np.arange(3)[None, :, None, None] * np.ones((1, 3, 8, 8))}
    found = _without_padding(item)
    assert found["pixel_values"].shape == (1, 2, 3, 8, 8)
    assert found["pixel_attention_mask"][0, :, 0, 0].tolist() == [0, 2]


def test_a_black_picture_alone_is_a_picture() -> None:
    item = {"pixel_values": np.zeros((1, 1, 3, 8, 8), np.float32), "pixel_attention_mask": np.ones((1, 1, 8, 8))}
    assert _without_padding(item)["pixel_values"].shape == (1, 1, 3, 8, 8)


def test_a_picture_is_cut_to_its_own_size() -> None:
    item = {"pixel_values": np.ones((1, 3, 8, 8), np.float32), "image_sizes": np.array([[4, 6]])}
    assert _without_padding(item)["pixel_values"].shape == (1, 3, 4, 6)


def test_patches_are_cut_to_those_of_the_picture() -> None:
    item = {"pixel_values": np.ones((1, 20, 12), np.float32), "pixel_attention_mask": np.ones((1, 20)),
            "spatial_shapes": np.array([[3, 4]])}  # fmt: skip
    found = _without_padding(item)
    assert (found["pixel_values"].shape, found["pixel_attention_mask"].shape) == ((1, 12, 12), (1, 12))
    assert found["spatial_shapes"].tolist() == [[3, 4]]


def call(function: str, outputs: tuple[str, ...], source: str = "image_grid_thw", **settings: object) -> HostCall:
    return HostCall(function=function, settings=settings, inputs={"grid_thw": source}, outputs=outputs)


def test_the_host_computes_what_a_tower_is_told_of_its_grid() -> None:
    calls = (call("vision_cu_seqlens", ("cu_seqlens",)),
             call("vision_position_ids", ("positions",), spatial_merge_size=2))  # fmt: skip
    found = host_inputs(calls, {"image_grid_thw": np.array([[2, 2, 4]])})
    assert found["cu_seqlens"].tolist() == [0, 8, 16]
    assert found["positions"].shape == (16, 2)


def test_the_frames_of_a_clip_are_as_many_pictures() -> None:
    clip = {"video_grid_thw": np.array([[3, 2, 4]])}
    [ends] = host_inputs((call("vision_cu_seqlens", ("ends",), "video_grid_thw:frames"),), clip).values()
    assert ends.tolist() == [0, 8, 16, 24]


def test_a_call_reads_what_an_earlier_one_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {"one": lambda mask: (mask + 1,), "two": lambda rows: (rows * 10,)}
    monkeypatch.setattr("msao_compile.runtime.encoding.FUNCTIONS", functions)
    calls = (HostCall(function="one", settings={}, inputs={"mask": "mask"}, outputs=("rows",)),
             HostCall(function="two", settings={}, inputs={"rows": "rows"}, outputs=("places",)))  # fmt: skip
    found = host_inputs(calls, {"mask": np.array([1, 2])})
    assert (found["rows"].tolist(), found["places"].tolist()) == ([2, 3], [20, 30])


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("mask:lengths", [3, 1]),
        ("mask:lengths 2", [2, 1, 1, 0]),
        ("grid:first", [1, 2, 2]),
        ("grid:times 1 2 3", [[1, 4, 6], [1, 4, 12]]),
        ("sound:joined", [[0, 1, 2], [4, 5, 6]]),
    ],
)
def test_what_a_call_reads_is_made_of_the_processor_s_tensors(
    monkeypatch: pytest.MonkeyPatch, source: str, given: list[object]
) -> None:
    monkeypatch.setattr("msao_compile.runtime.encoding.FUNCTIONS", {"same": lambda value: (value,)})
    item = {"sound": np.arange(8).reshape(1, 2, 4), "sound_mask": np.array([[1, 1, 1, 0]]), "grid": GRID,
            "mask": np.array([[1, 1, 1, 0], [1, 0, 0, 0]])}  # fmt: skip
    item = {name: value for name, value in item.items() if name != "mask" or source.startswith("mask")}
    call = HostCall(function="same", settings={}, inputs={"value": source}, outputs=("out",))
    assert host_inputs((call,), item)["out"].tolist() == given


def test_each_picture_has_its_own_crops() -> None:
    given = {"pixel_values": np.zeros((3, 1, 4, 4)), "pixel_values_local": np.arange(3).reshape(3, 1, 1, 1),
             "num_local_patches": np.array([2, 0, 1])}  # fmt: skip
    found = [item["pixel_values_local"].ravel().tolist() for item in items(given)]
    assert found == [[0, 1], [], [2]]
    with pytest.raises(InputError, match=r"pixel_values_local has 3 crops where num_local_patches says \[2, 2, 1\]"):
        list(items({**given, "num_local_patches": np.array([2, 2, 1])}))


@pytest.mark.parametrize("counts", [{}, {"num_local_patches": np.array([2, 0])}])
def test_a_picture_without_crops_is_refused_where_the_graph_takes_some(counts: Arrays) -> None:
    names, crops = ("pixel_values", "pixel_values_local", "num_local_patches"), {"pixel_values_local": np.ones((2, 1))}
    with pytest.raises(InputError, match="comes without crops"):
        encoded({"pixel_values": np.ones((2, 1)), **crops, **counts}, Sums({}, {}), inputs=names)
