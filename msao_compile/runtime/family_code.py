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
    """How one family's pictures and positions become graph inputs, and what of the manifest and a request it reads."""

    encoder_inputs: Callable[[Mapping[str, np.ndarray], Facts], Arrays]
    positions: Callable[[np.ndarray, Mapping[str, np.ndarray], Facts], tuple[np.ndarray, int]]
    facts: tuple[str, ...]
    inputs: tuple[str, ...]


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
        InputError: a tile is partly padding, which the exported encoder does not mask, or an array is of another shape.
    """
    given = _pixels(tensors, 4, 5)
    pixels = given.reshape(-1, *given.shape[-3:])
    real = pixels.reshape(len(pixels), -1).any(1)
    keep = real if real.any() else np.ones(len(pixels), bool)
    mask = tensors.get("pixel_attention_mask")
    if mask is not None and np.shape(mask) != (*given.shape[:-3], *given.shape[-2:]):
        raise InputError(f"pixel_attention_mask has shape {np.shape(mask)} where pixel_values have {given.shape}")
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
    """LLaVA: pictures as they are.

    Raises:
        InputError: they are of another shape.
    """
    return {"pixel_values": _pixels(tensors, 4)}


def packed(tensors: Mapping[str, np.ndarray], facts: Facts) -> Arrays:
    """Qwen2.5-VL: packed patches and the grid arithmetic.

    Raises:
        InputError: an array is missing or of another shape.
    """
    pixels, grid = _pixels(tensors, 2), np.asarray(tensors.get("image_grid_thw", ()))
    merge = facts["spatial_merge_size"]
    whole = grid.ndim == 2 and grid.shape[1] == 3 and grid.dtype.kind in "iu" and (grid > 0).all()
    if not whole or int(grid.prod(-1).sum()) != len(pixels) or (grid[:, 1:] % merge).any():
        raise InputError(
            f"image_grid_thw of shape {grid.shape} does not describe the {len(pixels)} patches of pixel_values: "
            f"give frames, and rows and columns of patches in multiples of {merge}, for each picture"
        )
    return {"pixel_values": pixels, **qwen2_5_vl_inputs(grid, facts)}


def _pixels(tensors: Mapping[str, np.ndarray], *ranks: int) -> np.ndarray:
    pixels = np.asarray(tensors["pixel_values"])
    if pixels.ndim not in ranks or pixels.dtype != np.float32:
        raise InputError(
            f"pixel_values are {pixels.dtype} of shape {pixels.shape} where float32 with "
            f"{' or '.join(map(str, ranks))} dimensions are needed: give what this checkpoint's processor makes"
        )
    return pixels


FAMILY_CODE: dict[str, FamilyCode] = {
    "idefics3": FamilyCode(tiles, rope, ("patch_size", "patches_per_side"), ("pixel_values", "pixel_attention_mask")),
    "llava": FamilyCode(plain, rope, (), ("pixel_values",)),
    "qwen2_5_vl": FamilyCode(
        packed,
        mrope,
        ("image_token_id", "video_token_id", "spatial_merge_size", "window_size", "patch_size"),
        ("pixel_values", "image_grid_thw"),
    ),
}


def merge(embeds_SH: np.ndarray, ids_S: np.ndarray, features: np.ndarray, placeholder: int | None) -> np.ndarray:
    """Put picture features [..., H] in the places of the placeholder tokens, in order.

    Raises:
        InputError: their numbers differ; the message holds both.
    """
    rows = features.reshape(-1, features.shape[-1])
    merged = embeds_SH.copy()
    merged[placeholders(ids_S, placeholder, len(rows))] = rows
    return merged


def placeholders(ids_S: np.ndarray, placeholder: int | None, features: int) -> np.ndarray:
    """Where the placeholder tokens stand: one for each feature.

    Raises:
        InputError: their numbers differ; the message holds both.
    """
    places = np.flatnonzero(ids_S == placeholder)
    if len(places) != features:
        raise InputError(
            f"the prompt holds {len(places)} picture placeholder{'s'[: len(places) != 1]} where the pictures give "
            f"{features} feature{'s'[: features != 1]}: give a picture for each placeholder and no others, and use "
            "the processor that belongs to this checkpoint"
        )
    return places
