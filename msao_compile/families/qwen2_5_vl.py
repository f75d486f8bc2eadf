"""Qwen2.5-VL: packed patches with window attention, M-RoPE decoder; all grid arithmetic is done on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from msao_compile.families.base import Arrays, CausalFamily, Piece, Sizes, decoder_piece, embed_piece, text_facts
from msao_compile.manifest.schema import DecoderFacts, TensorSpec
from msao_compile.runtime.encoder_inputs import qwen2_5_vl_inputs

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MASKED = -3.0e38  # close to the smallest float32; softmax of it is exactly zero


class VisionEncoder(nn.Module):
    """Packed patches to merged features, in window order inside and in picture order outside.

    A token attends to tokens of its own segment: its window in most blocks, its picture in the full ones.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual: Any = visual

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        window_index: torch.Tensor,
        reverse_index: torch.Tensor,
        window_segments: torch.Tensor,
        picture_segments: torch.Tensor,
    ) -> torch.Tensor:
        visual = self.visual
        hidden = self._permute(visual.patch_embed(pixel_values), window_index)
        rotary = tuple(self._permute(table, window_index) for table in visual.rotary_pos_emb(hidden, position_ids))
        windows, pictures = self._bias(window_segments), self._bias(picture_segments)
        for index, block in enumerate(visual.blocks):
            bias = pictures if index in visual.fullatt_block_indexes else windows
            hidden = block(hidden, cu_seqlens=bias, max_seqlen=0, position_embeddings=rotary)
        features: torch.Tensor = visual.merger(hidden)
        return features.index_select(0, reverse_index)

    def _permute(self, tensor: torch.Tensor, window_index: torch.Tensor) -> torch.Tensor:
        unit = self.visual.spatial_merge_unit
        permuted: torch.Tensor = tensor.unflatten(0, (-1, unit)).index_select(0, window_index).flatten(0, 1)
        return permuted

    @staticmethod
    def _bias(segments: torch.Tensor) -> torch.Tensor:
        same = segments[:, None] == segments[None, :]
        return torch.where(same, 0.0, _MASKED)[None, None]


class Qwen2_5VL(CausalFamily):
    """Family `qwen2_5_vl`."""

    name = "qwen2_5_vl"

    def pieces(self, model: PreTrainedModel) -> tuple[Piece, ...]:
        """Vision encoder (merger fused), embedding, decoder."""
        facts = self.decoder_facts(model.config, kv_capacity=1)
        return (
            self._vision(model),
            embed_piece(model, facts.hidden_size),
            decoder_piece(model.model.language_model, model.lm_head, facts, model.config.text_config),
        )

    def decoder_facts(self, config: PretrainedConfig, kv_capacity: int) -> DecoderFacts:
        """Facts of the text model; positions are three-axial."""
        return text_facts(config.text_config, kv_capacity, mrope=True)

    def host_facts(self, config: PretrainedConfig) -> dict[str, Any]:
        """Grid geometry for the position code."""
        vision = config.vision_config
        return {
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
            "spatial_merge_size": vision.spatial_merge_size,
            "window_size": vision.window_size,
            "patch_size": vision.patch_size,
            "tokens_per_second": vision.tokens_per_second,
        }

    def example_pictures(self, config: PretrainedConfig, sizes: Sizes, chance: np.random.Generator) -> Arrays:
        """Packed patches [patches, width] and their grids [images, 3]."""
        vision = config.vision_config
        grid = np.asarray(sizes.grids, np.int64)
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = chance.standard_normal((int(grid.prod(-1).sum()), width)).astype(np.float32)
        return {"pixel_values": pixels, "image_grid_thw": grid}

    def forward_inputs(
        self, config: PretrainedConfig, ids_BS: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Also the token types, from which the model derives its three-axial positions."""
        types = (ids_BS == config.image_token_id).to(torch.int32)
        return {**super().forward_inputs(config, ids_BS, tensors), "mm_token_type_ids": types}

    def _vision(self, model: PreTrainedModel) -> Piece:
        vision = model.config.vision_config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        host = self.host_facts(model.config)

        def example(sizes: Sizes, chance: np.random.Generator) -> Arrays:
            pictures = self.example_pictures(model.config, sizes, chance)
            return {"pixel_values": pictures["pixel_values"], **qwen2_5_vl_inputs(pictures["image_grid_thw"], host)}

        return Piece(
            component="vision_encoder",
            module=VisionEncoder(model.model.visual),
            inputs=(
                TensorSpec(name="pixel_values", dtype="float32", shape=("num_patches", width)),
                TensorSpec(name="position_ids", dtype="int64", shape=("num_patches", 2)),
                TensorSpec(name="window_index", dtype="int64", shape=("num_image_tokens",)),
                TensorSpec(name="reverse_index", dtype="int64", shape=("num_image_tokens",)),
                TensorSpec(name="window_segments", dtype="int64", shape=("num_patches",)),
                TensorSpec(name="picture_segments", dtype="int64", shape=("num_patches",)),
            ),
            outputs=(
                TensorSpec(name="image_features", dtype="float32", shape=("num_image_tokens", vision.out_hidden_size)),
            ),
            example=example,
            stacks=("visual.blocks",),
            config=vision,
        )
