"""Routes belong to tasks: with two tasks of equal route names nobody answers with the other one's model."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import manifests
import pytest

from msao_compile.errors import DeploymentError, InputError
from msao_compile.runtime import load
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.tokens import Tokenizer
from msao_compile.stages import measure


@pytest.fixture
def two_tasks(copy: Path) -> Path:
    """The tiny deployment with a second model of the same modules and a task of its own that has no `split`."""
    file = copy / "deployment.json"
    content = json.loads(file.read_text())
    content["models"].append({**content["models"][0], "name": "other"})
    content["tasks"].append({"name": "count", "models": ["other"]})
    twins = [{**route, "task": "count", "model": "other"} for route in content["routes"] if route["name"] != "split"]
    content["routes"] += twins
    file.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("route", "task", "taken"),
    [
        ("edge", "vqa", ("edge", "vqa", "edge")),
        ("edge", "count", ("edge", "count", "other")),
        ("auto", "count", ("edge", "count", "other")),
        ("auto", None, ("edge", "vqa", "edge")),
        ("split", None, ("split", "vqa", "edge")),
    ],
)
def test_a_route_is_that_of_its_task(two_tasks: Path, route: str, task: str | None, taken: tuple[str, ...]) -> None:
    found, _ = load(two_tasks).choose(route, task)
    assert (found.name, found.task, found.model) == taken


@pytest.mark.parametrize(
    ("route", "task", "said"),
    [
        ("edge", None, "route 'edge' is there for several tasks: give the task, vqa or count"),
        ("edge", "moon", "task 'moon' is not one this deployment has: choose vqa, count"),
        ("split", "count", "route 'split' is not one this deployment has: choose edge, cloud, text or auto"),
    ],
)
def test_a_route_without_a_clear_task_is_refused(two_tasks: Path, route: str, task: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(two_tasks).generate("what?", route=route, task=task)


def test_an_answer_comes_from_the_model_of_the_task(two_tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, session = [], Runtime.session
    monkeypatch.setattr(Runtime, "session", lambda self, name: asked.append(name) or session(self, name))
    load(two_tasks).generate("what?", route="edge", task="count", max_new_tokens=1)
    assert asked == ["other"]


def test_every_route_of_every_task_is_measured_with_its_own_model(
    two_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, generate = set(), Runtime.generate

    def ask(self: Runtime, *words: object, **options: object) -> object:
        asked.add((options["task"], options["route"]))
        return generate(self, *words, **options)

    monkeypatch.setattr(Runtime, "generate", ask)
    found = measure.run({"folder": str(two_tasks)}, lambda record: None)
    rows = [(row["task"], row["route"], row["model"]) for row in found["routes"]]
    assert rows == [
        ("vqa", "edge", "edge"),
        ("vqa", "cloud", "edge"),
        ("vqa", "split", "edge"),
        ("vqa", "text", "edge"),
        ("count", "edge", "other"),
        ("count", "cloud", "other"),
        ("count", "text", "other"),
    ]
    assert asked == {row[:2] for row in rows}
    assert found["machine"]["threads"] == "1"  # of the recipe, however many processors there are


def test_a_manifest_without_routes_answers_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="its manifest has no routes"):
        load(manifests.write(tmp_path, routes=[])).generate("what?")


def test_the_time_per_token_is_measured_though_the_model_would_stop_at_once(
    deployment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "eos_token_ids", tuple(range(checkpoints.VOCABULARY)))
    found = measure.run({"folder": str(deployment)}, lambda record: None)
    assert all(row["tokens"] == measure.NEW_TOKENS and row["tpot"]["min_ms"] > 0 for row in found["routes"])
