"""Multimodal rotary positions (M-RoPE) of a whole prompt, for each way in which transformers' models number tokens.

Shape suffixes: S tokens of one unpadded prompt, A axes (time, row, column unless a variant says otherwise),
N pictures or clips. Grids are [N, 3]: frames, rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msao_compile.errors import PromptError
from msao_compile.runtime.host.rope_canvas import MARKERS, canvas_positions
from msao_compile.runtime.host.rope_omni import qwen2_5_omni_positions, qwen3_omni_positions
from msao_compile.runtime.host.rope_prompt import Facts, Positions, Prompt
from msao_compile.runtime.positions import Ints, VideoGrids, mrope_positions


def rope_index(
    variant: str,
    input_ids: NDArray[np.integer],
    facts: Facts,
    **media: NDArray[Any] | list[float] | bool | None,
) -> Positions:
    """Positions of one unpadded prompt, and how far later tokens are ahead of their index.

    Args:
        variant: one of `ROPES`, which `VARIANTS` gives for a model type.
        input_ids: [S] token ids, placeholders expanded.
        facts: what the variant reads of the model's config, by the names in `VARIANTS`.
        **media: the other fields of `Prompt`.

    Returns:
        `position_ids` [A, S], int64 (float32 for Qwen3-Omni, whose clips have fractional times), and `delta`: the token
        at a later index i has position i + delta on all axes.

    Raises:
        PromptError: the prompt's placeholders do not match the grids or recordings.
    """
    return ROPES[variant](Prompt(np.asarray(input_ids), **media), facts)  # type: ignore[arg-type]


def qwen2_vl_positions(prompt: Prompt, facts: Facts) -> Positions:
    """Frames of a clip are one apart.

    Source: get_rope_index of transformers/models/qwen2_vl and paddleocr_vl.
    """
    videos = prompt.videos()
    return _grid_positions(prompt, facts, videos, [1.0] * len(videos))


def qwen2_5_vl_positions(prompt: Prompt, facts: Facts) -> Positions:
    """Frames of a clip are as far apart as their times.

    Source: get_rope_index of transformers/models/qwen2_5_vl.
    """
    videos = prompt.videos()
    seconds = [1.0] * len(videos) if prompt.second_per_grid_ts is None else prompt.second_per_grid_ts
    per_second = np.float32(facts["tokens_per_second"])
    return _grid_positions(prompt, facts, videos, [float(per_second * np.float32(second)) for second in seconds])


def qwen3_vl_positions(prompt: Prompt, facts: Facts) -> Positions:
    """Frames of a clip stand apart in the prompt (between them is text, their times), each as a picture would.

    Source: get_rope_index of transformers/models/qwen3_vl, glm4v and those that VARIANTS lists with them.
    """
    videos = prompt.videos()
    frames = np.repeat(videos, videos[:, 0], axis=0)
    frames[:, 0] = 1
    return _grid_positions(prompt, facts, frames, [1.0] * len(frames))


def ernie_positions(prompt: Prompt, facts: Facts) -> Positions:
    """Clips have a position for each `temporal_merge_size` frames.

    Source: get_rope_index of transformers/models/ernie4_5_vl_moe.
    """
    videos = prompt.videos() // [facts["temporal_merge_size"], 1, 1]
    return _grid_positions(prompt, facts, videos, [1.0] * len(videos))


def hunyuan_positions(prompt: Prompt, facts: Facts) -> Positions:
    """Axes are as many as `mrope_section` has; the last three are column, row and number of the picture.

    A picture's rows have a newline token more than columns; a token before and one after it may be placeholders, too.

    Source: get_rope_index of transformers/models/hunyuan_vl.
    """
    axes = len(facts["mrope_section"])
    types_S = prompt.types(facts)
    position_ids = np.tile(np.arange(len(types_S)), (axes, 1))
    spans = _spans(types_S == 1)
    grids = prompt.images()[:, 1:].tolist()
    if len(spans) != len(grids):
        raise PromptError(f"The prompt has placeholders for {len(spans)} pictures but {len(grids)} are given.")
    for number, ((start, end), grid) in enumerate(zip(spans, grids)):
        rows, columns = (size // facts["spatial_merge_size"] for size in grid)
        row, column = np.indices((rows, columns + 1)).reshape(2, -1)
        if (wrapped := end - start - len(row)) not in (0, 2):
            raise PromptError(
                f"Picture {number} has {end - start} placeholders; it takes {len(row)} or {len(row) + 2}."
            )
        inside = slice(start + wrapped // 2, end - wrapped // 2)
        position_ids[axes - 3 :, inside] = np.stack([column, row, np.full_like(row, number)])
    return position_ids, int(position_ids.max(initial=-1)) + 1 - len(types_S)


def _spans(mask_S: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of each run of true."""
    edges = np.flatnonzero(np.diff(mask_S.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _grid_positions(prompt: Prompt, facts: Facts, videos: Ints, steps: list[float]) -> Positions:
    """Pictures and clips by the modality of each token: 1 is a picture's, 2 a clip's."""
    clips = VideoGrids(videos, tuple(steps))
    return mrope_positions(prompt.types(facts), 1, 2, prompt.images(), facts["spatial_merge_size"], clips)


ROPES: dict[str, Callable[[Prompt, Facts], Positions]] = {
    "ernie4_5_vl_moe": ernie_positions,
    "hunyuan_vl": hunyuan_positions,
    "minicpmv4_7": canvas_positions,
    "qwen2_5_omni_thinker": qwen2_5_omni_positions,
    "qwen2_5_vl": qwen2_5_vl_positions,
    "qwen2_vl": qwen2_vl_positions,
    "qwen3_omni_moe_thinker": qwen3_omni_positions,
    "qwen3_vl": qwen3_vl_positions,
}
"""Variant, named after the first model type that has it, to what computes it."""

_TOKENS = {name: name for name in ("image_token_id", "video_token_id")}
_CLIP_ENDS = {name: name for name in ("video_start_token_id", "video_end_token_id")}
_MERGE = {"spatial_merge_size": "vision_config.spatial_merge_size"}
_GRID = _TOKENS | _MERGE
_OMNI = _GRID | {name: name for name in ("audio_token_id", "position_id_per_seconds")}
_QWEN2_5_OMNI = _OMNI | {"seconds_per_chunk": "seconds_per_chunk"}
_QWEN3_OMNI = _OMNI | {"n_window": "audio_config.n_window"}


def _inside(part: str, paths: Mapping[str, str]) -> dict[str, str]:
    return {name: f"{part}.{path}" for name, path in paths.items()}


VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "cohere_compass": ("qwen3_vl", _GRID),
    "cosmos3_edge": ("qwen3_vl", _GRID),
    "cosmos3_omni": ("qwen3_vl", _GRID),
    "ernie4_5_vl_moe": (
        "ernie4_5_vl_moe",
        _GRID | {"temporal_merge_size": "vision_config.temporal_merge_size"},
    ),
    "glm46v": ("qwen3_vl", _GRID | _CLIP_ENDS),
    "glm4v": ("qwen3_vl", _GRID | _CLIP_ENDS),
    "glm4v_moe": ("qwen3_vl", _GRID | _CLIP_ENDS),
    "glm_ocr": ("qwen3_vl", _GRID | _CLIP_ENDS),
    "hunyuan_vl": (
        "hunyuan_vl",
        {"image_token_id": "image_token_id", "mrope_section": "text_config.rope_parameters.mrope_section"} | _MERGE,
    ),
    "minicpmv4_7": ("minicpmv4_7", _TOKENS | {name: name for name in (*MARKERS, "downsample_mode")}),
    "paddleocr_vl": ("qwen2_vl", _GRID),
    "qwen2_5_omni": ("qwen2_5_omni_thinker", _inside("thinker_config", _QWEN2_5_OMNI)),
    "qwen2_5_omni_talker": ("qwen2_5_omni_thinker", _QWEN2_5_OMNI | {"spatial_merge_size": "spatial_merge_size"}),
    "qwen2_5_omni_thinker": ("qwen2_5_omni_thinker", _QWEN2_5_OMNI),
    "qwen2_5_vl": ("qwen2_5_vl", _GRID | {"tokens_per_second": "vision_config.tokens_per_second"}),
    "qwen2_vl": ("qwen2_vl", _GRID),
    "qwen3_5": ("qwen3_vl", _GRID),
    "qwen3_5_moe": ("qwen3_vl", _GRID),
    "qwen3_omni_moe": ("qwen3_omni_moe_thinker", _inside("thinker_config", _QWEN3_OMNI)),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe_thinker", _QWEN3_OMNI),
    "qwen3_vl": ("qwen3_vl", _GRID),
    "qwen3_vl_moe": ("qwen3_vl", _GRID),
    "qwen4_exp": ("qwen3_vl", _GRID),
}
"""Model type to its variant, and each fact that the variant reads to its dotted path in the model's config."""
