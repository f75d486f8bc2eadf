"""Tiny random checkpoints of real families as `save_pretrained` writes them, and references made by transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

FAMILIES = ("idefics3", "smolvlm", "llava", "qwen2_5_vl")
CLASSES = {
    "idefics3": "Idefics3ForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "clip": "CLIPModel",
    "whisper": "WhisperForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "florence2": "Florence2ForConditionalGeneration",
}
SIDE_FILES = Path(__file__).resolve().parents[1] / "calibration" / "models" / "shapes-edge"
VOCABULARY, IMAGE_TOKEN, VIDEO_TOKEN = 722, 4, 5  # the vocabulary of SIDE_FILES
NEW_TOKENS = 6
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 72,
    "patch_size": 12, "initializer_range": 0.1,
}  # fmt: skip
QWEN_TOWER = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    "tokens_per_second": 4, "initializer_range": 0.1,
}  # fmt: skip
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 16, "max_source_positions": 20,
    "max_target_positions": 64, "init_std": 0.1,
}  # fmt: skip
BART = {
    "model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": VOCABULARY,
    "max_position_embeddings": 128, "decoder_start_token_id": 3, "forced_eos_token_id": None, "init_std": 0.1,
}  # fmt: skip
DAVIT = {
    "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
    "patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [1, 2], "num_groups": [1, 2], "window_size": 2,
    "projection_dim": 32, "max_temporal_embeddings": 4, "max_position_embeddings": 10,
}  # fmt: skip
# transformers 5's own parameter names -> the names in the checkpoints that stand on the hub, longest prefix first
HUB = {
    "llava": (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    "qwen2_5_vl": (("model.visual.", "visual."), ("model.language_model.", "model.")),
}


def write(family: str, folder: Path, spelling: str = "saved") -> Path:
    """A checkpoint of about 200 kB: what `save_pretrained` writes, the hub's names, or transformers 5's own (`module`).

    Those of Idefics3's kind come with the tokenizer and processor of the shapes models, which fit them.
    """
    with _seeded(family):
        model = getattr(transformers, CLASSES[family])(_config(family)).eval()
        _perturb(model)
    if model.can_generate():
        model.generation_config.eos_token_id = None  # a random model must not stop by chance
    if spelling == "saved":
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, save_original_format=False)
    if spelling == "hub":
        file = folder / "model.safetensors"
        save_file({_hub_name(family, name): value for name, value in load_file(file).items()}, file, {"format": "pt"})
    if family in ("idefics3", "smolvlm"):
        for path in SIDE_FILES.iterdir():
            if path.name.startswith(("tokenizer", "processor", "chat_template")):
                shutil.copy(path, folder)
    return folder


def _config(family: str) -> Any:
    if family in ("idefics3", "smolvlm"):
        return getattr(transformers, CLASSES[family].removesuffix("ForConditionalGeneration") + "Config")(
            text_config={"model_type": "llama", **TEXT}, vision_config=TOWER, scale_factor=2,
            image_token_id=IMAGE_TOKEN, tie_word_embeddings=True,
        )  # fmt: skip
    if family == "llava":
        return transformers.LlavaConfig(
            text_config={"model_type": "llama", **TEXT}, vision_config={"model_type": "clip_vision_model", **TOWER},
            image_token_index=IMAGE_TOKEN, tie_word_embeddings=False,
        )  # fmt: skip
    if family == "clip":
        text = {**TEXT, "projection_dim": 16}
        return transformers.CLIPConfig(text_config=text, vision_config=TOWER, projection_dim=16)
    if family == "whisper":
        return transformers.WhisperConfig(**WHISPER, vocab_size=VOCABULARY, decoder_start_token_id=2, pad_token_id=0,
                                          bos_token_id=1, eos_token_id=3)  # fmt: skip
    if family == "florence2":
        special = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
        return transformers.Florence2Config(
            text_config={**BART, **special}, vision_config=DAVIT, image_token_id=IMAGE_TOKEN, **special
        )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    if family == "qwen2_vl":
        tower = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1}
        return transformers.Qwen2VLConfig(
            text_config={**TEXT, "num_hidden_layers": 1, "rope_parameters": rope}, vision_config=tower,
            image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN, vision_start_token_id=6, vision_end_token_id=7,
        )  # fmt: skip
    return transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=QWEN_TOWER, image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN, vision_start_token_id=6, vision_end_token_id=7, tie_word_embeddings=False,
    )  # fmt: skip


@contextmanager
def _seeded(family: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed([*CLASSES].index(family))
        yield


@torch.no_grad()
def _perturb(model: torch.nn.Module) -> None:
    """Noise on norms and biases, which start as ones and zeros, so that leaving one out shows."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        if name.endswith(("text_model.norm.weight", "language_model.norm.weight")):
            # A tied head gives the token that came in; mixed signs break the echo.
            parameter.mul_(torch.randint(0, 2, parameter.shape) * 2.0 - 1.0)


def _hub_name(family: str, name: str) -> str:
    for ours, theirs in HUB.get(family, ()):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def original(folder: Path) -> Any:
    """The checkpoint in transformers: float32, eager attention."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def example(family: str, seed: int = 0) -> dict[str, np.ndarray]:
    """One request with one picture (Idefics3: two tiles), as a processor would give it."""
    chance = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray]
    if family in ("idefics3", "smolvlm"):
        tokens, tensors = 18, {"pixel_values": chance.standard_normal((1, 2, 3, 72, 72)).astype(np.float32)}
    elif family == "llava":
        tokens, tensors = 36, {"pixel_values": chance.standard_normal((1, 3, 72, 72)).astype(np.float32)}
    else:
        grid = np.array([[1, 4, 6]], np.int64)
        tokens, tensors = (
            6,
            {"pixel_values": chance.standard_normal((24, 96)).astype(np.float32), "image_grid_thw": grid},
        )
    words = chance.integers(10, 700, 9)
    ids = np.concatenate([words[:4], np.full(tokens, IMAGE_TOKEN), words[4:]])[None].astype(np.int64)
    if family == "qwen2_5_vl":
        tensors["mm_token_type_ids"] = (ids == IMAGE_TOKEN).astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **tensors}


@torch.no_grad()
def reference(family: str, folder: Path, file: Path) -> Path:
    """Inputs, logits and greedy tokens of the checkpoint, computed by transformers, as an .npz."""
    model, inputs = original(folder), example(family)
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    found = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    arrays = {f"in.{name}": value for name, value in inputs.items()}
    logits = model(**given).logits.numpy()
    np.savez(file, **arrays, logits=logits, generate=found[:, inputs["input_ids"].shape[1] :].numpy())
    return file
