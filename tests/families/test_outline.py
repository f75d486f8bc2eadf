"""Every parameter of a model is in exactly one component, found from structure alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers
from checkpoints import IMAGE_TOKEN, QWEN_TOWER, TEXT, TOWER, VIDEO_TOKEN

from msao_compile.families.checkpoint import skeleton
from msao_compile.families.outline import Part, bytes_of, outline

VISION = {"model_type": "clip_vision_model", **TOWER}
LLAMA = {"model_type": "llama", **TEXT}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
WHISPER = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 60,
           "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 30, "pad_token_id": 0}  # fmt: skip


def llava() -> Any:
    return transformers.LlavaConfig(
        text_config=LLAMA, vision_config=VISION, image_token_index=IMAGE_TOKEN, tie_word_embeddings=False
    )


def smolvlm() -> Any:
    return transformers.SmolVLMConfig(
        text_config=LLAMA, vision_config=TOWER, scale_factor=2, image_token_id=IMAGE_TOKEN, tie_word_embeddings=True
    )


def qwen() -> Any:
    return transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **ROPE}, vision_config=QWEN_TOWER, image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN,
        tie_word_embeddings=False,
    )  # fmt: skip


def video_llava() -> Any:
    return transformers.VideoLlavaConfig(text_config=LLAMA, vision_config=VISION, tie_word_embeddings=False)


def qwen_audio() -> Any:
    audio = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
             "num_mel_bins": 8, "max_source_positions": 20}  # fmt: skip
    return transformers.Qwen2AudioConfig(audio_config=audio, text_config={"model_type": "qwen2", **TEXT})


def janus() -> Any:
    tokens = {"embed_dim": 8, "num_embeddings": 12, "base_channels": 32, "channel_multiplier": [1, 1],
              "num_res_blocks": 1, "image_token_embed_dim": 8, "projection_dim": 8}  # fmt: skip
    tower = {**TOWER, "num_image_tokens": 4, "projection_dim": 32}
    return transformers.JanusConfig(text_config=LLAMA, vision_config=tower, vq_config=tokens)


def clip() -> Any:
    text = {**LAYERS, "vocab_size": 60, "max_position_embeddings": 20}
    return transformers.CLIPConfig(text_config=text, vision_config=TOWER, projection_dim=8)


def blip2() -> Any:
    opt = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
           "vocab_size": 60, "word_embed_proj_dim": 16, "max_position_embeddings": 20}  # fmt: skip
    middle = {**LAYERS, "encoder_hidden_size": 16, "vocab_size": 60}
    return transformers.Blip2Config(vision_config=TOWER, qformer_config=middle, text_config=opt)


def captions() -> Any:
    gpt = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 20}
    decoder = transformers.GPT2Config(**gpt, add_cross_attention=True, is_decoder=True)
    return transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**TOWER), decoder
    )


FAMILIES: dict[str, tuple[Callable[[], Any], str, dict[str, str]]] = {
    # family -> config, class, and for some parameters the component they must be in
    "llava": (llava, "LlavaForConditionalGeneration", {
        "model.vision_tower.pre_layrnorm.weight": "vision_encoder",
        "model.multi_modal_projector.linear_1.weight": "vision_encoder",
        "model.language_model.embed_tokens.weight": "embed_tokens", "model.language_model.norm.weight": "decoder",
        "lm_head.weight": "decoder",
    }),
    "smolvlm": (smolvlm, "SmolVLMForConditionalGeneration", {
        "model.connector.modality_projection.proj.weight": "vision_encoder",
        "model.text_model.embed_tokens.weight": "embed_tokens",
    }),
    "qwen2_5_vl": (qwen, "Qwen2_5_VLForConditionalGeneration", {"model.visual.merger.ln_q.weight": "vision_encoder"}),
    "video_llava": (video_llava, "VideoLlavaForConditionalGeneration", {
        "model.image_tower.pre_layrnorm.weight": "vision_encoder",
        "model.video_tower.pre_layrnorm.weight": "video_encoder",
        "model.multi_modal_projector.linear_1.weight": "vision_encoder",
    }),
    "qwen2_audio": (qwen_audio, "Qwen2AudioForConditionalGeneration", {
        "model.audio_tower.layer_norm.weight": "audio_encoder",
        "model.multi_modal_projector.linear.weight": "audio_encoder",
    }),
    "janus": (janus, "JanusForConditionalGeneration", {
        "model.aligner.fc1.weight": "vision_encoder", "model.generation_aligner.fc1.weight": "other",
        "model.vqmodel.quant_conv.weight": "other",
    }),
    "clip": (clip, "CLIPModel", {
        "text_projection.weight": "text_encoder", "visual_projection.weight": "vision_encoder",
        "text_model.embeddings.token_embedding.weight": "text_encoder", "logit_scale": "classifier",
    }),
    "blip-2": (blip2, "Blip2ForConditionalGeneration", {
        "query_tokens": "vision_encoder", "qformer.layernorm.weight": "vision_encoder",
        "language_projection.weight": "vision_encoder",
        "language_model.model.decoder.embed_tokens.weight": "embed_tokens",
        "language_model.model.decoder.embed_positions.weight": "decoder",
    }),
    "whisper": (lambda: transformers.WhisperConfig(**WHISPER), "WhisperForConditionalGeneration", {
        "model.encoder.conv1.weight": "audio_encoder", "model.decoder.layer_norm.weight": "decoder",
        "model.decoder.embed_tokens.weight": "embed_tokens",
    }),
    "vision-encoder-decoder": (captions, "VisionEncoderDecoderModel", {
        "encoder.layernorm.weight": "vision_encoder", "enc_to_dec_proj.weight": "vision_encoder",
        "decoder.transformer.wte.weight": "embed_tokens", "decoder.transformer.wpe.weight": "decoder",
    }),
}  # fmt: skip


def opened(family: str) -> Any:
    make, name, _ = FAMILIES[family]
    return skeleton(make(), getattr(transformers, name))


def owners(parts: tuple[Part, ...]) -> dict[str, str]:
    return {name: part.component for part in parts for name in part.parameters}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_exactly_one_component(family: str) -> None:
    model = opened(family)
    parts = outline(model)
    held = [name for part in parts for name in part.parameters]
    assert sorted(held) == sorted(name for name, _ in model.named_parameters())
    assert sum(part.params for part in parts) == sum(one.numel() for one in model.parameters())
    assert all(part.found_by for part in parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parameter_is_in_the_component_that_a_request_needs_it_for(family: str) -> None:
    found, wanted = owners(outline(opened(family))), FAMILIES[family][2]
    assert {name: found.get(name) for name in wanted} == wanted


def test_tied_weights_are_counted_once_as_the_embedding() -> None:
    tied, parts = opened("smolvlm"), {part.component: part for part in outline(opened("smolvlm"))}
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert parts["embed_tokens"].params == TEXT["vocab_size"] * TEXT["hidden_size"]
    assert not any("lm_head" in name for name in parts["decoder"].parameters)


def test_it_is_told_what_a_component_was_found_by() -> None:
    parts = {part.component: part.found_by for part in outline(opened("llava"))}
    assert parts == {
        "vision_encoder": "get_encoder('image'), get_image_features",
        "embed_tokens": "get_input_embeddings",
        "decoder": "get_decoder: model.language_model, get_output_embeddings",
    }


def test_bytes_by_precision_count_scales_and_leave_vectors_at_16_bits() -> None:
    assert bytes_of(params=3232, matrix_params=3200) == {
        "fp32": 12928,
        "fp16": 6464,
        "bf16": 6464,
        "int8": 3200 + 64,
        "int4": 3200 * 9 // 16 + 64,
    }
