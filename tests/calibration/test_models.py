"""Rules of the shipped pair of models."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoProcessor

from calibration.evaluate.answers import Answerer
from calibration.evaluate.speculation import agreement
from calibration.shapes.dataset import samples
from calibration.shapes.questions import SENTENCE_KINDS
from calibration.shapes.render import blank_picture

MODELS = Path(__file__).parents[2] / "calibration" / "models"
NAMES = ("shapes-edge", "shapes-cloud")
SIZE_LIMIT_BYTES = 16_000_000


def test_both_tokenizers_are_the_same_bytes() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        edge, cloud = ((MODELS / model / name).read_bytes() for model in NAMES)
        assert edge == cloud


def test_the_pair_fits_the_repository() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= SIZE_LIMIT_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_half_precision_idefics3(name: str) -> None:
    config = json.loads((MODELS / name / "config.json").read_text())
    assert config["architectures"] == ["Idefics3ForConditionalGeneration"]
    assert config["dtype"] == "float16"
    assert config["text_config"]["model_type"] == "llama"


def test_sentence_answers_take_15_to_30_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(MODELS / "shapes-edge" / "tokenizer.json"))
    for row in samples("heldout", 480):
        if row.kind in SENTENCE_KINDS:
            assert 15 <= len(tokenizer.encode(row.answer).ids) <= 30


@pytest.fixture(scope="module", params=NAMES)
def processor(request: pytest.FixtureRequest) -> Any:
    return AutoProcessor.from_pretrained(MODELS / request.param)


def test_the_chat_template_takes_strings_and_parts(processor: Any) -> None:
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}]
    plain = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two"}]
    assert (
        processor.apply_chat_template(parts, add_generation_prompt=True, tokenize=False)
        == "<|user|><image>how many?<|assistant|>"
    )
    assert processor.apply_chat_template(plain, tokenize=False) == (
        "<|user|>how many?<|assistant|>two<end_of_utterance>"
    )


def test_a_picture_becomes_nine_image_tokens(processor: Any) -> None:
    row = next(samples("heldout", 1))
    inputs = processor(text=f"<|user|><image>{row.question}<|assistant|>", images=[row.image], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.convert_tokens_to_ids("<image>")) == 9
    assert tuple(inputs["pixel_values"].shape) == (1, 1, 3, 72, 72)


def test_text_survives_the_tokenizer(processor: Any) -> None:
    for text in ("there are two shapes.", "Zürich, 日本!"):
        ids = processor.tokenizer(text).input_ids
        assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == text


@pytest.fixture(scope="module")
def edge() -> Answerer:
    return Answerer(MODELS / "shapes-edge")


def test_a_model_agrees_with_itself_at_every_token(edge: Answerer) -> None:
    rows = list(samples("validation", 12))
    assert all(all(flags) for flags in agreement(edge, rows, edge.answer(rows)))


def test_the_shipped_edge_model_answers_by_looking(edge: Answerer) -> None:
    rows = [row for row in samples("validation", 60) if row.needs_picture]
    shown = sum(said.text == row.answer for said, row in zip(edge.answer(rows), rows, strict=True))
    blank = sum(said.text == row.answer for said, row in zip(edge.answer(rows, blank_picture()), rows, strict=True))
    assert shown >= 0.5 * len(rows)
    assert blank <= 0.4 * len(rows)
