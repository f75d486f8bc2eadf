"""Index arithmetic of vision and audio towers that the host does in NumPy and binds as graph inputs, by name.

A name is that of the transformers function without its leading `get_`; arguments carry transformers' names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from msao_compile.runtime.host import anyres, audio, lengths, vision

FUNCTIONS: dict[str, Callable[..., tuple[NDArray[Any], ...]]] = {
    "anyres_index": anyres.anyres_index,
    "audio_cu_seqlens": audio.audio_cu_seqlens,
    "chunk_and_pad_features": audio.chunk_and_pad_features,
    "lengths": lengths.lengths,
    "pool_indices": audio.pool_indices,
    "valid_indices": audio.valid_indices,
    "vision_attention_seqlens": vision.vision_attention_seqlens,
    "vision_bilinear_indices_and_weights": vision.vision_bilinear_indices_and_weights,
    "vision_cu_seqlens": vision.vision_cu_seqlens,
    "vision_frame_index": vision.vision_frame_index,
    "vision_frame_pairs": vision.vision_frame_pairs,
    "vision_interpolation_indices_and_weights": vision.vision_interpolation_indices_and_weights,
    "vision_merged_shape": vision.vision_merged_shape,
    "vision_nearest_position_ids": vision.vision_nearest_position_ids,
    "vision_pixel_shuffle_index": vision.vision_pixel_shuffle_index,
    "vision_position_ids": vision.vision_position_ids,
    "vision_temporal_merge_index": vision.vision_temporal_merge_index,
    "vision_window_index": vision.vision_window_index,
}
"""What computes each, keyword arguments in, arrays out (a tuple also where it is one)."""
