"""Scaled-down checkpoints of real architectures: fewer layers, heads and words, all else as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from msao_compile.families.registry import open_skeleton

WORDS = 2048
LAYERS = 2
HEADS = 2
COUNTS = ("num_hidden_layers", "depth", "encoder_layers", "decoder_layers", "max_window_layers")
INNER = ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")
HEAD_COUNTS = ("num_attention_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
WIDTHS = ("embed_dim", "d_model", "hidden_size")
"""The width of a part, the first that it has: `embed_dim` where `hidden_size` is what it gives to another part, and
`hidden_size` where `out_hidden_size` is that."""
TEXT_DEFAULTS = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008,
                 "num_hidden_layers": 32}  # fmt: skip
"""Llama's, which a config may leave out."""


def scaled(config: dict[str, Any]) -> dict[str, Any]:
    """The config with two layers of two heads of the published size, and token ids that count from the end."""
    outer = config.get("thinker_config", config)
    if outer.get("text_config", {}).get("model_type") == "llama":
        outer = outer | {"text_config": TEXT_DEFAULTS | outer["text_config"]}
    text = _part(outer.get("text_config", outer))
    words = int(text.pop("true_words"))
    parts = {name: _part(value) for name, value in outer.items() if name.endswith("_config")}
    whole = {**(text if "text_config" not in outer else outer), **parts}
    if "text_config" in parts:
        parts["text_config"].pop("true_words")
        whole["text_config"] = text
    width = text.get("hidden_size")
    for name in ("vision_config", "audio_config"):
        for key in ("out_hidden_size", "output_dim", *(["hidden_size"] if "embed_dim" in whole.get(name, {}) else [])):
            if key in whole.get(name, {}) and (key != "hidden_size" or "out_hidden_size" not in whole[name]):
                whole[name][key] = width
    found = _renumbered({**whole, **({"vocab_size": WORDS} if "vocab_size" in whole else {})}, words)
    return {**config, "thinker_config": found} if "thinker_config" in config else found


def _part(config: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in config.items() if not name.endswith("_config")}
    found["true_words"] = config.get("vocab_size", WORDS)
    if "vocab_size" in found:
        found["vocab_size"] = WORDS
    found |= {name: LAYERS for name in COUNTS if name in found}
    found |= {name: 96 for name in INNER if name in found}
    heads = next((found[name] for name in HEAD_COUNTS if name in found), None)
    widths = WIDTHS[1:] if "out_hidden_size" in found else WIDTHS
    width = next((name for name in widths if name in found), None)
    if heads and width:
        found[width] = found[width] // heads * HEADS
        found |= {name: HEADS for name in HEAD_COUNTS if name in found}
    if "num_key_value_heads" in found:
        found["num_key_value_heads"] = HEADS if found["num_key_value_heads"] == heads else 1
    if "fullatt_block_indexes" in found:
        found["fullatt_block_indexes"] = [LAYERS - 1]
    return found


def _renumbered(value: Any, words: int, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _renumbered(inner, words, key) for key, inner in value.items() if key != "true_words"}
    is_token = name.endswith(("token_id", "token_index")) and isinstance(value, int)
    return value - words + WORDS if is_token and value >= WORDS else value


def make(config: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint with random weights of a scaled config below `folder`."""
    folder.mkdir(parents=True)
    told = scaled(config)
    (folder / "config.json").write_text(json.dumps(told))
    skeleton = open_skeleton(folder, told, told["architectures"][0])
    torch.manual_seed(7)
    model = type(skeleton)(skeleton.config).eval()
    prefix = "thinker." if "thinker_config" in told else ""
    kept: dict[int, str] = {}
    for key, tensor in model.state_dict().items():
        kept.setdefault(tensor.data_ptr(), key)  # of tied weights one is written
    state = model.state_dict()
    spoken = {"talker.thinker_to_talker_proj.bias": torch.ones(4), "token2wav.bias": torch.ones(2)} if prefix else {}
    own = {prefix + key: state[key].contiguous() for key in kept.values()}
    save_file({**own, **spoken}, folder / "model.safetensors")
