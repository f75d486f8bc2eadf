"""M-RoPE positions equal what each model's `get_rope_index` gives for one unpadded prompt."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from msao_compile.errors import PromptError
from msao_compile.runtime.host import audio, rope, rope_canvas

IMAGE, VIDEO, SOUND, VISION_START, SOUND_START, CLIP_START, CLIP_END = 91, 92, 93, 94, 95, 96, 97
PICTURES = [[[1, 4, 6]], [[1, 2, 2], [1, 34, 8]], [[1, 10, 26], [1, 4, 4], [1, 74, 54]]]
WIDE = [[[1, 4, 80]]]
"""One frame whose columns number more than a short recording's tokens."""
CLIPS = [[[1, 4, 6]], [[3, 6, 18]], [[4, 4, 2], [2, 8, 8], [9, 2, 40]]]
MODELS = {
    "cohere_compass": "CohereCompassModel",
    "cosmos3_edge": "Cosmos3EdgeModel",
    "cosmos3_omni": "Cosmos3OmniModel",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeModel",
    "glm46v": "Glm46VModel",
    "glm4v": "Glm4vModel",
    "glm4v_moe": "Glm4vMoeModel",
    "glm_ocr": "GlmOcrModel",
    "hunyuan_vl": "HunYuanVLModel",
    "minicpmv4_7": "MiniCPMV4_7Model",
    "paddleocr_vl": "PaddleOCRVLModel",
    "qwen2_5_omni_thinker": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLModel",
    "qwen2_vl": "Qwen2VLModel",
    "qwen3_5": "Qwen3_5Model",
    "qwen3_5_moe": "Qwen3_5MoeModel",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "qwen3_vl": "Qwen3VLModel",
    "qwen3_vl_moe": "Qwen3VLMoeModel",
    "qwen4_exp": "Qwen4ExpModel",
}
APART = [name for name, (variant, _) in rope.VARIANTS.items() if variant == "qwen3_vl"]
SPLIT_CLIPS = [name for name in APART if "video_start_token_id" in rope.VARIANTS[name][1]]
TOGETHER = ["qwen2_vl", "paddleocr_vl", "qwen2_5_vl", "ernie4_5_vl_moe"]
FACTS = {
    "spatial_merge_size": 2,
    "temporal_merge_size": 2,
    "tokens_per_second": 4,
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "audio_token_id": SOUND,
    "video_start_token_id": CLIP_START,
    "video_end_token_id": CLIP_END,
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
    "n_window": 50,
}


def model_class(name: str) -> Any:
    package = name.removesuffix("_thinker")
    return getattr(importlib.import_module(f"transformers.models.{package}.modeling_{package}"), MODELS[name])


def standing_in(name: str, mrope_section: list[int] | None = None) -> Any:
    """What `get_rope_index` reads of a model, without one."""
    model = model_class(name)
    vision = SimpleNamespace(**{fact: FACTS[fact] for fact in ("spatial_merge_size", "temporal_merge_size")})
    vision.tokens_per_second = FACTS["tokens_per_second"]
    config = SimpleNamespace(**FACTS, vision_start_token_id=VISION_START, audio_start_token_id=SOUND_START)
    config.vision_config, config.audio_config = vision, SimpleNamespace(n_window=FACTS["n_window"])
    config.text_config = SimpleNamespace(rope_parameters={"mrope_section": mrope_section})
    self = SimpleNamespace(config=config, spatial_merge_size=FACTS["spatial_merge_size"])
    for method in ("get_vision_position_ids", "get_llm_pos_ids_for_vision", "get_chunked_index"):
        if hasattr(model, method):
            setattr(self, method, getattr(model, method).__get__(self))
    return self


def facts_of(name: str, **more: Any) -> dict[str, Any]:
    return {fact: value for fact, value in (FACTS | more).items() if fact in rope.VARIANTS[name][1]}


def prompt(spans: list[tuple[int, int]]) -> np.ndarray:
    """Tokens as (token, how many) runs."""
    return np.concatenate([np.full(count, token, dtype=np.int64) for token, count in spans])


def tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in arrays.items() if value is not None}


def check(name: str, ids: np.ndarray, types: np.ndarray, arrays: dict[str, Any], **more: Any) -> None:
    """Both ways of telling what placeholders are give transformers' positions."""
    self = standing_in(name, more.get("mrope_section"))
    method = model_class(name).get_rope_index
    reference, delta = method(self, torch.from_numpy(ids)[None], torch.from_numpy(types)[None], **tensors(arrays))
    media = {field: None if value is None else np.array(value) for field, value in arrays.items()}
    for given in (None, types):
        variant = rope.VARIANTS[name][0]
        ours = rope.rope_index(variant, ids, facts_of(name, **more), mm_token_type_ids=given, **media)
        np.testing.assert_array_equal(ours[0], reference[:, 0].numpy(), strict=True)
        assert ours[1] == delta.item() and type(ours[1]) is int


