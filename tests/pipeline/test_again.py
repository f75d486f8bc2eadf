"""Builds after the first one: nothing runs twice, only what changed runs again, damage is found, plans tell why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import building
import pytest
from building import Workshop, planned, python, run, write_recipe

from msao_compile import asks
from msao_compile.errors import RecipeError
from msao_compile.farm.job import Job, Result
from msao_compile.pipeline import build
from msao_compile.runtime import load
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.loader import read_manifest, verify
from msao_compile.store.store import Store

Checkpoint = Callable[..., Path]


@pytest.fixture
def mine(workshop: Workshop, deployment: Path, tmp_path: Path) -> Workshop:
    """A workshop of my own that has built what the shared one has; its objects are copies, not links."""
    shutil.copytree(workshop.options.store, tmp_path / "store")
    return Workshop(tmp_path)


@pytest.fixture
def recipe(mine: Workshop, checkpoint: Checkpoint) -> Path:
    return write_recipe(mine.folder / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def damage(path: Path) -> None:
    """Another byte in the middle, in place, as a failing program would leave it."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_second_build_runs_nothing_and_leaves_the_same_deployment(
    mine: Workshop, recipe: Path, deployment: Path
) -> None:
    again = mine.build(recipe)
    assert (again.ran, again.reused > 10) == (0, True)
    assert mine.ran() == []
    assert (again.folder / "deployment.json").read_bytes() == (deployment / "deployment.json").read_bytes()
    verify(again.folder, again.deployment)


def test_what_is_no_encoder_cannot_be_excluded(mine: Workshop, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + 'exclude = ["decoder"]\n')
    with pytest.raises(RecipeError, match=r"export.exclude: 'decoder' is no encoder of pictures, clips or sounds"):
        mine.build(recipe)


def test_a_build_that_runs_nothing_imports_neither_torch_nor_onnx(mine: Workshop, recipe: Path) -> None:
    code = """
import sys
from pathlib import Path
from msao_compile.pipeline import Options, build
built = build(Path(sys.argv[1]), Options(Path(sys.argv[2]), Path(sys.argv[3])), lambda event: None)
print(built.ran, sorted({"torch", "transformers", "onnx", "onnx_ir", "onnxruntime"} & set(sys.modules)))
"""
    done = python(code, recipe, mine.options.out, mine.options.store)
    assert done.stdout == "0 []\n", done.stderr


def test_a_changed_bound_runs_parity_and_nothing_before_it(
    mine: Workshop, recipe: Path, checkpoint: Checkpoint
) -> None:
    write_recipe(recipe, {"edge": (checkpoint("idefics3"), "draft")}, max_abs=2e-3)
    mine.build(recipe)
    assert mine.ran() == ["parity"]


def test_a_bound_that_is_broken_exits_5_and_leaves_no_deployment(
    mine: Workshop, recipe: Path, checkpoint: Checkpoint
) -> None:
    write_recipe(recipe, {"edge": (checkpoint("idefics3"), "draft")}, max_abs=1e-9)
    done = run("build", recipe, workshop=mine)
    assert done.returncode == 5
    assert "error: parity failed for edge/" in done.stderr
    assert "bound min_cosine 0.9999, max_abs 1e-09" in done.stderr
    assert not (mine.options.out / "tiny").exists()


@pytest.mark.parametrize(
    ("name", "stages"),
    [("modules/edge/embed_tokens.onnx.data", ["load"]), ("modules/edge/embed_tokens.fused.onnx", ["export"]),
     ("tokenizer/edge/tokenizer.json", [])],
)  # fmt: skip
def test_a_flipped_byte_in_an_object_is_found_and_only_that_object_is_made_again(
    mine: Workshop, recipe: Path, deployment: Path, name: str, stages: list[str]
) -> None:
    reference = read_manifest(deployment).all_files()[name]
    held = next((mine.options.store / "objects").rglob(reference.sha256))
    damage(held)
    built = mine.build(recipe)
    assert mine.ran() == stages
    verify(built.folder, built.deployment)
    assert Store(mine.options.store).verify() == []


def test_a_damaged_deployment_is_made_whole_again(mine: Workshop, recipe: Path) -> None:
    built = mine.build(recipe)
    (built.folder / "modules/edge/decoder.onnx").unlink()
    (built.folder / "tokenizer/edge/tokenizer.json").unlink()
    (built.folder / "tokenizer/edge/tokenizer.json").write_text("{}")
    (built.folder / "modules/edge/old.onnx").write_text("x")
    (built.folder / "modules/gone").mkdir()
    mine.build(recipe)
    verify(built.folder, built.deployment)
    assert not (built.folder / "modules/edge/old.onnx").exists()
    assert not (built.folder / "modules/gone").exists()


