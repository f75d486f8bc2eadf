"""One prompt as functions of M-RoPE positions see it: its tokens and what its placeholders stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msao_compile.runtime.positions import Ints

Facts = Mapping[str, Any]
"""What a variant reads of the model's config, by name: token ids, merge sizes, rates."""

Positions = tuple[NDArray[Any], int | float]
"""`position_ids` [axes, S] and `delta`."""


@dataclass(frozen=True)
class Prompt:
    """An unpadded prompt; names are those of transformers' `get_rope_index`.

    `input_ids` [S]; grids [N, 3] in patches; `second_per_grid_ts` [clips] seconds between frames (the omni models'
    `second_per_grids`); `audio_seqlens` [recordings] in frames of the spectrogram; `mm_token_type_ids` [S] is 1 for
    tokens of pictures and 2 for those of clips; `use_audio_in_video` says that clips bring their sound; `target_sizes`
    and `target_sizes_videos` [crops, 2] rows and columns of patches.
    """

    input_ids: NDArray[np.integer]
    image_grid_thw: NDArray[np.integer] | None = None
    video_grid_thw: NDArray[np.integer] | None = None
    second_per_grid_ts: NDArray[np.floating] | list[float] | None = None
    audio_seqlens: NDArray[np.integer] | None = None
    mm_token_type_ids: NDArray[np.integer] | None = None
    use_audio_in_video: bool = False
    target_sizes: NDArray[np.integer] | None = None
    target_sizes_videos: NDArray[np.integer] | None = None

    def images(self) -> Ints:
        """[N, 3], N = 0 without pictures."""
        return _grids(self.image_grid_thw)

    def videos(self) -> Ints:
        """[N, 3], N = 0 without clips."""
        return _grids(self.video_grid_thw)

    def types(self, facts: Facts) -> Ints:
        """[S] modality of each token as processors' `create_mm_token_type_ids` has it, given or found by token ids.

        0 is text, 1 a picture's, 2 a clip's, 3 a recording's token. Where a family writes clips with the picture's
        token, the facts name the tokens before and after a clip.
        """
        if self.mm_token_type_ids is not None:
            return np.asarray(self.mm_token_type_ids, dtype=np.int64)
        ids = self.input_ids
        types_S = np.zeros(len(ids), dtype=np.int64)
        for modality, name in enumerate(("image_token_id", "video_token_id", "audio_token_id"), start=1):
            if name in facts:
                types_S[ids == facts[name]] = modality
        if "video_start_token_id" in facts:
            opened = np.cumsum(ids == facts["video_start_token_id"])
            in_clip = opened > np.cumsum(ids == facts["video_end_token_id"])
            types_S[(types_S == 1) & in_clip] = 2
        return types_S


def _grids(grid_thw: NDArray[np.integer] | None) -> Ints:
    return np.zeros((0, 3), dtype=np.int64) if grid_thw is None else np.asarray(grid_thw, dtype=np.int64)
