"""`init`, `plan` and `build` as the user sees them; the pipeline itself is a stand-in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msao_compile.cli.make import forecast, totals
from msao_compile.errors import StageError
from msao_compile.farm import local
from msao_compile.farm.job import Job, Result
from msao_compile.outlook import Holding, Outlook
from msao_compile.pipeline import Built, Event, Options, Plan, Step
from msao_compile.recipe.room import room
from msao_compile.recipe.targets import find
from msao_compile.runtime.loader import read_manifest

from .conftest import Cli

STEPS = (
    Step("export", "edge/decoder", "run", ("inputs.weights 3f9a1c → 77b0de",), 4.2, 2_000_000_000, 612_000_000),
    Step("export", "edge/vision_encoder", "run", ("never built",), None, None, None),
    Step("parity", "edge", "reuse", (), 20.0, None, None),
    Step("build", "edge/decoder for orin", "deferred", ("the device builds it",), None, None, None),
)

ENGINES = (
    Outlook(
        "l4", "nvidia-l4", "edge/decoder", "fp16", "scatter", "trt_rtx", "ahead of time", 270_000_000, 1_100_000_000,
        400_000_000, 95.0, "", None, None,
    ),
    Outlook(
        "orin", "jetson-orin-nano-8gb", "edge/decoder", "fp16", "portable", "trt", "device", 270_000_000,
        7_000_000_000, 400_000_000, None, "built on the device", None, "a build of it needs about 6.5 GiB",
    ),
    Outlook(
        "orin8", "jetson-orin-nano-8gb", "edge/decoder", "fp8", "portable", "trt", "device", None, None, None, None,
        "built on the device", "jetson-orin-nano-8gb: fp8 needs SM 89", None,
    ),
)  # fmt: skip
GIB = 1 << 30
HOLDINGS = (
    Holding("edge", room("l4", find("nvidia-l4"), "fp16", GIB, GIB, None)),
    Holding("cloud", room("orin", find("jetson-orin-nano-8gb"), "fp16", 14 * GIB, GIB, None)),
)
PLAN = Plan(STEPS, ENGINES, HOLDINGS)


def test_a_forecast_sums_what_runs_and_says_what_it_does_not_know() -> None:
    assert forecast(STEPS) == (
        "2 to run, 1 reused, 1 left to the device: about 4.2 s of work, 612 MB on disk, "
        "2.00 GB of memory at the peak, 1 step of unknown time, never run here before"
    )


def test_a_forecast_of_nothing_says_so() -> None:
    assert forecast(STEPS[2:3]) == "0 to run, 1 reused: nothing to do here"


def test_the_peak_is_a_maximum_and_the_rest_are_sums() -> None:
    found = totals(STEPS[:1] * 2)
    assert (found["seconds"], found["disk_bytes"], found["peak_rss_bytes"]) == (8.4, 1_224_000_000, 2_000_000_000)


def test_a_plan_shows_each_step_with_its_reason(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msao_compile.pipeline.plan", lambda recipe, options: PLAN)
    ran = cli("plan", "recipe.toml")
    assert ran.code == 0
    words = " ".join(ran.out.splitlines()[1].split())
    assert words == "run export edge/decoder 4.2 s 2.00 GB 612 MB inputs.weights 3f9a1c → 77b0de"
    facts = cli("plan", "recipe.toml", "--json").json
    assert [step["state"] for step in facts["steps"]] == ["run", "run", "reuse", "deferred"]
    assert facts["totals"]["unknown"] == 1


def test_a_plan_says_of_each_engine_where_it_is_built_and_what_that_takes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msao_compile.pipeline.plan", lambda recipe, options: PLAN)
    ran = cli("plan", "recipe.toml")
    engines = [" ".join(line.split()) for line in ran.out.split("\n\n")[1].splitlines()[1:]]
    assert engines == [
        "ahead of time l4 edge/decoder fp16 scatter trt_rtx 1 min 35 s 1.10 GB",
        "device orin edge/decoder fp16 portable trt ? 7.00 GB a build of it needs about 6.5 GiB; built on the device",
        "refused orin8 edge/decoder fp8 portable trt ? ? jetson-orin-nano-8gb: fp8 needs SM 89; built on the device",
    ]
    held = [" ".join(line.split()) for line in ran.out.split("\n\n")[2].splitlines()[1:]]
    assert held[0].endswith("25.8 GB fits, 22.5 GB left")
    assert held[1].endswith("8.59 GB 9.66 GB short")
    assert "edge/decoder for orin8: a build refuses it, jetson-orin-nano-8gb: fp8 needs SM 89" in ran.err
    assert "cloud for orin needs about 17.0 GiB to run" in ran.err
    facts = cli("plan", "recipe.toml", "--json").json
    assert [(one["place"], one["seconds"]) for one in facts["engines"]] == [
        ("ahead of time", 95.0), ("device", None), ("device", None),
    ]  # fmt: skip
    assert [(one["model"], one["target"], one["fits"]) for one in facts["targets"]] == [
        ("edge", "l4", True), ("cloud", "orin", False),
    ]  # fmt: skip


def test_plan_and_build_hand_the_same_choices_to_the_pipeline(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, Options]] = []

    def record(recipe: Path, options: Options, *rest: object) -> None:
        seen.append((recipe, options))
        raise StageError("enough")

    monkeypatch.setattr("msao_compile.pipeline.plan", record)
    monkeypatch.setattr("msao_compile.pipeline.build", record)
    choices = ("r.toml", "--target", "edge", "--target", "cloud", "--module", "decoder", "--out", "o", "--store", "s")
    assert cli("plan", *choices).code == cli("build", *choices).code == 3
    assert seen == [(Path("r.toml"), Options(Path("o"), Path("s"), 1, ("edge", "cloud"), ("decoder",)))] * 2


@pytest.fixture
def built(deployment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that runs one stage and leaves the synthetic deployment."""

    def build(recipe: Path, options: Options, tell: Callable[[Event], None]) -> Built:
        tell(Event("export", "edge/decoder", "finished", 1, 1, 1, seconds=4.2))
        return Built(deployment, read_manifest(deployment), ran=1, reused=3, seconds=4.5)

    monkeypatch.setattr("msao_compile.pipeline.build", build)
    return deployment


