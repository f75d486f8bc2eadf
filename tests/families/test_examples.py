"""Example inputs found by trial: they run, their sizes differ where the family's do, and an unknown kind says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from msao_compile.errors import InputError, UnsupportedFamily
from msao_compile.families.examples import Medium, medium, modalities, request
from msao_compile.families.examples.kinds import look, special_ids, tensors
from msao_compile.families.examples.tiles import best_pinpoint
from msao_compile.families.known_sizes import known_sizes
from msao_compile.families.subject import decoded, describe, rope_kind

VOCABULARY = 120
PICTURE, CLIP, SOUND = 100, 101, 102
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 16,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "max_source_positions": 20,
}


def built(cls: str, config: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return getattr(transformers, cls)(config).eval()


def llava(tower: str = "clip_vision_model", **more: Any) -> transformers.PreTrainedModel:
    config = transformers.LlavaConfig(
        vision_config={"model_type": tower, **TOWER},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=PICTURE,
        **more,
    )
    return built("LlavaForConditionalGeneration", config)


def llava_pixtral() -> transformers.PreTrainedModel:
    return llava("pixtral", vision_feature_layer=-1, vision_feature_select_strategy="full")


def few_patches() -> transformers.PreTrainedModel:
    """Its pictures have four features or one, which beside 7 or 10 words are equally many tokens."""
    config = transformers.LightOnOcrConfig(
        vision_config={"model_type": "pixtral", **TOWER, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "qwen3", **TEXT},
        image_token_id=PICTURE,
        spatial_merge_size=2,
    )
    return built("LightOnOcrForConditionalGeneration", config)


def llava_next() -> transformers.PreTrainedModel:
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **TOWER},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=PICTURE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    return built("LlavaNextForConditionalGeneration", config)


def qwen() -> transformers.PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1},
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=PICTURE,
        video_token_id=CLIP,
        vision_start_token_id=103,
        vision_end_token_id=104,
    )
    return built("Qwen2VLForConditionalGeneration", config)


def windowed() -> transformers.PreTrainedModel:
    """Windows of 8 x 8 merged patches; published checkpoints have 4 x 4."""
    tower = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "intermediate_size": 32}
    config = transformers.Qwen2_5_VLConfig(
        vision_config={**tower, "out_hidden_size": 32, "window_size": 64, "fullatt_block_indexes": [0]},
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]}},
        image_token_id=PICTURE,
        video_token_id=CLIP,
        vision_start_token_id=103,
        vision_end_token_id=104,
    )
    return built("Qwen2_5_VLForConditionalGeneration", config)


def idefics() -> transformers.PreTrainedModel:
    config = transformers.Idefics3Config(
        vision_config={**TOWER, "hidden_size": 32},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=PICTURE,
        scale_factor=2,
    )
    return built("Idefics3ForConditionalGeneration", config)


def gemma() -> transformers.PreTrainedModel:
    config = transformers.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **TOWER},
        text_config={**TEXT, "sliding_window": 8},
        image_token_id=PICTURE,
        boi_token_index=103,
        eoi_token_index=104,
        mm_tokens_per_image=4,
    )
    return built("Gemma3ForConditionalGeneration", config)


def mllama() -> transformers.PreTrainedModel:
    tower = {**TOWER, "attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [0, 1]}
    config = transformers.MllamaConfig(
        vision_config={**tower, "max_num_tiles": 4, "vision_output_dim": 48},
        text_config={**TEXT, "num_hidden_layers": 2, "cross_attention_layers": [1]},
        image_token_index=PICTURE,
    )
    return built("MllamaForConditionalGeneration", config)


def hearing() -> transformers.PreTrainedModel:
    config = transformers.Qwen2AudioConfig(
        audio_config={**WHISPER, "model_type": "qwen2_audio_encoder"},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_id=SOUND,
    )
    return built("Qwen2AudioForConditionalGeneration", config)


def whisper() -> transformers.PreTrainedModel:
    special = {"decoder_start_token_id": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.WhisperConfig(**WHISPER, vocab_size=VOCABULARY, max_target_positions=32, **special)
    return built("WhisperForConditionalGeneration", config)


def clip() -> transformers.PreTrainedModel:
    text = {**TEXT, "projection_dim": 16, "eos_token_id": 119}
    return built("CLIPModel", transformers.CLIPConfig(text_config=text, vision_config=TOWER, projection_dim=16))


FAMILIES: dict[str, tuple[Callable[[], transformers.PreTrainedModel], tuple[str, ...]]] = {
    "plain pixels": (llava, ("image",)),
    "pixels of any size": (llava_pixtral, ("image",)),
    "anyres": (llava_next, ("image",)),
    "packed grids": (qwen, ("image", "video")),
    "tiles": (idefics, ("image",)),
    "token types": (gemma, ("image",)),
    "cross attention": (mllama, ("image",)),
    "sounds in text": (hearing, ("audio",)),
    "speech": (whisper, ("audio",)),
    "pairs": (clip, ("image",)),
}


def examples(model: transformers.PreTrainedModel, modality: Any, variant: int) -> tuple[Medium, dict[str, np.ndarray]]:
    chance = np.random.default_rng(variant)
    found = medium(model, modality, variant, chance)
    return found, request(model, [found], 5 + variant, chance)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_example_runs_through_the_whole_model(kind: str) -> None:
    assert "TRANSFORMERS_DISABLE_TORCH_CHECK" not in os.environ
    build, expected = FAMILIES[kind]
    model = build()
    assert modalities(model) == expected
    for modality in expected:
        for variant in (0, 1, 2):
            found, inputs = examples(model, modality, variant)
            assert set(found.inputs) <= set(inputs)
            assert all(value.dtype in (np.float32, np.int64, np.bool_) for value in inputs.values())
            if found.placeholder is not None:
                assert int((inputs["input_ids"] == found.placeholder).sum()) == sum(found.tokens)
            with torch.no_grad():
                model(**tensors(inputs))


@pytest.mark.parametrize(
    ("kind", "modality", "name", "axes"),
    [
        ("anyres", "image", "pixel_values", {1}),
        ("pixels of any size", "image", "pixel_values", {2, 3}),
        ("packed grids", "image", "pixel_values", {0}),
        ("packed grids", "video", "pixel_values_videos", {0}),
        ("tiles", "image", "pixel_attention_mask", {1}),
        ("sounds in text", "audio", "input_features", {0}),
        ("pairs", "image", "pixel_values", {0}),
    ],
)
def test_a_picture_of_another_size_differs_in_the_axes_of_its_size(
    kind: str, modality: str, name: str, axes: set[int]
) -> None:
    model = FAMILIES[kind][0]()
    one, other = (examples(model, modality, variant)[1][name].shape for variant in (0, 1))
    assert {axis for axis, (left, right) in enumerate(zip(one, other, strict=True)) if left != right} == axes


def test_two_pictures_have_a_run_each_of_their_own_length() -> None:
    assert medium(qwen(), "image", 2, np.random.default_rng(0)).tokens == (6, 6)
    for model in (llava_next(), llava_pixtral()):
        alone = [medium(model, "image", variant, np.random.default_rng(0)).tokens for variant in (0, 1)]
        assert medium(model, "image", 2, np.random.default_rng(0)).tokens == (*alone[0], *alone[1])
        assert alone[0] != alone[1]


@pytest.mark.parametrize(
    "build", [few_patches, *(build for build, _ in FAMILIES.values() if build not in (whisper, clip))]
)
def test_the_two_examples_have_unlike_lengths(build: Callable[[], transformers.PreTrainedModel]) -> None:
    one, other = (example["input_ids"].shape[1] for example in describe(build()).examples)
    assert one != other


def test_squares_have_a_height_and_a_width() -> None:
    """Their sizes are equal in both pictures, the axes that have them are two."""
    made = [(np.zeros((1, 3, side, side), np.float32), np.array([[side, side]])) for side in (32, 16)]
    one, other = (Medium("image", {"pixel_values": of, "image_sizes": size}, (1,), PICTURE) for of, size in made)
    [found] = known_sizes((one, other), ())
    assert found.where == (("pixel_values", 2), ("pixel_values", 3))


def test_the_first_picture_has_more_windows() -> None:
    """A trace tells by that what varies, and takes the two bounds of a single window for a number."""
    model = windowed()
    asked = [describe(model).examples[which] for which in (0, 1)]
    assert [len(example["image_grid_thw"]) for example in asked] == [1, 1]
    assert [len(example["vision_window_index.2.1"]) for example in asked] == [3, 2]


def test_a_picture_and_a_clip_share_a_request() -> None:
    model, chance = qwen(), np.random.default_rng(0)
    media = [medium(model, modality, 0, chance) for modality in ("image", "video")]
    inputs = request(model, media, 8, chance)
    assert {1, 2} <= set(inputs["mm_token_type_ids"].ravel().tolist())
    with torch.no_grad():
        model(**tensors(inputs))
    with pytest.raises(InputError, match="variant 2"):
        request(model, [media[0], media[0]], 8, chance)


def test_text_alone_runs_or_is_refused() -> None:
    inputs = request(qwen(), (), 7, np.random.default_rng(0))
    assert inputs["input_ids"].shape == (1, 8) and set(inputs) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    for model in (whisper(), clip()):
        with pytest.raises(UnsupportedFamily, match="without media"):
            request(model, (), 7, np.random.default_rng(0))


def test_text_ids_mean_nothing_to_the_config() -> None:
    model = gemma()
    inputs = request(model, (), 200, np.random.default_rng(0))
    special = special_ids(model.config)
    assert {PICTURE, 103, 104} <= special
    assert not special & set(inputs["input_ids"][0, 1:].tolist())


def test_cross_attention_sees_a_picture_from_its_place_on() -> None:
    model = mllama()
    found, inputs = examples(model, "image", 0)
    place = int(np.argmax(inputs["input_ids"][0] == PICTURE))
    seen = inputs["cross_attention_mask"][0, :, 0]
    assert not seen[:place].any() and (seen[place:] == found.inputs["aspect_ratio_mask"][0, 0]).all()


def test_speech_answers_with_ids_that_begin_with_the_start_id() -> None:
    found, inputs = examples(whisper(), "audio", 0)
    assert found.tokens == () and found.placeholder is None
    assert inputs["decoder_input_ids"][0, 0] == 3 and set(inputs) == {"input_features", "decoder_input_ids"}


def test_the_best_resolution_wastes_least_of_those_that_keep_all() -> None:
    assert best_pinpoint(16, 30, ((16, 32), (32, 16), (32, 32))) == (16, 32)
    assert best_pinpoint(30, 30, ((16, 32), (32, 16), (32, 32))) == (32, 32)


class _Odd(nn.Module):
    """A model whose pictures are of a kind that no processor makes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = llava().config

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"seven axes, not {pixel_values.ndim}")

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        return input_ids


