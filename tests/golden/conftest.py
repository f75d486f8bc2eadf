"""The shipped recipe built once, and what transformers answers to held-out questions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from building import ROOT, SHAPES, Workshop
from transformers import AutoModelForImageTextToText, AutoProcessor

from calibration.shapes.dataset import Sample, samples
from msao_compile.runtime import load
from msao_compile.runtime.api import Runtime

QUESTIONS, NEW_TOKENS = 204, 32
Tokens = tuple[int, ...]


@pytest.fixture(scope="session")
def questions() -> list[Sample]:
    """Held-out questions, every kind in turn."""
    return list(samples("heldout", QUESTIONS))


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """The shipped deployment."""
    return load(Workshop(tmp_path_factory.mktemp("shapes")).build(SHAPES).folder)


@pytest.fixture(scope="session")
def greedy(questions: list[Sample]) -> Callable[[str], list[Tokens]]:
    """`greedy(model)`: what transformers' `generate` answers to every question; float32, eager, one at a time."""

    @cache
    def answers(name: str) -> list[Tokens]:
        folder = ROOT / "calibration" / "models" / f"shapes-{name}"
        processor: Any = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        return [_answer(processor, model, row) for row in questions]

    return answers


@torch.no_grad()
def _answer(processor: Any, model: Any, row: Sample) -> Tokens:
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.question}]}]
    text = processor.apply_chat_template(parts, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, images=[row.image], return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ].tolist()
    stop = model.generation_config.eos_token_id
    return tuple(found[: found.index(stop)] if stop in found else found)