def test_the_result_of_a_build_is_its_folder_and_all_talk_is_on_stderr(cli: Cli, built: Path) -> None:
    ran = cli("build", "recipe.toml")
    assert (ran.code, ran.out) == (0, f"{built}\n")
    assert ran.err == (
        "export edge/decoder … 4.2 s\n1 stage ran, 3 reused, 5 engines left to the device, "
        "1 engine that nothing will use: see the parity rows that are not PASS, "
        "32.4 kB of weights in new files, 4.5 s\n"
    )
    assert cli("build", "recipe.toml", "--quiet").err == ""


def test_a_build_as_json_names_every_engine_with_its_status(cli: Cli, built: Path) -> None:
    facts = cli("build", "recipe.toml", "--json").json
    assert (facts["deployment"], facts["ran"], facts["reused"]) == (str(built), 1, 3)
    assert {engine["status"] for engine in facts["engines"]} == {"deferred", "built", "ran", "parity", "qualified"}


def test_a_build_writes_the_report_once_and_again_after_a_new_manifest(cli: Cli, built: Path) -> None:
    page = built / "report.html"
    cli("build", "recipe.toml")
    page.write_text("kept")
    cli("build", "recipe.toml")
    assert page.read_text() == "kept"
    later = page.stat().st_mtime_ns + 1_000_000
    os.utime(built / "deployment.json", ns=(later, later))
    cli("build", "recipe.toml")
    assert page.read_text().startswith("<!doctype html>")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint folder, and a farm that proposes a recipe for it."""

    def run(job: Job) -> Result:
        found: dict[str, Any] = {
            "family": "idefics3",
            "architecture": "SmolForAll",
            "modules": [
                {"component": "decoder", "params": 135_000_000, "bytes": 270_000_000, "found_by": "get_decoder"}
            ],
            "unsupported": ["a voice that nothing asks for"],
            "recipe_toml": f"recipe = 1\n# {job.function} {job.arguments['checkpoint']}\n",
        }
        return Result(value=found, seconds=1.0, peak_rss_bytes=1, cpu_seconds=1.0)

    monkeypatch.setattr("msao_compile.farm.local.run", run)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_init_writes_a_recipe_and_says_what_to_do_next(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "new.toml"
    ran = cli("init", checkpoint, "-o", recipe)
    assert ran.code == 0
    assert recipe.read_text() == f"recipe = 1\n# msao_compile.stages.propose:run {checkpoint}\n"
    assert ran.out.splitlines()[1].split() == ["decoder", "135", "M", "270", "MB", "get_decoder"]
    assert "a voice that nothing asks for" in ran.err
    assert f"msao-compile plan {recipe}" in ran.err


def test_init_never_overwrites_a_recipe(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("mine")
    ran = cli("init", checkpoint, "-o", recipe)
    assert (ran.code, recipe.read_text()) == (2, "mine")
    assert "exists already" in ran.err


def test_init_refuses_a_folder_that_is_no_checkpoint(cli: Cli, tmp_path: Path) -> None:
    ran = cli("init", tmp_path, "-o", tmp_path / "r.toml", "--json")
    assert (ran.code, ran.json["error"]["class"]) == (2, "CheckpointError")
    assert "holds no config.json" in ran.err


def test_init_shows_what_it_knows_of_a_family_that_it_cannot_open_and_writes_nothing(
    cli: Cli, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = local.run

    def run(job: Job) -> Result:
        done = made(job)
        assert isinstance(done.value, dict)
        return done.model_copy(
            update={"value": {**done.value, "refused": "model_type 'new' is unknown; name its code"}}
        )

    monkeypatch.setattr("msao_compile.farm.local.run", run)
    ran = cli("init", checkpoint, "-o", tmp_path / "new.toml", "--json")
    assert (ran.code, ran.json["error"]["class"]) == (2, "UnsupportedFamily")
    assert ran.json["modules"][0]["component"] == "decoder"
    assert ran.json["recipe_toml"].startswith("recipe = 1")
    assert "a recipe that would make it work:\n\nrecipe = 1" in ran.err
    assert not (tmp_path / "new.toml").exists()
