"""Idefics3 and SmolVLM: SigLIP-like tower with patch positions, pixel shuffle, Llama-like decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from msao_compile.families.base import NOT_OF_VISION, Arrays, CausalFamily, Piece, Sizes, decoder_piece, embed_piece
from msao_compile.manifest.schema import TensorSpec
from msao_compile.runtime.positions import patch_position_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class VisionEncoder(nn.Module):
    """Full square pictures to features. `position_ids` come from the host; padded pictures never reach this graph."""

    def __init__(self, vision_model: Any, connector: nn.Module) -> None:
        super().__init__()
        self.vision_model: Any = vision_model
        self.connector = connector

    def forward(self, pixel_values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        embeddings = self.vision_model.embeddings
        hidden = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = hidden + embeddings.position_embedding(position_ids)
        for layer in self.vision_model.encoder.layers:
            hidden = layer(hidden, None)
        features: torch.Tensor = self.connector(self.vision_model.post_layernorm(hidden))
        return features


class Idefics3(CausalFamily):
    """Family `idefics3` and `smolvlm`."""

    name = "idefics3"

    def pieces(self, model: PreTrainedModel) -> tuple[Piece, ...]:
        """Vision encoder (connector fused), embedding, decoder."""
        facts = self.decoder_facts(model.config, kv_capacity=1)
        return (
            self._vision(model),
            embed_piece(model, facts.hidden_size),
            decoder_piece(model.model.text_model, model.lm_head, facts, model.config.text_config),
        )

    def host_facts(self, config: PretrainedConfig) -> dict[str, Any]:
        """Patch geometry for the position code."""
        vision = config.vision_config
        return {
            "image_token_id": config.image_token_id,
            "patch_size": vision.patch_size,
            "patches_per_side": vision.image_size // vision.patch_size,
        }

    def example_pictures(self, config: PretrainedConfig, sizes: Sizes, chance: np.random.Generator) -> Arrays:
        """Tiles [1, images, channels, side, side]."""
        vision = config.vision_config
        shape = (1, sizes.images, vision.num_channels, vision.image_size, vision.image_size)
        return {"pixel_values": chance.standard_normal(shape).astype(np.float32)}

    def _vision(self, model: PreTrainedModel) -> Piece:
        config, vision = model.config, model.config.vision_config
        side = vision.image_size // vision.patch_size
        tokens = side**2 // config.scale_factor**2

        def example(sizes: Sizes, chance: np.random.Generator) -> Arrays:
            [pixels] = self.example_pictures(config, sizes, chance)["pixel_values"]
            mask = np.ones((sizes.images, side, side), bool)
            return {"pixel_values": pixels, "position_ids": patch_position_ids(mask, side)}

        return Piece(
            component="vision_encoder",
            module=VisionEncoder(model.model.vision_model, model.model.connector),
            inputs=(
                TensorSpec(
                    name="pixel_values",
                    dtype="float32",
                    shape=("num_images", vision.num_channels, vision.image_size, vision.image_size),
                ),
                TensorSpec(name="position_ids", dtype="int64", shape=("num_images", side**2)),
            ),
            outputs=(
                TensorSpec(
                    name="image_features", dtype="float32", shape=("num_images", tokens, config.text_config.hidden_size)
                ),
            ),
            example=example,
            stacks=("vision_model.encoder.layers",),
            config=config,
            unread=NOT_OF_VISION,
        )
