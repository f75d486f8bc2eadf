"""A recipe with samples is fitted as it is built: kept, told by `plan`, and never without what shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import building
import pytest
from building import Workshop, planned, write_recipe
from conftest import Checkpoint
from PIL import Image

from msao_compile.errors import InputError, RecipeError
from msao_compile.manifest.fit_evidence import MasEvidence
from msao_compile.manifest.schema import SCHEMA_MAJOR, SCHEMA_MINOR, Deployment
from msao_compile.runtime import load
from msao_compile.runtime.loader import locate, read_manifest
from msao_compile.runtime.mas.payload import Form
from msao_compile.stages.fit import applied, run
from msao_compile.stages.fit.record import WEIGHTS, Recorder
from msao_compile.stages.fit.samples import read
from msao_compile.stages.fit.whole import entry_of

QUESTIONS = ("what color is it?", "how many are there?", "what shape is the red one?", "where is the circle?")
SAMPLES = 24


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about plain pictures, and some without one; the labels are what nobody says."""
    folder = tmp_path_factory.mktemp("samples")
    rows = []
    for place in range(SAMPLES):
        row = {"question": f"{QUESTIONS[place % 4]} {place // 4}", "answer": "42"}
        if place % 4 != 3:
            Image.new("RGB", (48, 48), (9 * place, 100, 255 - 9 * place)).save(folder / f"{place}.png")
            row["image"] = f"{place}.png"
        rows.append(row)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "samples.jsonl"


@pytest.fixture(scope="module")
def twins(
    workshop: Workshop, checkpoint: Checkpoint, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workshop:
    """A drafter and a verifier of the same weights, built with the samples; `folder` holds the recipe."""
    folder = tmp_path_factory.mktemp("twins")
    shutil.copytree(workshop.folder / "store", folder / "store")
    shutil.copytree(checkpoint("idefics3"), folder / "twin")
    models = {"edge": (checkpoint("idefics3"), "draft"), "cloud": (folder / "twin", "target")}
    recipe = write_recipe(folder / "twins.toml", models, targets={"edge": "fused"})
    recipe.write_text(recipe.read_text() + f'[mas]\nsamples = "{samples}"\nepsilon = 0.3\ntrials = 4\n')
    made = Workshop(folder, jobs=1)  # in this process, where torch's contexts are everybody's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msao_compile.runner.run_job", building.run_here)
        made.build(recipe)
    return made


@pytest.fixture(scope="module")
def built(twins: Workshop) -> Path:
    return twins.options.out / "twins"


def evidence(folder: Path, manifest: Deployment) -> MasEvidence:
    return MasEvidence.model_validate_json(locate(folder, manifest.evidence["mas"]).read_bytes())


def test_a_build_fits_what_its_recipe_has_samples_for(built: Path) -> None:
    manifest = read_manifest(built)
    assert (
        manifest.mas is not None
        and manifest.mas.bound is not None
        and manifest.schema_version == f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}"
    )
    assert manifest.mas.samples.fit + manifest.mas.samples.held_out == SAMPLES
    assert manifest.mas.bound.upper <= 0.3 and manifest.mas.calibrated(0.3)
    weights = {probe.name: probe.weights for probe in manifest.mas.probes}
    assert list(weights) == ["early", "classical", "words"] and weights["classical"][2] == 0
    assert weights["early"] != WEIGHTS["early"]
    [entry] = manifest.speculation
    assert entry.evidence == manifest.mas.evidence == manifest.evidence["mas"]
    assert entry.draft_tokens == manifest.mas.thresholds.gamma_max
    found = evidence(built, manifest)
    assert found.bound == manifest.mas.bound and found.chosen == manifest.mas.thresholds and len(found.trials) == 4
    assert {one.way: one.as_cloud for one in found.sets[1].answered}["edge"] == 1  # twins say the same
    assert found.sets[0].drafts_kept == found.sets[1].drafts_kept == 1
    assert entry.acceptance.at(0.5) == 1


def test_the_second_build_reads_it_from_the_store_and_plan_tells(twins: Workshop, built: Path) -> None:
    recipe, before = twins.folder / "twins.toml", (built / "deployment.json").read_bytes()
    assert twins.build(recipe).ran == 0
    assert (built / "deployment.json").read_bytes() == before
    assert [(step.stage, step.state) for step in planned(recipe, twins.options)][-1] == ("fit", "reuse")
    stricter = recipe.with_name("stricter.toml")
    stricter.write_text(recipe.read_text().replace("epsilon = 0.3", "epsilon = 0.2"))
    step = planned(stricter, twins.options)[-1]
    assert (step.stage, step.subject, step.state) == ("fit", "vqa", "run")
    assert step.reasons == ("settings.epsilon 0.3 → 0.2",)


def test_a_first_plan_says_that_it_will_be_fitted(twins: Workshop, tmp_path: Path) -> None:
    fresh = Workshop(tmp_path)
    step = planned(twins.folder / "twins.toml", fresh.options)[-1]
    assert (step.stage, step.state, step.reasons) == ("fit", "run", ("follows measure",))