def test_what_a_user_keeps_in_the_folder_stays(mine: Workshop, recipe: Path) -> None:
    for name in ("notes.txt", "photos/one.png", ".hidden"):
        (mine.options.out / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (mine.options.out / "tiny" / name).write_text("mine")
    built = mine.build(recipe)
    assert {path.name for path in built.folder.rglob("*") if path.is_file()} >= {"notes.txt", "one.png", ".hidden"}


def test_two_builds_that_write_at_once_leave_one_whole_deployment(mine: Workshop, recipe: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(8):
            shutil.rmtree(mine.options.out, ignore_errors=True)
            both = [pool.submit(build, recipe, mine.options, lambda event: None) for _ in range(2)]
            for one in both:
                verify(one.result().folder, one.result().deployment)


def test_a_plan_says_why_and_writes_nothing(mine: Workshop, recipe: Path, checkpoint: Checkpoint) -> None:
    write_recipe(recipe, {"edge": (checkpoint("idefics3"), "draft")}, max_abs=2e-3)
    before = snapshot(mine.folder)
    steps = {step.stage: step for step in planned(recipe, mine.options)}
    assert snapshot(mine.folder) == before
    assert (steps["split"].state, steps["export"].state, steps["parity"].state) == ("reuse", "reuse", "run")
    assert steps["parity"].reasons == ("bounds.fp32.max_abs 0.001 → 0.002",)
    assert steps["parity"].seconds is not None


def test_a_first_plan_writes_nothing_at_all(checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})
    done = run("plan", recipe, "--json", workshop=Workshop(tmp_path))
    steps = json.loads(done.stdout)["steps"]
    assert done.returncode == 0
    assert {step["stage"] for step in steps} == {"split", "load", "export", "parity", "build", "measure"}
    assert {step["state"] for step in steps} == {"run"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]


def test_a_deployment_runs_after_it_was_moved_and_its_store_is_gone(
    mine: Workshop, recipe: Path, picture: Path, tmp_path: Path
) -> None:
    built = mine.build(recipe)
    here = load(built.folder).generate("what is it?", image=picture)
    shutil.copytree(built.folder, tmp_path / "elsewhere" / "moved")
    shutil.rmtree(mine.options.out)
    shutil.rmtree(mine.options.store)
    there = load(tmp_path / "elsewhere" / "moved").generate("what is it?", image=picture)
    assert there.token_ids == here.token_ids


def test_the_manifest_names_no_place_outside_the_folder(
    deployment: Path, checkpoint: Checkpoint, workshop: Workshop
) -> None:
    for path in (deployment / "deployment.json", *(deployment / "evidence").iterdir()):
        text = path.read_text()
        assert str(checkpoint("idefics3").parent) not in text
        assert str(workshop.folder) not in text


def test_the_deployment_holds_what_the_manifest_names_and_nothing_else(deployment: Path) -> None:
    files = {path.relative_to(deployment).as_posix() for path in deployment.rglob("*") if path.is_file()}
    assert files - {"report.html"} == {"deployment.json", *read_manifest(deployment).all_files()}


def test_two_models_with_the_same_modules_are_exported_stored_and_opened_once(
    mine: Workshop, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint("idefics3"), tmp_path / "twin")
    models = {"edge": (checkpoint("idefics3"), "draft"), "cloud": (tmp_path / "twin", "target")}
    monkeypatch.setattr("msao_compile.runner.run_job", building.run_here)
    built = mine.build(write_recipe(tmp_path / "twins.toml", models))
    assert [stage for stage in mine.ran() if stage in ("load", "export", "build")] == []
    assert len(built.deployment.modules) == 3
    assert built.deployment.model("edge").components == built.deployment.model("cloud").components
    assert not (built.folder / "modules/cloud").exists()
    engines = Engines(built.folder, built.deployment, verify=False)
    sessions = [engines.session(built.deployment.model(name)) for name in ("edge", "cloud")]
    assert sessions[0].decoder is sessions[1].decoder
    assert all(sessions[0].engines[name] is sessions[1].engines[name] for name in ("vision_encoder", "embed_tokens"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "moon"), "--target moon: no such target; the recipe has edge, device"),
        (("--target", "devise"), "the recipe has edge, device: did you mean 'device'?"),
        (("--module", "moon"), "--module moon: no such module; this recipe has decoder, embed_tokens, vision_encoder"),
    ],
)
def test_a_name_that_the_recipe_lacks_exits_2(
    mine: Workshop, recipe: Path, options: tuple[str, str], said: str
) -> None:
    done = run("build", recipe, *options, workshop=mine)
    assert (done.returncode, said in done.stderr) == (2, True)


def forget_portable_graphs(store: Path) -> None:
    for record in Store(store).records("export"):
        if record.key.fields["dialect"] == "portable":
            (store / "records/export" / f"{record.digest}.json").unlink()


