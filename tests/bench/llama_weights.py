"""The decoder of the standard model as a GGUF file for llama.cpp: the same f32 bytes, rotary rows in llama's order."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]
import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]

PREFIX = "model.text_model."
TOP = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(checkpoint: Path, target: Path) -> None:
    """Write the decoder of a checkpoint with tied embeddings; the vocabulary has no texts, only its size."""
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_dimension_count(text["head_dim"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_vocab_size(text["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}
    for key, weights in read(checkpoint / "model.safetensors").items():
        if key.startswith(PREFIX):
            name = gguf_name(key.removeprefix(PREFIX))
            kind = name.split(".")[-2]
            writer.add_tensor(name, interleaved(weights, heads[kind]) if kind in heads else weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(key: str) -> str:
    """`layers.3.mlp.up_proj.weight` to `blk.3.ffn_up.weight`; an unknown key is a KeyError."""
    if key in TOP:
        return TOP[key]
    _, index, rest = key.split(".", 2)
    return f"blk.{index}.{LAYER[rest.removesuffix('.weight')]}.weight"


def interleaved(weights: Array, heads: int) -> Array:
    """Rows of each head from halves (Hugging Face) to pairs (llama.cpp's `LlamaModel.permute`)."""
    rows, columns = weights.shape
    paired: Array = weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return np.ascontiguousarray(paired)


def read(path: Path) -> dict[str, Array]:
    """Every f32 tensor of a safetensors file, mapped and not read."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", 8 + length)
    found = {}
    for key, entry in header.items():
        if entry["dtype"] != "F32":
            raise ValueError(f"{path}: {key} is {entry['dtype']}, only F32 is known here")
        start, stop = entry["data_offsets"]
        found[key] = data[start:stop].view(np.float32).reshape(entry["shape"])
    return found
