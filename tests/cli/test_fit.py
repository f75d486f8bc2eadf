"""`fit` as the user sees it; the stage's child process is a stand-in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from msao_compile.farm import local
from msao_compile.farm.job import Job, Result
from msao_compile.runtime.loader import locate, read_manifest

from . import fixtures
from .conftest import Cli

Fitting = Callable[[bool], list[Job]]


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> Fitting:
    def with_bound(shown: bool) -> list[Job]:
        jobs: list[Job] = []

        def run(job: Job, tell: Callable[[object], None]) -> Result:
            jobs.append(job)
            tell({"set": "fit", "done": 0, "of": 300})
            tell({"trial": 3})
            return Result(value=fixtures.fit(shown), seconds=90.0, peak_rss_bytes=1, cpu_seconds=1.0)

        monkeypatch.setattr(local, "run", run)
        return jobs

    return with_bound


@pytest.fixture
def drafting(deployment: Path) -> Path:
    """The synthetic deployment with a task that speculates by a guess."""
    path = deployment / "deployment.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "speculation": [fixtures.fit(True)["speculation"]]}))
    return deployment


def test_what_was_shown_is_said_and_stands_in_the_manifest(cli: Cli, drafting: Path, fitting: Fitting) -> None:
    jobs = fitting(True)
    ran = cli("fit", drafting, "--samples", "q.jsonl", "--epsilon", 0.02, "--trials", 5, "--seed", 3, "--mbps", 5)
    assert ran.code == 0
    assert jobs[0].arguments == {
        "folder": str(drafting), "samples": "q.jsonl", "held_out": None, "task": None, "epsilon": 0.02, "trials": 5,
        "seed": 3, "mbps": 5.0, "rtt_ms": 20.0, "setting": None,
    }  # fmt: skip
    assert ran.err.splitlines()[0] == "fit: 0 of 300" and f"took 1 min 30 s; {drafting} has it" in ran.err
    assert (
        "calibrated: the edge answers 49.0% alone and 20.0% of pictures stay here; 1 of 300 lost (0.33%), at most "
        "1.57% with 95% confidence, where 2.00% is allowed"
    ) in ran.out
    manifest = read_manifest(drafting)
    assert manifest.mas is not None and manifest.mas.calibrated(0.02) and not manifest.mas.calibrated(0.01)
    assert manifest.speculation[0].evidence == manifest.mas.evidence == manifest.evidence["mas"]
    locate(drafting, manifest.evidence["mas"])


def test_what_was_not_shown_is_not_to_be_had(cli: Cli, drafting: Path, fitting: Fitting) -> None:
    fitting(False)
    ran = cli("fit", drafting, "--samples", "q.jsonl")
    assert (
        "calibrated: not to be had, no choice was shown to lose 2.00% at most (the safest that was tried: 4.00%)"
        in ran.out
    )
    manifest = read_manifest(drafting)
    assert manifest.mas is not None and manifest.mas.bound is None


def test_a_dry_run_tells_everything_and_changes_nothing(cli: Cli, drafting: Path, fitting: Fitting) -> None:
    before = {path: path.read_bytes() for path in drafting.rglob("*") if path.is_file()}
    fitting(True)
    found = cli("fit", drafting, "--samples", "q.jsonl", "--dry-run", "--json").json
    assert found["written"] is False and found["mas"]["bound"]["upper"] == 0.0157 and found["evidence"]["curve"]
    assert {path: path.read_bytes() for path in drafting.rglob("*") if path.is_file()} == before


def test_a_signature_of_the_manifest_before_goes(cli: Cli, drafting: Path, fitting: Fitting) -> None:
    (drafting / "deployment.json.sig").write_text("of the old one")
    fitting(True)
    ran = cli("fit", drafting, "--samples", "q.jsonl")
    assert not (drafting / "deployment.json.sig").exists() and "sign the new one" in ran.err


def test_the_store_keeps_the_manifest_that_was_linked_from_it(cli: Cli, drafting: Path, fitting: Fitting) -> None:
    linked = drafting.parent / "link"
    linked.hardlink_to(drafting / "deployment.json")
    before = linked.read_bytes()
    fitting(True)
    assert cli("fit", drafting, "--samples", "q.jsonl").code == 0
    assert linked.read_bytes() == before != (drafting / "deployment.json").read_bytes()
