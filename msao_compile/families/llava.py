"""LLaVA: a CLIP or SigLIP tower read at an inner layer, a projector, any Llama-like decoder."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.base import NOT_OF_VISION, Arrays, CausalFamily, Piece, Sizes, decoder_piece, embed_piece
from msao_compile.manifest.schema import TensorSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TOWERS = ("clip_vision_model", "siglip_vision_model")


class VisionEncoder(nn.Module):
    """`pixel_values` [num_images, channels, side, side] to features; layers after the last one read are left out."""

    def __init__(self, tower: Any, projector: nn.Module, depths: tuple[int, ...], crop: bool) -> None:
        super().__init__()
        self.embeddings: Any = tower.embeddings
        self.pre_norm = tower.pre_layrnorm if hasattr(tower, "pre_layrnorm") else nn.Identity()
        self.layers = tower.encoder.layers[: max(depths)]
        self.projector = projector
        self.depths = depths
        self.crop = crop

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.pre_norm(self.embeddings(pixel_values))
        read = {0: hidden}
        for depth, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, None)
            read[depth] = hidden
        features = torch.cat([read[depth][:, int(self.crop) :] for depth in self.depths], dim=-1)
        projected: torch.Tensor = self.projector(features)
        return projected


class Llava(CausalFamily):
    """Family `llava`."""

    name = "llava"

    def pieces(self, model: PreTrainedModel) -> tuple[Piece, ...]:
        """Vision encoder (projector fused), embedding, decoder."""
        facts = self.decoder_facts(model.config, kv_capacity=1)
        return (
            self._vision(model),
            embed_piece(model, facts.hidden_size),
            decoder_piece(model.model.language_model, model.lm_head, facts, model.config.text_config),
        )

    def host_facts(self, config: PretrainedConfig) -> dict[str, Any]:
        """The placeholder to replace."""
        return {"image_token_id": config.image_token_id}

    def example_pictures(self, config: PretrainedConfig, sizes: Sizes, chance: np.random.Generator) -> Arrays:
        """Pictures [images, channels, side, side]."""
        vision = config.vision_config
        shape = (sizes.images, vision.num_channels, vision.image_size, vision.image_size)
        return {"pixel_values": chance.standard_normal(shape).astype(np.float32)}

    def _vision(self, model: PreTrainedModel) -> Piece:
        config, vision = model.config, model.config.vision_config
        if vision.model_type not in _TOWERS:
            raise UnsupportedFamily(
                f"llava with a vision tower of type {vision.model_type!r}: known are {', '.join(_TOWERS)}"
            )
        crop = config.vision_feature_select_strategy == "default"
        module = VisionEncoder(model.model.vision_tower, model.model.multi_modal_projector, _depths(config), crop)
        tokens = (vision.image_size // vision.patch_size) ** 2
        tokens += int(vision.model_type == "clip_vision_model") - int(crop)

        return Piece(
            component="vision_encoder",
            module=module,
            inputs=(
                TensorSpec(
                    name="pixel_values",
                    dtype="float32",
                    shape=("num_images", vision.num_channels, vision.image_size, vision.image_size),
                ),
            ),
            outputs=(
                TensorSpec(
                    name="image_features", dtype="float32", shape=("num_images", tokens, config.text_config.hidden_size)
                ),
            ),
            example=partial(self.example_pictures, config),
            stacks=("layers",),
            config=config,
            unread=NOT_OF_VISION,
        )


def _depths(config: PretrainedConfig) -> tuple[int, ...]:
    """How many layers stand before each feature that is read; transformers counts the embedding as entry 0."""
    layers = config.vision_config.num_hidden_layers
    wanted = config.vision_feature_layer
    wanted = [wanted] if isinstance(wanted, int) else list(wanted)
    depths = tuple(index if index >= 0 else layers + 1 + index for index in wanted)
    if config.vision_config.model_type != "clip_vision_model" and max(depths) == layers:
        raise UnsupportedFamily("llava that reads the last layer of a SigLIP tower: only inner layers are known here")
    return depths
