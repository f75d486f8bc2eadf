"""Answers are counted right where they are the label, and whoever answered is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from msao_compile.errors import InputError
from msao_compile.manifest.accuracy import AccuracyReport
from msao_compile.manifest.schema import Deployment, Engine
from msao_compile.runtime import load
from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.evaluate import MAX_NEW_TOKENS, read_samples, run, ways_of, wilson

QUESTIONS = ("what color is it?", "how many?", "where is the small one?")


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_the_interval_is_wilsons(right: int, asked: int, low: float, high: float) -> None:
    assert wilson(right, asked) == pytest.approx((low, high), abs=1e-4)


def on_gpu(given: Deployment, precision: str) -> Deployment:
    """The deployment with a further target, whose engines no machine here runs."""
    taken = [engine for engine in given.engines if engine.target == "device"]
    gpu = {"target": "gpu", "backend": "trt", "precision": precision, "status": "deferred"}
    more = [Engine.model_validate({**engine.model_dump(), **gpu}) for engine in taken]
    return given.model_copy(update={"engines": (*given.engines, *more)})


@pytest.fixture
def asked(deployment: Path, picture: Path, tmp_path: Path) -> Path:
    """Labels that are what the deployment says, but for spaces, and for the second one."""
    runtime = load(deployment)
    image = tmp_path / "picture.png"
    Image.open(picture).save(image)
    said = [runtime.generate(text, image=image, max_new_tokens=MAX_NEW_TOKENS).text for text in QUESTIONS]
    labels = [f" {said[0]} ", f"not {said[1]}", said[2]]
    rows = [{"question": text, "answer": label, "image": image.name} for text, label in zip(QUESTIONS, labels)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_way_of_running_a_model_answers_once(deployment: Path, asked: Path) -> None:
    told: list[object] = []
    arguments = {"folder": str(deployment), "samples": str(asked), "target": None, "model": None, "limit": None}
    found = AccuracyReport.model_validate(run(arguments, told.append))
    assert {row.targets: (row.marks, row.right, row.asked) for row in found.rows} == {
        ("edge",): ("101", 2, 3), ("device",): ("101", 2, 3),
    }  # fmt: skip
    assert {row.through for row in found.rows} == {"engine"} and not found.left_out
    assert told[0] == {"target": "edge", "model": "edge", "done": 0, "of": 3}
    fewer = AccuracyReport.model_validate(run({**arguments, "limit": 1, "target": "device"}, told.append))
    assert [(row.targets, row.marks) for row in fewer.rows] == [(("device",), "1")]


def test_engines_that_do_not_run_here_are_stood_in_for_by_their_graphs_and_that_is_said(
    copy: Path, asked: Path
) -> None:
    manifest = copy / "deployment.json"
    manifest.write_text(on_gpu(read_manifest(copy), "fp32").model_dump_json())
    arguments = {"folder": str(copy), "samples": str(asked), "target": "gpu", "model": None, "limit": None}
    [row] = AccuracyReport.model_validate(run(arguments, lambda _: None)).rows
    assert (row.targets, row.through, row.marks, row.dialect) == (("gpu",), "graph, not engine", "101", "portable")


def test_what_cannot_answer_here_is_told_with_the_reason(deployment: Path) -> None:
    given = read_manifest(deployment)
    ways, left_out = ways_of(on_gpu(given, "bf16"), "gpu")
    assert not ways and "multiplies nothing in bf16" in left_out["gpu edge"]
    comparing = tuple(model.model_copy(update={"decoder": None}) for model in given.models)
    ways, left_out = ways_of(given.model_copy(update={"models": comparing}))
    assert not ways and "decodes nothing" in left_out["edge edge"]


def test_a_target_or_a_model_that_is_not_there_is_refused(deployment: Path) -> None:
    for target, model, words in (("gone", None, "--target gone"), (None, "gone", "--model gone")):
        with pytest.raises(InputError, match=words):
            ways_of(read_manifest(deployment), target, model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n", "holds no sample"),
        ('{"question": "a", "answer": "b"}\n{"question": "a"}', "sample 2 is no object with question, answer"),
        ("[1]", "sample 1"),
        ("no json", "sample 1"),
    ],
)
def test_samples_that_cannot_be_read_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_samples(path, None)
    with pytest.raises(InputError, match="cannot be read"):
        read_samples(tmp_path / "gone.jsonl", None)
