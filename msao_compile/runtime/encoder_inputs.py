"""What each family's vision encoder graph is fed: processor output plus the position code computed on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from msao_compile.runtime.positions import attention_seqlens, segment_ids, vision_position_ids, window_index

Arrays = dict[str, np.ndarray]


def qwen2_5_vl_inputs(grid_N3: np.ndarray, facts: Mapping[str, Any]) -> Arrays:
    """Position inputs of the Qwen2.5-VL tower for pictures of `grid_N3` (time, height, width in patches), int64.

    Tokens are in window order inside the tower; `reverse_index` brings the merged features back to picture order.
    """
    merge = int(facts["spatial_merge_size"])
    index, windows = window_index(grid_N3, merge, facts["window_size"], facts["patch_size"])
    patches = int(grid_N3.prod(-1).sum())
    return {
        "position_ids": vision_position_ids(grid_N3, merge),
        "window_index": index,
        "reverse_index": np.argsort(index).astype(np.int64),
        "window_segments": segment_ids(windows, patches),
        "picture_segments": segment_ids(attention_seqlens(grid_N3), patches),
    }
