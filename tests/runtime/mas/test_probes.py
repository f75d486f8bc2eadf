"""Probes on a real drafter: they read what it makes, it makes nothing twice, and what fails leaves things dense."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from msao_compile.errors import InputError
from msao_compile.runtime import load
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.mas.classical import energy_and_entropy
from msao_compile.runtime.mas.measures import sigmoid, similarity, top_mean
from msao_compile.runtime.mas.probes import PROBES, Look, Readings, Settings, cheaper, open_probe, prefill
from msao_compile.runtime.mas.prune import kept_tokens
from msao_compile.runtime.mas.reading import Action, Fitted, Limits, dense
from msao_compile.runtime.mas.temporal import TemporalLimits
from msao_compile.runtime.mas.words import prompt_score, word_table
from msao_compile.runtime.session import ModelSession, Request

QUESTION = "what color is the circle?"
SETTINGS = Settings(Fitted((0.3, 0.3, 0.4), (0.5, 1.0, 1.0, 1.0)), Limits(0.6, 0.1, 0.05, TemporalLimits(0.9)))
DROP = Settings(Fitted((0.3, 0.3, 0.4), (-9.0, 0.0, 0.0, 0.0)), SETTINGS.limits)


class Watched:
    """An engine that counts its runs, and may spoil what it gives."""

    def __init__(self, engine: Any, spoil: Callable[[np.ndarray], np.ndarray] = lambda value: value) -> None:
        self.engine, self.spoil, self.runs = engine, spoil, 0
        self.inputs, self.types = engine.inputs, engine.types

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        self.runs += 1
        return {name: self.spoil(value) for name, value in self.engine.run(feed).items()}


@pytest.fixture(scope="module")
def session(deployment: Path) -> ModelSession:
    return load(deployment).session("edge")


@pytest.fixture(scope="module")
def shown() -> Image.Image:
    """A circle at the top left of a plain picture."""
    picture = Image.new("RGB", (144, 144), (90, 100, 110))
    ImageDraw.Draw(picture).ellipse((6, 6, 42, 42), fill=(215, 40, 40))
    return picture


def look(session: ModelSession, *pictures: Image.Image) -> Look:
    return Look(QUESTION, pictures, session.prepare(QUESTION, pictures))


def watched(session: ModelSession, **spoils: Callable[[np.ndarray], np.ndarray]) -> ModelSession:
    engines = {name: Watched(engine, spoils.get(name, lambda value: value)) for name, engine in session.engines.items()}
    return ModelSession(session.model, session.folder, engines, session.decoder)


@pytest.mark.parametrize(
    ("name", "probe_ms", "ttft_ms", "taken"),
    [
        ("dual", 2.0, 100.0, "dual"), ("dual", 2.1, 100.0, "early"), ("early", 9.0, 100.0, "classical"),
        ("classical", 9.0, 100.0, "words"), ("words", 9.0, 100.0, None), ("words", 0.0, 0.0, "words"),
    ],
)  # fmt: skip
def test_a_probe_that_takes_more_than_2_percent_gives_way(
    name: str, probe_ms: float, ttft_ms: float, taken: str | None
) -> None:
    assert cheaper(name, probe_ms, ttft_ms) == taken


def test_unknown_probes_are_refused(session: ModelSession) -> None:
    with pytest.raises(InputError, match=r"probe 'earli' is not one; did you mean early\?"):
        open_probe("earli", SETTINGS, session)
    with pytest.raises(InputError, match="choose dual, early, classical, words"):
        cheaper("zzz", 1.0, 1.0)
    with pytest.raises(InputError, match="needs a dual encoder"):
        open_probe("dual", SETTINGS, session)


@pytest.mark.parametrize("name", ["early", "classical", "words"])
def test_no_module_runs_twice_and_prefill_goes_on_with_the_same_numbers(
    session: ModelSession, shown: Image.Image, name: str
) -> None:
    ours, asked, clock = watched(session), look(session, shown), Clock()
    readings = open_probe(name, SETTINGS, ours).read(asked, ours, clock)
    logits, talk = prefill(ours, asked.request, readings, clock)
    assert {component: engine.runs for component, engine in ours.engines.items()} == {
        "vision_encoder": 1, "embed_tokens": 1,
    }  # fmt: skip
    wanted, other = session.prefill(asked.request, session.encode(asked.request.tensors, Clock()), Clock())
    assert np.array_equal(logits, wanted) and talk.offset == other.offset
    assert {"probe", "vision_encoder", "embed_tokens", "decoder"} <= {*clock.modules_ms}


@pytest.mark.parametrize("name", ["early", "classical", "words"])
def test_a_request_without_pictures_has_no_reading(session: ModelSession, name: str) -> None:
    asked = look(session)
    readings = open_probe(name, SETTINGS, session).read(asked, session, Clock())
    assert readings == Readings()
    logits, _ = prefill(session, asked.request, readings, Clock(), prunes=True)
    assert np.array_equal(logits, session.prefill(asked.request, {}, Clock())[0])


def test_early_reads_the_cells_of_the_drafters_own_grid(session: ModelSession, shown: Image.Image) -> None:
    readings = open_probe("early", SETTINGS, session).read(look(session, shown), session, Clock())
    assert [cells.shape for cells in readings.of["image"].kept] == [(3, 3)]
    assert readings.tiles["image"][0].box == (0, 0, 1, 1)
    assert 0 < readings.of["image"].needed < 1


def test_early_holds_features_against_the_users_words_alone(session: ModelSession, shown: Image.Image) -> None:
    asked = look(session, shown)
    close = Settings(Fitted((0.3, 0.3, 0.4), (0.0, 1.0, 0.0, 0.0)), SETTINGS.limits)
    readings = open_probe("early", close, session).read(asked, session, Clock())
    said = session.tokenizer.encode(" " + QUESTION, add_special_tokens=False)
    places = [index for index, token in enumerate(asked.request.ids.tolist()) if token in said]
    words = readings.embeds["inputs_embeds"][0][places]
    similar = top_mean(similarity(readings.encoded["image_features"].reshape(9, -1), words))
    assert readings.of["image"].needed == pytest.approx(sigmoid(similar))


@pytest.mark.parametrize(("action", "left"), [("full", 12), ("reduce", 7), ("drop", 3)])
def test_tokens_go_only_where_a_reading_says_so(session: ModelSession, action: Action, left: int) -> None:
    ids = np.array([9, *[checkpoints.IMAGE_TOKEN] * 9, 10, 11])
    cells = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    found = replace(dense([(3, 3)]), kept=(cells,), action=action)
    kept = kept_tokens(session.model, ids, {"image": found})
    assert kept.sum() == left and kept[[0, 10, 11]].all()
    other = replace(found, kept=(np.zeros((6, 6), bool),))  # cells that are not the drafter's tokens
    assert kept_tokens(session.model, ids, {"image": other}).sum() == (3 if action == "drop" else 12)


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_features_that_say_nothing_are_dense(session: ModelSession, shown: Image.Image, value: float) -> None:
    broken = watched(session, vision_encoder=lambda features: features * np.float32(value))
    found = open_probe("early", DROP, session).read(look(session, shown), broken, Clock()).of["image"]
    assert (found.action, found.mas, found.needed) == ("full", 0, 1)


def test_classical_keeps_the_object_and_not_the_plain_ground(session: ModelSession, shown: Image.Image) -> None:
    readings = open_probe("classical", SETTINGS, session).read(look(session, shown), session, Clock())
    kept = readings.of["image"].kept[0]
    assert kept.shape == (6, 6) and kept[:2, :2].all() and not kept[3:].any() and not kept[:, 3:].any()
    assert readings.of["image"].action == "reduce"
    assert max(bottom for _, _, _, bottom in readings.kept_boxes(0)) == 0.5
    both = open_probe("classical", SETTINGS, session).read(look(session, shown.rotate(180), shown), session, Clock())
    assert min(top for _, top, _, _ in both.kept_boxes(0)) == 0.5
    assert max(bottom for _, _, _, bottom in both.kept_boxes(1)) == 0.5


def test_a_flat_picture_has_neither_energy_nor_entropy_and_an_edge_has_both() -> None:
    grey = np.full((48, 48), 60.0)
    grey[:, 4:8] = 200.0
    energy, entropy = energy_and_entropy(grey)
    assert energy[0] == pytest.approx(140 / 8) and entropy[0] == pytest.approx(1 / 4)
    assert energy[1] == pytest.approx(140 / 8) and entropy[1] == 0  # the step down, seen from the right
    assert not energy[2:6].any() and not entropy[2:6].any()


def test_words_alone_drop_and_otherwise_keep_everything(session: ModelSession, shown: Image.Image) -> None:
    asked = look(session, shown)
    kept, dropped = (open_probe("words", given, session).read(asked, session, Clock()) for given in (SETTINGS, DROP))
    assert kept.of["image"].action == "full" and kept.kept_boxes(0) == [(0, 0, 1, 1)]
    assert dropped.of["image"].action == "drop"


def test_the_words_of_a_prompt_add_up_once_each() -> None:
    weights = {5: 1.5, 7: -4.0, 9: 50.0}
    assert prompt_score(np.array([5, 5, 5, 6]), weights) == 1.5
    assert prompt_score(np.array([5, 7]), weights) == -2.5
    assert prompt_score(np.array([9]), weights) == 8 and prompt_score(np.array([], np.int64), weights) == 0


def test_words_are_the_users_and_not_the_templates(session: ModelSession, shown: Image.Image) -> None:
    ids = session.prepare(QUESTION, (shown,)).ids
    said = session.tokenizer.decode(ids[word_table(session)[ids]].tolist(), skip_special_tokens=False)
    assert said.strip() == QUESTION


@pytest.mark.parametrize("action", ["reduce", "drop"])
def test_pruned_tokens_keep_their_positions(
    session: ModelSession, checkpoint: Callable[[str], Path], shown: Image.Image, action: Action
) -> None:
    """What is left out of the prompt might as well be there and never be attended to: as transformers computes it."""
    asked = look(session, shown)
    found = open_probe("early", SETTINGS, session).read(asked, session, Clock())
    kept = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], bool)
    readings = replace(found, of={"image": replace(found.of["image"], kept=(kept,), action=action)})
    logits, talk = prefill(session, asked.request, readings, Clock(), prunes=True)
    later = session.extend(np.array([11, 12]), talk, Clock())

    seen = np.ones(len(asked.request.ids) + 2, np.int64)
    seen[np.flatnonzero(asked.request.ids == checkpoints.IMAGE_TOKEN)] = kept.reshape(-1) & (action == "reduce")
    assert talk.cache.length == seen.sum() == len(seen) - (3 if action == "reduce" else 9)
    ids = np.concatenate([asked.request.ids, [11, 12]])[None]
    given = {"input_ids": ids, "attention_mask": seen[None], "position_ids": np.arange(len(seen))[None]}
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in (given | asked.request.tensors).items()}
        wanted = checkpoints.original(checkpoint("idefics3"))(**tensors).logits[0, -3:].numpy()
    np.testing.assert_allclose(np.concatenate([logits, later]), wanted, atol=1e-4)


def test_clips_are_read_frame_by_frame(built: Callable[[str], Path]) -> None:
    session = load(built("qwen2_5_vl")).session("edge")
    asked = Look("", (), clip(session))
    found = open_probe("early", SETTINGS, session).read(asked, session, Clock()).of["video"]
    assert [cells.shape for cells in found.kept] == [(2, 3)] * 4
    assert found.kept_frames is not None and found.kept_frames.tolist() == [True, False, False, True]
    assert found.kappa_temporal == 0.5


def clip(session: ModelSession) -> Request:
    """Four frames of 4 x 6 patches, of which the first three are the same."""
    chance = np.random.default_rng(0)
    one, other = chance.standard_normal((2, 24, 96)).astype(np.float32)
    token = session.model.placeholders["video"]
    ids = np.array([9, 10, *[token] * 24, 11, 12], np.int64)
    tensors = {"pixel_values_videos": np.concatenate([one, one, one, other]),
               "video_grid_thw": np.array([[4, 4, 6]]), "second_per_grid_ts": np.array([1.0])}  # fmt: skip
    return Request(ids, tensors)


@pytest.fixture
def dual(built: Callable[[str], Path], tmp_path: Path) -> ModelSession:
    """The tiny CLIP, with a tokenizer and the settings of its picture processor."""
    folder = Path(shutil.copytree(built("clip"), tmp_path / "clip"))
    manifest = json.loads((folder / "deployment.json").read_text())
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 72},
                "crop_size": {"height": 72, "width": 72}}  # fmt: skip
    files = {
        "tokenizer/edge/tokenizer.json": (checkpoints.SIDE_FILES / "tokenizer.json").read_bytes(),
        "preprocessor/edge/preprocessor_config.json": json.dumps(settings).encode(),
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        manifest["models"][0]["files"].append({"path": path, "sha256": digest, "size_bytes": len(content)})
    (folder / "deployment.json").write_text(json.dumps(manifest))
    return load(folder).session("edge")


def test_dual_looks_at_parts_of_each_picture(session: ModelSession, dual: ModelSession, shown: Image.Image) -> None:
    asked, clock = look(session, shown, shown.rotate(180)), Clock()
    readings = open_probe("dual", SETTINGS, session, dual).read(asked, session, clock)
    one, other = readings.of["image"].kept
    assert one.shape == other.shape == (3, 3)
    assert {*clock.modules_ms} == {"probe"}  # all of its time is overhead
    tall = open_probe("dual", SETTINGS, session, dual).read(look(session, shown.resize((40, 90))), session, Clock())
    assert tall.of["image"].needed < 1


def test_a_dual_encoder_that_fails_leaves_pictures_dense(
    session: ModelSession, dual: ModelSession, shown: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    empty = Look("", (shown,), session.prepare(QUESTION, (shown,)))
    found = open_probe("dual", DROP, session, dual).read(empty, session, Clock())
    assert found.of["image"].mas == 0 and found.kept_boxes(0) == [(0, 0, 1, 1)]
    assert "the dual encoder edge failed" in caplog.text


def test_every_probe_of_the_registry_opens(session: ModelSession, dual: ModelSession) -> None:
    for name in PROBES:
        assert callable(open_probe(name, SETTINGS, session, dual).read)
