"""Requests that hold one of the two things a model reads: texts without pictures, a question without its sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch

from msao_compile.errors import InputError
from msao_compile.runtime import load
from msao_compile.stages.parity import check_deployment

CHANCE = np.random.default_rng(0)
PICTURES = {"pixel_values": CHANCE.standard_normal((2, 3, 72, 72)).astype(np.float32)}
TEXTS = {"input_ids": np.concatenate([CHANCE.integers(10, 700, (3, 6)), np.full((3, 1), 3)], 1)}
SOUND = {"input_features": CHANCE.standard_normal((1, 16, 40)).astype(np.float32)}
ANSWER = {"decoder_input_ids": CHANCE.integers(10, 700, (1, 5))}


def test_pictures_alone_give_their_features_and_so_do_texts(
    built: Callable[[str], Path], checkpoint: Callable[[str], Path]
) -> None:
    runtime = load(built("clip"))
    both = runtime.forward({**PICTURES, **TEXTS})
    with torch.no_grad():
        asked = {name: torch.from_numpy(value) for name, value in {**PICTURES, **TEXTS}.items()}
        wanted = checkpoints.original(checkpoint("clip"))(**asked)
    for given, name in ((PICTURES, "image_embeds"), (TEXTS, "text_embeds")):
        alone = runtime.forward(given)
        assert name in alone and not {"logits_per_image", "logits_per_text"} & {*alone}
        np.testing.assert_allclose(alone[name], wanted[name].numpy(), atol=1e-5)
        np.testing.assert_allclose(both[name], wanted[name].numpy(), atol=1e-5)
    np.testing.assert_allclose(both["logits_per_image"], wanted["logits_per_image"].numpy(), atol=1e-4)


def test_a_decoder_that_reads_a_sound_is_not_asked_without_one(built: Callable[[str], Path]) -> None:
    runtime = load(built("whisper"))
    assert runtime.forward({**SOUND, **ANSWER})["logits"].shape == (1, 5, checkpoints.VOCABULARY)
    with pytest.raises(InputError, match="answers what its encoder reads, which is not there: give input_features"):
        runtime.forward(ANSWER)


def test_a_reference_with_an_empty_answer_is_refused(built: Callable[[str], Path], tmp_path: Path) -> None:
    """No tokens equal no tokens: that would be a pass of nothing."""
    folder, file = built("whisper"), tmp_path / "empty.npz"
    inputs = {f"in.{name}": value for name, value in {**SOUND, **ANSWER}.items()}
    logits = load(folder).forward({**SOUND, **ANSWER})["logits"]
    np.savez(file, **inputs, logits=logits, generate=np.zeros((1, 0), np.int64))
    with pytest.raises(InputError, match=r"empty.npz: generate is int64 \(1, 0\); it should be int64 \(1, tokens\)"):
        check_deployment(folder, file, None)


def test_what_could_not_be_compared_says_why(built: Callable[[str], Path]) -> None:
    evidence = check_deployment(built("whisper"), None, None)
    assert evidence.left_out == {
        "edge audio_encoder": "transformers has no method that gives as many features; compared in the whole",
        "edge text": "it answers nothing without a picture or a sound",
    }
    assert not {"audio_encoder", "text"} & {row.subject for row in evidence.rows}