def test_an_unknown_kind_is_refused_with_everything_that_was_tried() -> None:
    model: Any = _Odd()
    assert modalities(model) == ("image",) and look(model).takes("image") == ("pixel_values",)
    with pytest.raises(UnsupportedFamily) as refused:
        medium(model, "image", 0, np.random.default_rng(0))
    said = str(refused.value)
    assert "get_image_features(pixel_values)" in said and "forward(input_ids, pixel_values)" in said
    assert "[1, 3, 16, 16]: ValueError: seven axes, not 4" in said
    assert "[1, 1, 3, 16, 16]: ValueError: seven axes, not 5" in said
    assert said.endswith("leave it out: [export] exclude = ['vision_encoder'].")


def test_positions_of_a_config_that_another_family_serves_are_that_family_s() -> None:
    model = qwen()
    assert rope_kind(model) == "qwen2_vl"
    model.config.model_type = "qwen2_5_vl"
    assert rope_kind(model) == "qwen2_5_vl"
    model.config.model_type = "moon"
    assert rope_kind(model) == "qwen2_vl"


def test_a_model_that_writes_in_a_way_of_its_own_is_refused_and_one_that_writes_nothing_is_not_decoded() -> None:
    class Blocks:
        config = SimpleNamespace(is_encoder_decoder=False)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    class Diffusing(Blocks):
        def generate(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.forward(input_ids)

    for kind in (Blocks, Diffusing):
        kind.__module__ = "transformers.models.blocks.modeling_blocks"
    assert decoded(Blocks()) is None
    with pytest.raises(UnsupportedFamily, match="Diffusing has a way of its own to write"):
        decoded(Diffusing())
    assert decoded(qwen()) == "input_ids" and decoded(whisper()) == "decoder_input_ids" and decoded(clip()) is None
