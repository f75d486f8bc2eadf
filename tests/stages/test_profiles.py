"""Shape profiles: every varying input in each, lengths that agree with each other, and the recipe's word above all."""

from __future__ import annotations

import pytest

from msao_compile.errors import RecipeError
from msao_compile.manifest.schema import FileRef, Graph, ShapeProfile, TensorSpec
from msao_compile.recipe.schema import DecoderShapes, Shapes, VisionShapes
from msao_compile.stages.profiles import DRAFTED, GROWTH, SEVERAL, profiles

FILE = FileRef(path="modules/a/b.onnx", sha256="0" * 64, size_bytes=1)
SHAPES = Shapes(decoder=DecoderShapes(batch=(1, 2, 4), sequence=(1, 64, 256), kv_capacity=512))


def graph(inputs: dict[str, tuple[int | str, ...]], outputs: dict[str, tuple[int | str, ...]]) -> Graph:
    """A graph of which only names and shapes matter."""
    ends = [
        tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in side.items())
        for side in (inputs, outputs)
    ]
    return Graph(dialect="portable", opset=20, file=FILE, data=(), inputs=ends[0], outputs=ends[1])


DECODER = graph(
    {
        "attention_mask": ("batch_size", "total_sequence_length"),
        "inputs_embeds": ("batch_size", "sequence_length", 8),
        "past_key_values.0.key": ("batch_size", 2, "past_sequence_length", 4),
        "logits_positions": ("num_logits",),
    },
    {"logits": ("batch_size", "num_logits", 9)},
)


def lengths(profile: ShapeProfile, name: str, axis: int) -> tuple[int, int, int]:
    """One axis of an input at min, opt and max."""
    [found] = [one for one in profile.inputs if one.name == name]
    return found.min[axis], found.opt[axis], found.max[axis]


@pytest.mark.parametrize("which", [0, 1])
def test_the_mask_is_as_long_as_past_and_sequence_at_every_end(which: int) -> None:
    profile = profiles("decoder", DECODER, SHAPES)[which]
    mask, sequence, past = (
        lengths(profile, name, axis)
        for name, axis in (("attention_mask", 1), ("inputs_embeds", 1), ("past_key_values.0.key", 2))
    )
    assert mask == tuple(one + other for one, other in zip(sequence, past, strict=True))
    assert past[2] + sequence[0] >= 512 or sequence[2] + past[2] == 512  # the whole cache is reached


def test_a_decoder_has_a_profile_for_prompts_and_one_for_single_tokens() -> None:
    prefill, decode = profiles("decoder", DECODER, SHAPES)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert lengths(prefill, "inputs_embeds", 1) == (1, 64, 256)
    assert lengths(prefill, "past_key_values.0.key", 2)[0] == 0
    assert lengths(decode, "inputs_embeds", 1) == (1, 1, DRAFTED)  # of exactly one, weights would be kept twice
    assert lengths(decode, "past_key_values.0.key", 2) == (0, 256, 511)
    assert lengths(decode, "inputs_embeds", 0) == (1, 2, 4)


def test_without_a_decoder_in_the_recipe_the_default_cache_is_reached() -> None:
    prefill, decode = profiles("decoder", DECODER, Shapes())
    assert lengths(decode, "past_key_values.0.key", 2)[2] == Shapes().kv_capacity - 1
    assert lengths(prefill, "attention_mask", 1)[2] == Shapes().kv_capacity


def test_an_encoder_is_fastest_where_it_gives_a_typical_request_its_tokens() -> None:
    encoder = graph({"pixel_values": (1, "tiles", 3, 8, 8)}, {"image_features": ("9*tiles", 4)})
    [profile] = profiles("vision_encoder", encoder, SHAPES, tokens=18)
    assert lengths(profile, "pixel_values", 1) == (1, 2, 2 * GROWTH)


def test_packed_patches_keep_the_multiple_that_the_graph_asks_for() -> None:
    encoder = graph({"pixel_values": ("4*blocks", 6)}, {"image_features": ("blocks", 4)})
    [profile] = profiles("vision_encoder", encoder, SHAPES, tokens=100)
    assert lengths(profile, "pixel_values", 0) == (4, 400, 400 * GROWTH)


def test_the_recipe_says_how_many_pictures_there_are() -> None:
    encoder = graph({"pixel_values": (1, "tiles", 3, 8, 8)}, {"image_features": ("9*tiles", 4)})
    shapes = SHAPES.model_copy(update={"vision_encoder": VisionShapes(images=(1, 3, 5))})
    [profile] = profiles("vision_encoder", encoder, shapes, tokens=18)
    assert lengths(profile, "pixel_values", 1) == (1, 3, 5)


def test_an_embedding_also_takes_no_features_at_all() -> None:
    embed = graph(
        {"input_ids": ("batch_size", "sequence_length"), "image_features": ("9*tiles", 4)},
        {"inputs_embeds": ("batch_size", "sequence_length", 4)},
    )
    [profile] = profiles("embed_tokens", embed, SHAPES, tokens=18)
    assert lengths(profile, "image_features", 0) == (0, 18, 18 * GROWTH)
    assert lengths(profile, "input_ids", 1) == (1, 64, 256)


def test_a_range_by_name_is_taken_for_any_length() -> None:
    shapes = SHAPES.model_copy(update={"dims": {"tiles": (2, 4, 6)}})
    encoder = graph({"pixel_values": (1, "tiles", 3, 8, 8)}, {"image_features": ("9*tiles", 4)})
    [profile] = profiles("vision_encoder", encoder, shapes)
    assert lengths(profile, "pixel_values", 1) == (2, 4, 6)


def test_a_length_may_have_a_dot_in_its_name() -> None:
    encoder = graph({"vision_position_ids.0": ("vision_position_ids.0_axis0", 3)}, {"image_features": (1, 2)})
    [profile] = profiles("vision_encoder", encoder, SHAPES)
    assert lengths(profile, "vision_position_ids.0", 0) == SEVERAL


def test_a_module_of_fixed_shapes_has_no_profile() -> None:
    assert profiles("vision_encoder", graph({"pixel_values": (1, 3)}, {"image_features": (1, 2)}), SHAPES) == ()


def test_a_length_that_follows_from_nothing_names_the_table_to_fill() -> None:
    odd = graph({"pixel_values": ("__import__('os').getpid()", 3)}, {"image_features": (1, 2)})
    with pytest.raises(RecipeError, match=r"\[shapes.dims\]"):
        profiles("vision_encoder", odd, SHAPES)
