"""The table of families over a command line that only pretends: what a row says, what is run again or stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.families import resume, table, talk
from tests.bench.families.judge import Case, Evidence, Family, judge
from tests.bench.families.limits import Ended, Limits, members, run, size_of
from tests.bench.families.resume import Sheet
from tests.bench.families.run import Settings, for_dialects, run_family

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE = (sys.executable, str(Path(__file__).parent / "families" / "fake_tool.py"))
LOOSE = Limits(60.0, size_of("2G"))


def checkpoint(zoo: Path, name: str, **plan: Any) -> Path:
    """A folder that the fake command line takes for a checkpoint, with one reference that holds an answer."""
    folder = zoo / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "plan.json").write_text(json.dumps(plan))
    np.savez(folder / "reference.npz", logits=np.zeros(2), generate=np.zeros(2, np.int64))
    return folder


def row_of(tmp_path: Path, limits: Limits = LOOSE, **plan: Any) -> Family:
    """The row of a checkpoint that behaves as planned."""
    folder = checkpoint(tmp_path / "zoo", "fake", **plan)
    return run_family(folder, Settings(FAKE, limits, tmp_path / "scratch"), threading.Event())


def command(code: str, limits: Limits = LOOSE) -> Ended:
    """Some Python under limits."""
    return run([sys.executable, "-c", code], limits, REPOSITORY, os.environ, threading.Event())


def test_what_a_command_leaves_is_read_back() -> None:
    ended = command("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (ended.code, ended.stdout, ended.stderr, ended.stopped) == (3, "out\n", "err\n", "")


def test_a_sleeper_is_stopped_at_its_time_with_all_that_it_started() -> None:
    # As the product's stages do, its child has a process group of its own.
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '600'], process_group=0); time.sleep(600)"
    ended = command(code, Limits(1.0, size_of("2G")))
    assert ended.stopped == "ran longer than 1 s"
    assert ended.seconds < 60


def test_a_child_that_outlives_its_command_is_ended() -> None:
    code = "import os, subprocess; print(os.getpid()); subprocess.Popen(['sleep', '600'], process_group=0)"
    ended = command(code)
    assert ended.stopped == ""
    assert [member for member in members(int(ended.stdout)) if member.alive] == []


def test_memory_of_a_child_counts_and_is_stopped() -> None:
    greedy = "held = bytearray(400_000_000); import time; time.sleep(60)"
    ended = command(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {greedy!r}])", Limits(60.0, 200 * 10**6)
    )
    assert ended.stopped == "held more than 0.2 GB"
    assert ended.peak_rss_bytes > 200 * 10**6


@pytest.mark.parametrize(("text", "size"), [("6G", 6 * 10**9), ("512Mi", 2**29), ("10", 10), ("1.5GB", 15 * 10**8)])
def test_a_size_is_read(text: str, size: int) -> None:
    assert size_of(text) == size


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="is no size"):
        size_of("6X")


def test_a_family_that_holds_passes_in_both_dialects(tmp_path: Path) -> None:
    row = row_of(tmp_path)
    assert row.passes and row.error is None
    assert table.cells(row)[:12] == (
        *("fake", "yes", "yes", "yes", "2.0e-06", "PASS", "PASS", "PASS", "fused, portable"),
        *("vision_encoder", "vision_encoder, decoder", "1 of 1"),
    )
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_dialect_that_cannot_be_built_leaves_the_other(tmp_path: Path) -> None:
    without_fused = row_of(tmp_path / "other", refuses={"fused": "no fused attention here"})
    assert (without_fused.passes, without_fused.dialects) == (False, ["portable"])
    row = row_of(tmp_path, refuses={"portable": "{checkpoint}: operator Foo is not in /usr/share/opset 20"})
    assert row.passes
    assert row.dialects == ["fused"]
    assert row.error is not None
    assert row.error.sentence == "fake: operator Foo is not in opset 20"
    assert table.cells(row)[3] == "fused yes, portable no"


def test_the_build_s_own_gate_fills_the_parity_column(tmp_path: Path) -> None:
    sentence = "parity failed, first model whole: max abs 3.5e-02, bound 0.001"
    row = row_of(tmp_path, refuses=dict.fromkeys(("fused", "portable"), sentence), **{"class": "GateError"})
    assert table.cells(row)[4] == "fused FAIL 3.5e-02, portable no"
    assert not row.passes


@pytest.mark.parametrize("subject", ["whole", "text", "logits of the reference", "greedy tokens of the reference"])
def test_any_row_that_fails_in_the_fused_dialect_fails_the_family(tmp_path: Path, subject: str) -> None:
    row = row_of(tmp_path, fails=[[subject, "fused"]])
    assert (row.passes, row.dialects) == (False, ["portable"])
    assert row.error is not None


def test_a_family_over_its_time_says_where_it_stood(tmp_path: Path) -> None:
    row = row_of(tmp_path, Limits(1.5, size_of("2G")), sleep=60)
    assert (row.passes, row.stopped, row.split) == (False, True, False)
    assert row.error is not None
    assert row.error.sentence == "ran longer than 1.5 s, stopped in split model"


def test_recorded_tokens_that_were_not_compared_fail() -> None:
    rows = [{"subject": "whole", "dialect": "fused", "verdict": "PASS", "max_abs": 0.0}]
    found = Evidence(["decoder"], True, {("fused", "decoder")}, rows)
    assert judge("a", found).passes
    logits = {"subject": "logits of the reference", "dialect": "fused", "verdict": "PASS", "max_abs": 0.0}
    found.cases = [Case("reference", has_tokens=True, rows=[logits])]
    assert judge("a", found).generate["fused"] == "FAIL"
    assert not judge("a", found).passes


def test_targets_are_replaced_and_the_rest_of_a_recipe_stays() -> None:
    recipe = 'name = "a"\n[targets.local]\ndevice = "x"\n[runtime]\nthreads = 8\n'
    target = {"device": "local-cpu", "precision": "fp32", "dialect": "fused"}
    found = tomllib.loads(for_dialects(recipe, ("fused",), 1))
    assert found == {"name": "a", "runtime": {"threads": 1}, "targets": {"fused": target}}


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("/zoo/a: no weights", "a: no weights"),
        ("see /tmp/x/log.txt, or ../b/c.npz", "see log.txt, or c.npz"),
        ("1/2 of images and/or sounds", "1/2 of images and/or sounds"),
    ],
)
def test_places_of_this_machine_leave_a_sentence(sentence: str, shown: str) -> None:
    assert talk.without_paths(sentence, Path("/zoo/a"), Path("/scratch/a.1")) == shown


def test_progress_says_what_came_through_and_what_did_not() -> None:
    said = "split model started (1 of 1)\nsplit model … 2 s, 1 MB\nexport model/decoder (fused) started (2 of 3)\n"
    assert list(talk.finished(said)) == [("split", "model", "")]
    assert talk.unfinished(said) == "export model/decoder (fused)"


def test_a_key_changes_with_files_code_and_tools(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "a")
    key = resume.key_of(folder, "code", {"torch": "1"})
    assert key == resume.key_of(folder, "code", {"torch": "1"})
    assert key != resume.key_of(folder, "other", {"torch": "1"})
    assert key != resume.key_of(folder, "code", {"torch": "2"})
    (folder / "plan.json").write_text("[]")
    assert key != resume.key_of(folder, "code", {"torch": "1"})


def test_a_row_that_a_limit_ended_is_made_again_under_another_limit(tmp_path: Path) -> None:
    short = Limits(1.0, size_of("2G"))
    row = row_of(tmp_path, short, sleep=60)
    row.key = "key"
    assert resume.holds(row, "key", short)
    assert not resume.holds(row, "key", LOOSE)
    assert not resume.holds(row, "another", short)


def test_a_sheet_comes_back_as_it_was(tmp_path: Path) -> None:
    sheet = Sheet({"jobs": 2}, 3.0, {"fake": row_of(tmp_path, fails=[["whole", "fused"]])})
    file = tmp_path / "sheet.json"
    resume.write_whole(file, sheet.text())
    assert Sheet.read(file) == sheet
    file.write_text(sheet.text()[:-9])
    assert Sheet.read(file) == Sheet()


def bench(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """The whole command over `tmp_path / zoo`, which judges the fake command line."""
    tool = tmp_path / "tool"
    tool.write_text(f'#!/bin/sh\nexec {FAKE[0]} {FAKE[1]} "$@"\n')
    tool.chmod(0o755)
    files = ["--json", str(tmp_path / "t.json"), "--markdown", str(tmp_path / "t.md")]
    words = [str(tmp_path / "zoo"), *files, "--tool", str(tool), "--scratch", str(tmp_path / "scratch"), *options]
    line = [sys.executable, "-m", "tests.bench.families", *words]
    return subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def visits(tmp_path: Path, name: str) -> int:
    """How often a family was begun; the mark is taken away because it is no part of the checkpoint."""
    mark = tmp_path / "zoo" / name / "visits"
    count = len(mark.read_text().split()) if mark.exists() else 0
    mark.unlink(missing_ok=True)
    return count


def test_a_second_run_runs_nothing_and_again_runs_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint(tmp_path / "zoo", name)
    assert bench(tmp_path, "--only", "a").wait() == 0
    assert (visits(tmp_path, "a"), visits(tmp_path, "b")) == (1, 0)
    assert "**A part only: 1 of the 2 families" in (tmp_path / "t.md").read_text()
    assert bench(tmp_path).wait() == 0
    assert (visits(tmp_path, "a"), visits(tmp_path, "b")) == (0, 1)
    text = (tmp_path / "t.md").read_text()
    assert "**2 of 2 families pass" in text
    assert str(tmp_path) not in text
    assert bench(tmp_path, "--again", "--only", "b").wait() == 0
    assert (visits(tmp_path, "a"), visits(tmp_path, "b")) == (0, 1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, how: int) -> None:
    checkpoint(tmp_path / "zoo", "a")
    slow = checkpoint(tmp_path / "zoo", "b", sleep=60)
    first = bench(tmp_path, "--jobs", "1")
    deadline = time.monotonic() + 300
    while not (slow / "visits").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(how)
    first.wait(300)
    assert list(Sheet.read(tmp_path / "t.json").families) == ["a"]
    assert (visits(tmp_path, "a"), visits(tmp_path, "b")) == (1, 1)
    (slow / "plan.json").write_text("{}")
    assert bench(tmp_path, "--jobs", "1").wait() == 0
    assert (visits(tmp_path, "a"), visits(tmp_path, "b")) == (0, 1)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    _, said = (process := bench(tmp_path)).communicate()
    assert (process.returncode, "holds a config.json" in said) == (2, True)
