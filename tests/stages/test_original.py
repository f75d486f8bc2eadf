"""What the torch model is asked and answers: each request once, in several sizes, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from msao_compile.families.original import Original
from msao_compile.stages.parity import _aligned

STEPS, PROMPT = 3, 9


@pytest.fixture(scope="module")
def original(checkpoint: Callable[..., Path]) -> Original:
    with torch.inference_mode():
        return Original(checkpoint("qwen2_5_vl"), (), STEPS, PROMPT)


def test_every_modality_is_asked_for_in_several_sizes_and_text_alone_once(original: Original) -> None:
    assert [asked.modalities for asked in original.asked] == [("image",)] * 3 + [("video",)] * 3 + [()]
    for kind, name in (("image", "image_grid_thw"), ("video", "video_grid_thw")):
        grids = {asked.inputs[name].tobytes() for asked in original.asked if asked.modalities == (kind,)}
        assert len(grids) == 3


def test_a_modality_that_the_recipe_leaves_out_is_not_asked_for(checkpoint: Callable[..., Path]) -> None:
    with torch.inference_mode():
        left = Original(checkpoint("qwen2_5_vl"), ("vision_encoder", "video_encoder"), 1, PROMPT)
    assert [asked.modalities for asked in left.asked] == [()]


def test_the_first_step_is_the_last_row_of_the_pass_and_the_others_follow_the_teacher(original: Original) -> None:
    for asked in original.asked:
        assert asked.steps.shape == (STEPS + 1, asked.outputs["logits"].shape[-1])
        np.testing.assert_allclose(asked.steps[0], asked.outputs["logits"][0, -1], atol=1e-5)
    plain = original.asked[-1]
    ids = np.concatenate([plain.inputs["input_ids"], plain.teacher[None]], 1)
    with torch.inference_mode():
        whole = original.model(input_ids=torch.from_numpy(ids)).logits[0, -STEPS - 1 :].numpy()
    np.testing.assert_allclose(plain.steps, whole, atol=1e-4)


def test_a_generate_that_forgets_processors_follows_the_teacher_and_what_it_took_is_told(original: Original) -> None:
    generate = original.model.generate
    teacher, plain = np.array([11, 12, 13]), original.asked[-1].inputs

    def forgetful(*args: Any, logits_processor: Any = None, **named: Any) -> Any:
        return generate(*args, suppress_tokens=[12], **named)

    with patch.object(original.model, "generate", forgetful), torch.inference_mode():
        _, taken, logits = original._stepped(plain, teacher)
    assert (taken[0], taken[1] != 12, taken[2], len(logits)) == (11, True, 13, 4)


def test_features_are_those_of_the_model_s_own_method(original: Original) -> None:
    for asked in original.asked:
        assert set(asked.features) == {f"{modality}_features" for modality in asked.modalities}
        for features in asked.features.values():
            places = sum(int((asked.inputs["input_ids"] == token).sum()) for token in (4, 5))
            assert features.shape == (places, 32)


@pytest.mark.parametrize(
    ("ours", "wanted", "start", "compared"),
    [
        ([[7, 8, 9]], [[7, 8, 9]], None, [[7, 8, 9]]),
        ([[7, 8, 9]], [[1, 7, 8]], 1, [[1, 7, 8]]),  # the reference holds the token that opened the answer
        ([[7, 8, 9]], [[7, 8, 9]], 1, [[7, 8, 9]]),
        ([[1, 7, 8]], [[1, 7, 8]], 1, [[1, 7, 8]]),  # an answer that begins with that very token
        ([[7, 8, 9]], [[1, 7, 6]], 1, [[1, 7, 8]]),  # what differs still differs
        ([[7, 8], [5, 6]], [[1, 7], [2, 5]], 1, [[7, 8], [5, 6]]),  # not every row opens with it
        ([[7, 8, 9]], [[1, 7, 8]], None, [[7, 8, 9]]),
    ],
)
def test_tokens_are_counted_as_the_reference_counts_them(
    ours: list[list[int]], wanted: list[list[int]], start: int | None, compared: list[list[int]]
) -> None:
    assert _aligned(np.array(ours), np.array(wanted), start).tolist() == compared