def test_one_target_builds_its_dialect_alone(mine: Workshop, recipe: Path) -> None:
    forget_portable_graphs(mine.options.store)
    done = run("build", recipe, "--target", "edge", workshop=mine)
    assert done.returncode == 0, done.stderr
    assert "target device is left out: the store lacks a graph of it" in done.stderr
    manifest = read_manifest(mine.options.out / "tiny")
    assert {graph.dialect for module in manifest.modules for graph in module.graphs} == {"fused"}
    assert {engine.target for engine in manifest.engines} == {"edge"}


def test_one_target_keeps_the_others_whose_graphs_the_store_has(mine: Workshop, recipe: Path, deployment: Path) -> None:
    done = run("build", recipe, "--target", "edge", "--json", workshop=mine)
    assert (done.returncode, json.loads(done.stdout)["ran"]) == (0, 0), done.stderr
    there, full = read_manifest(mine.options.out / "tiny"), read_manifest(deployment)
    assert (there.modules, set(there.engines)) == (full.modules, set(full.engines))


EVERY = {"decoder", "embed_tokens", "vision_encoder"}


@pytest.mark.parametrize(
    ("subject", "unproven"), [("vision_encoder", {"vision_encoder"}), ("whole", EVERY), ("steps", EVERY)]
)
def test_an_engine_is_trusted_only_where_every_row_about_it_passed(
    mine: Workshop, recipe: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, subject: str,
    unproven: set[str],
) -> None:  # fmt: skip
    def ambiguous(job: Job, *rest: object) -> Result:
        done = building.run_here(job)
        for row in done.value["rows"] if job.function.startswith("msao_compile.stages.parity") else ():
            if (row["subject"], row["dialect"]) == (subject, "fused"):
                row["verdict"] = "AMBIGUOUS"
        return done

    write_recipe(recipe, {"edge": (checkpoint("idefics3"), "draft")}, max_abs=2e-3)
    monkeypatch.setattr("msao_compile.runner.run_job", ambiguous)
    built = mine.build(recipe).deployment
    statuses = {(built.module(engine.module).component, engine.target): engine.status for engine in built.engines}
    assert {name for name, status in statuses.items() if status == "ran"} == {(name, "edge") for name in unproven}
    assert {status for name, status in statuses.items() if name not in {(part, "edge") for part in unproven}} == {
        "parity"
    }


def test_modules_that_no_engine_is_trusted_with_are_not_timed(
    mine: Workshop, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ambiguous(job: Job, *rest: object) -> Result:
        done = building.run_here(job)
        for row in done.value["rows"] if job.function.startswith("msao_compile.stages.parity") else ():
            row["verdict"] = "AMBIGUOUS" if row["subject"] == "vision_encoder" else row["verdict"]
        return done

    models = {"edge": (checkpoint("idefics3"), "draft")}
    monkeypatch.setattr("msao_compile.runner.run_job", ambiguous)
    built = mine.build(write_recipe(mine.folder / "tiny.toml", models, max_abs=3e-3)).deployment
    assert "measure" not in built.evidence


def test_a_store_of_another_machine_opens_and_times_again_and_compares_nothing_again(
    mine: Workshop, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks, "machine", lambda: {"cpu": "another", "platform": "Linux x86_64", "cores": 64})
    states = {(step.stage, step.state) for step in planned(recipe, mine.options)}
    assert {stage for stage, state in states if state == "run"} == {"build", "measure"}


@pytest.mark.parametrize(("stage", "before"), [("load", "split"), ("build", "parity")])
def test_another_line_in_a_stage_s_code_runs_it_again_and_nothing_before_it(
    mine: Workshop, recipe: Path, monkeypatch: pytest.MonkeyPatch, stage: str, before: str
) -> None:
    digest = asks.source_digest
    monkeypatch.setattr(asks, "source_digest", lambda *places: digest(*places) + "x" * (f"stages/{stage}.py" in places))
    states = {(step.stage, step.state) for step in planned(recipe, mine.options)}
    assert {(stage, "run"), (before, "reuse")} <= states
    assert not states & {(stage, "reuse"), (before, "run")}


def test_a_plan_finds_a_flipped_byte_as_the_build_does(mine: Workshop, recipe: Path, deployment: Path) -> None:
    reference = read_manifest(deployment).all_files()["modules/edge/embed_tokens.fused.onnx"]
    damage(next((mine.options.store / "objects").rglob(reference.sha256)))
    before = snapshot(mine.folder)
    [reasons] = [
        step.reasons for step in planned(recipe, mine.options) if (step.stage, step.state) == ("export", "run")
    ]
    assert "has changed: its bytes are now" in reasons[0]
    assert snapshot(mine.folder) == before


@pytest.mark.whole  # the model is traced once more
def test_an_edited_config_is_compared_again(mine: Workshop, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("idefics3"), tmp_path / "mine"))
    recipe = write_recipe(mine.folder / "tiny.toml", {"edge": (folder, "draft")})
    mine.build(recipe)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    mine.build(recipe)
    assert mine.ran() == ["parity", "split"]
