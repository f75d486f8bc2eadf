"""`place` as the user sees it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from building import ROOT

from msao_compile.runtime.loader import read_manifest
from tests.place.deployments import devices, measured
from tests.place.small import two

from .conftest import Cli

PUBLISHED = ROOT / "recipes" / "instances" / "five-tasks--campus.json"


def written(folder: Path, content: Any) -> Path:
    """A JSON file."""
    path = folder / "file.json"
    path.write_text(json.dumps(content))
    return path


def test_the_answer_is_one_object_with_the_certificate(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("highspy")
    told = cli("place", "--instance", written(tmp_path, two()), "--json").json
    assert told["placement"] == {"eyes": "edge", "head": "cloud"} and told["certificate"]["gap"] == 0
    p95 = cli("place", "--instance", written(tmp_path, two()), "--json", "--objective", "p95").json
    assert p95["objective"] == "p95" and p95["objective_s"] == pytest.approx(0.422)


def test_people_see_devices_requests_and_how_good_it_is(cli: Cli) -> None:
    pytest.importorskip("highspy")
    ran = cli("place", "--instance", PUBLISHED)
    assert ran.code == 0 and max(len(line) for line in ran.out.splitlines()) <= 80
    for words in ("65.9 GB of 80.0 GB", "vqa (llava-1.5-7b)", "optimal (bound", "greedy alone: "):
        assert words in ran.out


def test_what_cannot_be_placed_says_why_and_ends_as_a_gate_does(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("highspy")
    content = two()
    content["links"], content["modules"][1]["seconds"] = [], {"cloud": 0.1}
    ran = cli("place", "--instance", written(tmp_path, content), "--json")
    assert ran.code == 5 and ran.json["feasible"] is False and ran.json["reason"] == "no link from edge to cloud"
    assert ran.json["error"]["class"] == "GateError" and "error: no placement: no link" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to place: give --instance FILE"),
        (["DEPLOYMENT"], "nothing to place"),
        (["DEPLOYMENT", "--instance", PUBLISHED], "leave DEPLOYMENT and --devices out"),
        (["--instance", PUBLISHED, "--write"], "--write needs a manifest"),
        (["--instance", "none.json"], "none.json: cannot be read"),
        (["--instance", PUBLISHED, "--objective", "p99"], "p99"),
        (["--instance", PUBLISHED, "--replicas", "-1"], "'--replicas'"),
        (["--instance", PUBLISHED, "--time-limit", "nan"], "--time-limit"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(cli: Cli, arguments: list[object], words: str) -> None:
    ran = cli("place", *arguments)
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1 and ran.out == ""


def test_a_negative_number_is_the_files_fault(cli: Cli, tmp_path: Path) -> None:
    content = two()
    content["devices"][0]["memory_bytes"] = -8e9
    ran = cli("place", "--instance", written(tmp_path, content))
    assert ran.code == 2 and "devices[0].memory_bytes is -8000000000.0" in ran.err and ran.err.count("\n") == 1


def test_without_the_library_the_extra_is_named_and_local_search_still_works(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    file = written(tmp_path, two())
    ran = cli("place", "--instance", file)
    assert ran.code == 4 and "pip install 'msao-compile[place]'" in ran.err
    assert cli("place", "--instance", file, "--solver", "local", "--json").json["solver"] == "local"


def test_a_deployment_keeps_its_placement_and_its_certificate(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("highspy")
    folder = tmp_path / "deployment"
    measured(folder)
    file = written(tmp_path, devices())
    before = (folder / "deployment.json").read_bytes()
    dry = cli("place", folder, "--devices", file, "--json")
    assert dry.code == 0 and (folder / "deployment.json").read_bytes() == before
    (folder / "deployment.json.sig").write_text("stale")
    ran = cli("place", folder, "--devices", file, "--write")
    assert ran.code == 0 and f"{folder} has it" in ran.err
    placement = read_manifest(folder).placement
    assert placement is not None and placement.certificate.optimal
    assert {copy.module: copy.device for copy in placement.copies} == dry.json["placement"]
    assert "edge.decoder" in cli("report", folder, "-o", tmp_path / "page.html").err + (
        tmp_path / "page.html"
    ).read_text(encoding="utf-8")
