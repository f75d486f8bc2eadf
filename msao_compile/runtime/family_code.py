"""Host-side code of each family: what its encoder graph is fed, and where its tokens stand.

Legend: B batch, S tokens, N pictures, H hidden. Every function takes the manifest's `family_facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.encoder_inputs import qwen2_5_vl_inputs
from msao_compile.runtime.positions import mrope_positions, patch_position_ids

Arrays = dict[str, np.ndarray]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class FamilyCode:
    """How one family's pictures and positions become graph inputs."""

    encoder_inputs: Callable[[Mapping[str, np.ndarray], Facts], Arrays]
    positions: Callable[[np.ndarray, Mapping[str, np.ndarray], Facts], tuple[np.ndarray, int]]


def rope(ids_S: np.ndarray, tensors: Mapping[str, np.ndarray], facts: Facts) -> tuple[np.ndarray, int]:
    """Positions [1, S] that count up, and the offset of the next token to its index (0)."""
    return np.arange(len(ids_S), dtype=np.int64)[None], 0


def mrope(ids_S: np.ndarray, tensors: Mapping[str, np.ndarray], facts: Facts) -> tuple[np.ndarray, int]:
    """Three-axial positions [3, 1, S] and the offset of later tokens (Qwen2-VL, `get_rope_index`)."""
    grid = tensors.get("image_grid_thw", np.zeros((0, 3), np.int64))
    positions, delta = mrope_positions(
        ids_S, facts["image_token_id"], facts["video_token_id"], grid, facts["spatial_merge_size"]
    )
    return np.ascontiguousarray(positions[:, None]), delta


def tiles(tensors: Mapping[str, np.ndarray], facts: Facts) -> Arrays:
    """Idefics3 and SmolVLM: all tiles of all pictures as one batch; whole-zero tiles are padding between requests.

    Raises:
        InputError: a tile is partly padding, which the exported encoder does not mask.
    """
    pixels = tensors["pixel_values"]
    pixels = pixels.reshape(-1, *pixels.shape[-3:])
    real = pixels.reshape(len(pixels), -1).any(1)
    keep = real if real.any() else np.ones(len(pixels), bool)
    mask = tensors.get("pixel_attention_mask")
    if mask is not None and not mask.reshape(-1, *mask.shape[-2:])[keep].all():
        raise InputError(
            "a picture is padded inside its tile (pixel_attention_mask holds zeros): resize pictures to "
            "whole tiles, as the checkpoint's processor does"
        )
    side = facts["patches_per_side"]
    grid = tuple(size // facts["patch_size"] for size in pixels.shape[-2:])
    positions = patch_position_ids(np.ones((int(keep.sum()), *grid), bool), side)
    return {"pixel_values": np.ascontiguousarray(pixels[keep]), "position_ids": positions}


def plain(tensors: Mapping[str, np.ndarray], facts: Facts) -> Arrays:
    """LLaVA: pictures as they are."""
    return {"pixel_values": tensors["pixel_values"]}


def packed(tensors: Mapping[str, np.ndarray], facts: Facts) -> Arrays:
    """Qwen2.5-VL: packed patches and the grid arithmetic."""
    return {"pixel_values": tensors["pixel_values"], **qwen2_5_vl_inputs(tensors["image_grid_thw"], facts)}


FAMILY_CODE: dict[str, FamilyCode] = {
    "idefics3": FamilyCode(tiles, rope),
    "llava": FamilyCode(plain, rope),
    "qwen2_5_vl": FamilyCode(packed, mrope),
}


def merge(embeds_SH: np.ndarray, ids_S: np.ndarray, features: np.ndarray, placeholder: int) -> np.ndarray:
    """Put picture features [..., H] in the places of the placeholder tokens, in order.

    Raises:
        InputError: their numbers differ; the message holds both.
    """
    rows = features.reshape(-1, features.shape[-1])
    places = np.flatnonzero(ids_S == placeholder)
    if len(places) != len(rows):
        raise InputError(
            f"the prompt holds {len(places)} picture placeholders where the pictures give {len(rows)} "
            "features: use the processor that belongs to this checkpoint"
        )
    merged = embeds_SH.copy()
    merged[places] = rows
    return merged
