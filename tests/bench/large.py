"""Makes large checkpoints layer by layer: LLaVA's architecture with random weights, sharded, never whole in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.bench.work import SEED

SHARD_BYTES = 2_000_000_000
BLOCK = 1 << 24
"""Random numbers are drawn once; each tensor begins elsewhere in them, so that no two are equal."""
ITEM_BYTES = {"BF16": 2, "F32": 4}


def llava(layers: int, width: int, pixels: int = 336) -> LlavaConfig:
    """LLaVA-1.5's tower before a Llama of `layers` layers, `width` wide; 28 by 3072 has 3.3 billion parameters."""
    small = width < 1024
    tower = CLIPVisionConfig(
        hidden_size=64 if small else 1024, intermediate_size=128 if small else 4096,
        num_hidden_layers=2 if small else 24, num_attention_heads=4 if small else 16,
        image_size=28 if small else pixels, patch_size=14, projection_dim=64,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=width, intermediate_size=width * 8 // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 256),
        vocab_size=512 if small else 32_064, max_position_embeddings=4096,
    )  # fmt: skip
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=500 if small else 32_000)
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def make(folder: Path, config: LlavaConfig, dtype: str) -> int:
    """Write config and shards of `dtype` (BF16 or F32) below `folder`; gives the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    chance = np.random.default_rng(SEED)
    values = chance.standard_normal(BLOCK, np.float32) * 0.02
    block = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values
    shards = list(_shards({name: tuple(value.shape) for name, value in state.items()}, ITEM_BYTES[dtype]))
    places = {}
    for index, shapes in enumerate(shards, 1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(shapes, file)
        _write(folder / file, shapes, dtype, block, chance)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sum(value.numel() for value in state.values())


def _shards(shapes: Mapping[str, tuple[int, ...]], item_bytes: int) -> Iterator[dict[str, tuple[int, ...]]]:
    held: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        needed = int(np.prod(shape, dtype=np.int64)) * item_bytes
        if held and size + needed > SHARD_BYTES:
            yield held
            held, size = {}, 0
        held[name] = shape
        size += needed
    yield held


def _write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, block: np.ndarray, chance: np.random.Generator
) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            left, start = int(np.prod(shape, dtype=np.int64)), int(chance.integers(BLOCK))
            while left:
                piece = block[start : start + left]
                file.write(piece.data)
                left, start = left - len(piece), 0