def frames(grid: list[int]) -> int:
    return grid[0] * grid[1] * grid[2] // 4


@pytest.mark.parametrize("name", TOGETHER + APART)
@pytest.mark.parametrize("grids", PICTURES)
def test_pictures_equal_get_rope_index(name: str, grids: list[list[int]]) -> None:
    ids = prompt([(5, 7)] + [span for grid in grids for span in ((IMAGE, frames(grid)), (6, 3))])
    check(name, ids, (ids == IMAGE) * 1, {"image_grid_thw": grids})


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("grids", CLIPS)
@pytest.mark.parametrize("seconds", [None, 0.5, 0.33, 2.0])
def test_clips_of_frames_together_equal_get_rope_index(
    name: str, grids: list[list[int]], seconds: float | None
) -> None:
    merge = 2 if name == "ernie4_5_vl_moe" else 1
    grids = [[merge * grid[0], *grid[1:]] for grid in grids]
    spans = [(IMAGE, 4)] + [span for grid in grids for span in ((6, 3), (VIDEO, frames(grid) // merge))]
    ids = prompt([*spans, (7, 2), (IMAGE, 1)])
    arrays = {"image_grid_thw": [[1, 4, 4], [1, 2, 2]], "video_grid_thw": grids}
    arrays["second_per_grid_ts"] = None if seconds is None else [seconds * (1 + i) for i in range(len(grids))]
    check(name, ids, (ids == IMAGE) + 2 * (ids == VIDEO), arrays)


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("grids", CLIPS)
def test_clips_of_frames_apart_equal_get_rope_index(name: str, grids: list[list[int]]) -> None:
    token = IMAGE if name in SPLIT_CLIPS else VIDEO
    spans = [(5, 2), (IMAGE, 6)]
    for grid in grids:
        spans += [(6, 2), (CLIP_START, 1)]
        spans += [span for _ in range(grid[0]) for span in ((token, frames(grid) // grid[0]), (8, 3))]
        spans += [(CLIP_END, 1)]
    ids = prompt([*spans, (IMAGE, 1), (9, 1)])
    types = (ids == IMAGE) + 2 * (ids == VIDEO)
    if name in SPLIT_CLIPS:
        types = types + ((ids == IMAGE) & (np.cumsum(ids == CLIP_START) > np.cumsum(ids == CLIP_END)))
    check(name, ids, types, {"image_grid_thw": [[1, 4, 6], [1, 2, 2]], "video_grid_thw": grids})


@pytest.mark.parametrize("sections", [[4, 2, 2], [4, 2, 2, 2], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("grids", PICTURES)
@pytest.mark.parametrize("wrapped", [0, 2])
def test_hunyuan_pictures_equal_get_rope_index(sections: list[int], grids: list[list[int]], wrapped: int) -> None:
    spans = [(5, 3)]
    for _, rows, columns in grids:
        spans += [(IMAGE, rows // 2 * (columns // 2 + 1) + wrapped), (6, 2)]
    ids = prompt(spans)
    check("hunyuan_vl", ids, (ids == IMAGE) * 1, {"image_grid_thw": grids}, mrope_section=sections)


OMNI = ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"]


def audio_tokens(name: str, length: int) -> int:
    lengths = np.array([length])
    return int((audio.halved(lengths) // 2 if "2_5" in name else audio.tokens_after_convolutions(lengths, 50))[0])


def check_omni(name: str, ids: np.ndarray, arrays: dict[str, Any], sound: bool = False) -> None:
    method = model_class(name).get_rope_index
    given = tensors(arrays)
    seconds = given.pop("second_per_grid_ts", None)
    reference, delta = method(
        standing_in(name),
        torch.from_numpy(ids)[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        second_per_grids=seconds,
        use_audio_in_video=sound,
        **given,
    )
    media = {field: np.array(value) for field, value in arrays.items() if value is not None}
    ours = rope.rope_index(rope.VARIANTS[name][0], ids, facts_of(name), use_audio_in_video=sound, **media)
    np.testing.assert_array_equal(ours[0], reference[:, 0].numpy(), strict=True)
    assert ours[1] == delta.item() and type(ours[1]) is type(delta.item())


@pytest.mark.parametrize("name", OMNI)
@pytest.mark.parametrize("lengths", [[], [37], [100, 1600, 399]])
@pytest.mark.parametrize("second", [1.0, 0.5, 0.33])
@pytest.mark.parametrize("clips", [*CLIPS, []])
def test_mixed_media_equal_the_omni_models(
    name: str, lengths: list[int], second: float, clips: list[list[int]]
) -> None:
    images = [[1, 4, 6], [1, 20, 2]]
    spans = [(5, 4), (VISION_START, 1), (IMAGE, 6), (9, 1)]
    for length in lengths:
        spans += [(6, 2), (SOUND_START, 1), (SOUND, audio_tokens(name, length)), (9, 1)]
    for grid in clips:
        spans += [(VISION_START, 1), (VIDEO, frames(grid)), (9, 1), (8, 3)]
    ids = prompt([*spans, (VISION_START, 1), (IMAGE, 10), (9, 1)])
    arrays: dict[str, Any] = {"image_grid_thw": images, "audio_seqlens": lengths or None}
    if clips:
        arrays |= {"video_grid_thw": clips, "second_per_grid_ts": [second * (1 + i) for i in range(len(clips))]}
    check_omni(name, ids, arrays)


@pytest.mark.parametrize("name", OMNI)
@pytest.mark.parametrize("second", [1.0, 0.5, 0.33, 5.0])
@pytest.mark.parametrize("lengths", [[37, 100, 300], [1600, 399, 20], [3000, 999, 1201]])
@pytest.mark.parametrize("clips", CLIPS + WIDE)
@pytest.mark.parametrize("between", [0, 3])
def test_clips_with_sound_equal_the_omni_models(
    name: str, second: float, lengths: list[int], clips: list[list[int]], between: int
) -> None:
    lengths = [111, *lengths[: len(clips)]]
    spans = [(5, 4), (SOUND_START, 1), (SOUND, audio_tokens(name, 111)), (9, 1), (VISION_START, 1), (IMAGE, 6), (9, 1)]
    for grid, length in zip(clips, lengths[1:], strict=True):
        # Frames come first, and in which order sound follows does not count.
        spans += [(VISION_START, 1), (SOUND_START, 1), (VIDEO, frames(grid)), (SOUND, audio_tokens(name, length))]
        spans += [(9, 2), (8, between)]
    ids = prompt([*spans, (7, 2)])
    arrays = {"image_grid_thw": [[1, 4, 6]], "video_grid_thw": clips, "audio_seqlens": lengths}
    check_omni(name, ids, arrays | {"second_per_grid_ts": [second] * len(clips)}, sound=True)


@pytest.mark.parametrize("name", OMNI)
def test_clips_without_pictures_equal_the_omni_models(name: str) -> None:
    ids = prompt([(VISION_START, 1), (VIDEO, 27 * 3), (9, 4)])
    check_omni(name, ids, {"video_grid_thw": [[3, 6, 18]], "second_per_grid_ts": [0.33]})


@pytest.mark.parametrize("name", OMNI)
def test_fractions_of_a_clips_times_are_rounded_as_in_the_omni_models(name: str) -> None:
    for count in range(110, 260):
        ids = prompt([(VISION_START, 1), (VIDEO, 3 * 4), (9, 1), (6, count), (VISION_START, 1), (VIDEO, 3 * 4), (9, 2)])
        check_omni(name, ids, {"video_grid_thw": [[3, 4, 4]] * 2, "second_per_grid_ts": [0.3337, 0.0411]})


@pytest.mark.parametrize("name", OMNI)
def test_recordings_alone_count_up_as_text(name: str) -> None:
    ids = prompt([(5, 4), (SOUND_START, 1), (SOUND, audio_tokens(name, 100)), (9, 3)])
    check_omni(name, ids, {"audio_seqlens": [100]})


@pytest.mark.parametrize("name", [*TOGETHER, *APART, "hunyuan_vl"])
def test_text_counts_up_with_no_delta(name: str) -> None:
    ids = np.arange(9) + 1000
    positions, delta = rope.rope_index(rope.VARIANTS[name][0], ids, facts_of(name, mrope_section=[1, 1, 1]))
    assert (positions == np.arange(9)).all() and positions.shape == (3, 9) and delta == 0


@pytest.mark.parametrize("name", [*OMNI, "hunyuan_vl", "qwen3_vl"])
@pytest.mark.parametrize(("tokens", "grids"), [(5, [[1, 4, 6]]), (6, [[1, 4, 6], [1, 2, 2]]), (6, None)])
def test_placeholders_that_do_not_match_are_refused(name: str, tokens: int, grids: Any) -> None:
    ids = prompt([(5, 2), (IMAGE, tokens), (6, 2)])
    media = {"video_grid_thw": np.zeros((0, 3), np.int64), "image_grid_thw": None if grids is None else np.array(grids)}
    with pytest.raises(PromptError):
        rope.rope_index(rope.VARIANTS[name][0], ids, facts_of(name, mrope_section=[1, 1, 1]), **media)


OPENED, CLOSED, SLICE, SLICED, NEWLINE = 81, 82, 83, 84, 85
CROPS = [
    [((8, 12), 0, 0, (0, 0))],
    [((32, 24), 2, 3, (24, 20)), ((8, 8), 0, 0, (0, 0))],
    [((40, 36), 1, 4, (40, 20)), ((16, 64), 3, 2, (28, 44)), ((4, 4), 0, 0, (0, 0))],
    [((24, 36), 3, 1, (36, 32)), ((36, 28), 2, 2, (36, 36))],
]
"""Pictures: rows and columns of patches of the thumbnail, of slices, and of patches in each slice."""


def canvas_prompt(pictures: Any, token: int, merge: int, between: list[int]) -> tuple[list[int], list[Any]]:
    ids: list[int] = [5, 5, 5]
    sizes = []
    for thumbnail, down, across, crop in pictures:
        ids += [OPENED, *[token] * (thumbnail[0] // merge * (thumbnail[1] // merge)), CLOSED]
        sizes += [thumbnail, *[crop] * (down * across)]
        for row in range(down):
            ids += [SLICE, *[token] * (crop[0] // merge * (crop[1] // merge)), SLICED] * across
            ids += [NEWLINE] if row + 1 < down else []
        ids += between
    return ids, sizes


@pytest.mark.parametrize("pictures", CROPS)
@pytest.mark.parametrize("clips", [[], *CROPS])
@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("between", [[], [NEWLINE], [6], [6, 7, NEWLINE, 8]])
def test_canvases_equal_minicpm(pictures: Any, clips: Any, mode: str, between: list[int]) -> None:
    merge = 2 if mode == "4x" else 4
    ids, sizes = canvas_prompt(pictures, IMAGE, merge, between)
    clip_ids, clip_sizes = canvas_prompt(clips, VIDEO, merge, between)
    ids = np.array([*ids, *(clip_ids[3:] if clips and between else clip_ids), 9][: None if between else -1])
    types = (ids == IMAGE) + 2 * (ids == VIDEO)
    markers = {"image_start_id": OPENED, "image_end_id": CLOSED, "slice_start_id": SLICE, "slice_end_id": SLICED}
    facts = markers | {"newline_id": NEWLINE, "downsample_mode": mode}
    model = model_class("minicpmv4_7")
    self = SimpleNamespace(config=SimpleNamespace(**facts), _frame_end_idx=model._frame_end_idx)
    self.get_vision_position_ids = model.get_vision_position_ids.__get__(self)
    self._group_visual_frames = model._group_visual_frames.__get__(self)
    media = {"target_sizes": np.array(sizes), "target_sizes_videos": np.array(clip_sizes) if clips else None}
    given = {name: None if array is None else torch.from_numpy(array) for name, array in media.items()}
    reference, delta = model.get_rope_index(self, torch.from_numpy(ids)[None], torch.from_numpy(types)[None], **given)
    ours = rope.rope_index("minicpmv4_7", ids, facts_of("minicpmv4_7", **facts), **media)
    np.testing.assert_array_equal(ours[0], reference[:, 0].numpy(), strict=True)
    assert ours[1] == delta.item()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 15, 16, 17, 33])
def test_stretched_places_equal_linspace(count: int) -> None:
    for length in range(1, 200):
        reference = torch.linspace(0, length - 1, count).round().long().numpy()
        np.testing.assert_array_equal(rope_canvas._line(length, count), reference, strict=True)


def test_a_crop_that_opens_the_prompt_or_was_not_given_is_refused() -> None:
    facts = facts_of("minicpmv4_7", downsample_mode="16x", **dict.fromkeys(rope.MARKERS, OPENED))
    for ids, sizes in (([IMAGE, 5], [[4, 4]]), ([OPENED, IMAGE], None), ([OPENED, IMAGE], [[4, 4], [4, 4]])):
        with pytest.raises(PromptError):
            rope.rope_index("minicpmv4_7", np.array(ids), facts, target_sizes=sizes)


@pytest.mark.parametrize("name", rope.VARIANTS)
def test_every_fact_is_in_the_config_of_its_model_type(name: str) -> None:
    variant, paths = rope.VARIANTS[name]
    assert variant in rope.ROPES
    for path in paths.values():
        value = config_of(name)
        for part in path.split("."):
            # Default configs have rope parameters without the sections that checkpoints write down.
            value = value.get(part) if isinstance(value, dict) else getattr(value, part)


def config_of(name: str) -> Any:
    if name.endswith(("_thinker", "_talker")):
        package = name.removesuffix("_thinker").removesuffix("_talker")
        module = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
        return next(c for c in vars(module).values() if getattr(c, "model_type", None) == name)()
    return AutoConfig.for_model(name)