def test_a_recipe_with_samples_and_nobody_to_draft_is_refused(
    twins: Workshop, checkpoint: Checkpoint, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(
        twins.folder / "one.toml", {"edge": (checkpoint("idefics3"), "draft")}, targets={"edge": "fused"}
    )
    recipe.write_text(recipe.read_text() + f'[mas]\nsamples = "{samples}"\nepsilon = 0.3\n')
    monkeypatch.setattr("msao_compile.runner.run_job", building.run_here)
    with pytest.raises(RecipeError, match="mas: no task has a model that drafts"):
        twins.build(recipe)


def test_what_is_recorded_is_what_the_models_say(built: Path, samples: Path) -> None:
    runtime = load(built)
    recorder = Recorder(runtime.session("edge"), runtime.session("cloud"), Form(4, 85, (90, 90, 90)), WEIGHTS)
    with_picture, without = read(samples)[0], read(samples)[3]
    for sample in (with_picture, without):
        found = recorder.record(sample)
        for said, route in ((found.edge, "edge"), (found.cloud, "cloud")):
            answer = runtime.generate(sample.question, list(sample.pictures), max_new_tokens=64, route=route)
            assert (said.text, said.tokens) == (answer.text.strip(), answer.token_ids)
        plain = runtime.generate(sample.question, max_new_tokens=64, route="cloud")
        assert found.cloud_text.tokens == plain.token_ids
        assert len(found.told) == len(found.cloud.confidences) and found.told == found.edge.confidences
        assert found.pictures == len(sample.pictures) and found.edge_tokens >= found.text_tokens
    assert set(recorder.record(with_picture).read) == {"early", "classical"}


@pytest.fixture
def mine(built: Path, tmp_path: Path) -> Path:
    """A copy to fit again."""
    return Path(shutil.copytree(built, tmp_path / "mine"))


def asked(folder: Path, samples: Path, **changes: object) -> dict[str, object]:
    given = {
        "folder": str(folder), "samples": str(samples), "held_out": None, "task": None, "epsilon": 0.3, "trials": 2,
        "seed": 1, "mbps": 50.0, "rtt_ms": 20.0, "setting": None,
    }  # fmt: skip
    return {**given, **changes}


def test_a_loss_that_was_not_shown_enables_nothing_and_leaves_the_rest(mine: Path, samples: Path) -> None:
    value = run(asked(mine, samples, epsilon=0.01), lambda record: None)  # ten samples show a loss of 26 % at best
    after = applied.write(mine, read_manifest(mine), value)
    assert after == read_manifest(mine) and after.mas is not None
    assert after.mas.bound is None and not after.mas.calibrated(0.9) and after.mas.reduced == ()
    assert after.mas.thresholds.tau_alone is None and after.speculation[0].evidence is not None
    assert evidence(mine, after).candidates[0].verdict == "failed"


def test_a_fit_takes_the_place_of_the_one_before_and_leaves_no_file_of_it(mine: Path, samples: Path) -> None:
    for turn, name in ((1, "evidence/mas.1.json"), (2, "evidence/mas.json")):
        value = run(asked(mine, samples, seed=turn), lambda record: None)
        after = applied.write(mine, read_manifest(mine), value)
        assert after.evidence["mas"].path == name and after.mas is not None and after.mas.seeds["search"] == turn
        assert sorted(path.name for path in (mine / "evidence").glob("mas*")) == [name.removeprefix("evidence/")]
        for reference in after.all_files().values():
            locate(mine, reference)


def test_a_task_that_does_not_speculate_is_refused(mine: Path, samples: Path) -> None:
    with pytest.raises(InputError, match=r"task 'moon' is not one that has a model that drafts .*\(vqa\)"):
        run(asked(mine, samples, task="moon"), lambda record: None)
    assert entry_of(read_manifest(mine), "vqa").drafter == "edge"


def test_devices_that_are_declared_cost_what_is_declared_and_a_bad_file_is_told_before_models_are_asked(
    mine: Path, samples: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"none\.toml: not a setting in TOML"):
        run(asked(mine, samples, setting=str(tmp_path / "none.toml")), lambda told: pytest.fail(str(told)))
    value = run(asked(mine, samples, setting="recipes/settings/msao.toml"), lambda record: None)
    assert value["evidence"]["link"]["devices"] == ["RTX 3090 with Qwen2-VL-2B", "A100-40GB with Qwen2.5-VL-7B"]
    assert value["evidence"]["costs_ms"]["cloud"] > 34 + 34  # one picture and a prompt there, at the least


def test_the_same_seed_fits_the_same(mine: Path, samples: Path) -> None:
    found = [run(asked(mine, samples, seed=5), lambda record: None) for _ in range(2)]
    assert found[0]["mas"] == found[1]["mas"] and found[0]["speculation"] == found[1]["speculation"]
