"""A check asks real processes and counted time alike; here it counts what does not depend on a machine's speed."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import served
import tiny

from msao_compile.bench import check as checking
from msao_compile.bench.check import FIGURES, Check, calm, expected_s, figures, run, same_place
from msao_compile.bench.edge_process import EdgeTask
from msao_compile.bench.lateness import Lateness
from msao_compile.bench.real import cloud, edges
from msao_compile.bench.run import Pair
from msao_compile.bench.shape import Shape
from msao_compile.bench.sides import Outcome
from msao_compile.errors import DeploymentError, InputError, StageError

SETTING = """
name = "tiny"
why = "by hand"
[edge]
name = "edge"
decode = { fixed_ms = 0.0, each_ms = 2.0 }
[cloud]
name = "cloud"
decode = { fixed_ms = 5.0, each_ms = 0.0 }
verify = { fixed_ms = 6.0, each_ms = 0.0 }
[[sweeps]]
mbps = [50.0]
rtt_ms = [20.0]
"""
POLICIES = ("cloud-only", "edge-only", "stop-and-wait", "cs-ucb", "auto")


@pytest.fixture
def check(words: Path, tmp_path: Path) -> Check:
    """Four questions over a middling link."""
    (tmp_path / "setting.toml").write_text(SETTING)
    rows = [{"question": tiny.prompt(seed), "answer": "w1"} for seed in range(16)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = tmp_path / "setting.toml", tmp_path / "samples.jsonl"
    return Check(words, *files, 4, POLICIES, Shape(mbps=50.0, rtt_ms=20.0))


@pytest.mark.whole
@pytest.mark.parametrize(("declared", "count"), [(False, 1), (True, 2)])
def test_processes_and_counted_time_give_the_same_tokens_and_bytes(
    check: Check, tmp_path: Path, declared: bool, count: int
) -> None:
    told: list[str] = []
    found = run(replace(check, declared=declared, edges=count, rounds=count), tmp_path / "cloud.log", told.append)
    rows = {row["policy"]: row for row in found["rows"]}
    assert tuple(rows) == POLICIES and (found["edges"], found["questions"]) == (count, 4)
    for name, row in rows.items():
        assert row["n"] == 4 and set(row["error"]) == set(FIGURES)
        assert row["predicted"]["mean_ms"] > 0 and row["seen"]["mean_ms"] > 0
        assert row["equal"] == 4 or name == "cs-ucb"  # what it learns from is time
    cloud_only, edge_only, auto = (rows[name] for name in ("cloud-only", "edge-only", "auto"))
    assert cloud_only["seen"]["up_bytes"] == cloud_only["predicted"]["up_bytes"] > 300
    assert cloud_only["seen"]["mean_ms"] > 20 and cloud_only["unverified"] == auto["unverified"] == 0
    assert (edge_only["seen"]["up_bytes"], edge_only["unverified"]) == (0, 4)
    assert rows["stop-and-wait"]["seen"]["kept"] == rows["stop-and-wait"]["predicted"]["kept"]
    assert auto["asked_by"] == "route auto" and rows["stop-and-wait"]["asked_by"] == "the policy's code"
    said = [line for line in told if "real time" in line]
    assert len(said) == count * len(POLICIES) and said[0].startswith("cloud-only, in real time")
    assert found["message_ms"] > 0 and not multiprocessing.active_children()


def test_a_dry_run_reckons_the_time_of_all_questions(check: Check) -> None:
    short, long = (expected_s(replace(check, questions=count, only=("cloud-only",))) for count in (2, 12))
    assert long > short


def test_a_dry_run_asks_some_and_reckons_with_all(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(check, questions=12, only=("cloud-only",))
    whole_s = expected_s(asked) - checking.START_S
    monkeypatch.setattr(checking, "TRIED", 2)
    assert expected_s(asked) - checking.START_S == pytest.approx(whole_s, rel=0.3)


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"questions": 100}, "has 16 samples where 100 and 4 that are not counted are asked: give more samples, or"),
     ({"only": ("best",)}, "policy 'best' is not known: choose from 'cloud-only'"),
     ({"only": ("calibrated",)}, "policy 'calibrated' needs a fit with a bound: run msao-compile fit")],
)  # fmt: skip
def test_what_cannot_be_asked_is_told_before_anything_starts(check: Check, changed: dict[str, Any], told: str) -> None:
    for refused in (lambda one: run(one, Path("none"), print), expected_s):
        with pytest.raises(InputError, match=told):
            refused(replace(check, **changed))


def test_pictures_weigh_what_the_setting_says_and_no_less(check: Check, gallery: Callable[[int], None]) -> None:
    from msao_compile.bench.check import _opened

    check.setting.write_text("picture_bytes = 2000\n" + SETTING)
    gallery(900)
    found = _opened(check).questions
    assert {len(picture) for one in found for picture in one.question.pictures} == {2000}
    gallery(2001)
    with pytest.raises(InputError, match="has 2001 bytes where the setting says 2000: raise picture_bytes"):
        expected_s(check)


@pytest.fixture
def gallery(check: Check, tmp_path: Path) -> Callable[[int], None]:
    """Gives every sample a picture of so many bytes."""

    def shown(size: int) -> None:
        (tmp_path / "picture.png").write_bytes(bytes(size))
        rows = [{"question": tiny.prompt(seed), "answer": "w1", "image": "picture.png"} for seed in range(16)]
        check.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return shown


def test_figures_are_means_and_shares_of_what_was_judged() -> None:
    outcomes = [
        Outcome([1, 2], 10.0, 30.0, "speculate", 1000, 400, drafted=8, accepted=6, rejected=2),
        Outcome([], None, 50.0, "cloud", 3000, 600),
    ]
    assert figures(outcomes) == {
        "mean_ms": 40.0, "p50_ms": 40.0, "p95_ms": pytest.approx(49.0), "ttft_ms": 10.0, "up_bytes": 2000.0,
        "down_bytes": 500.0, "kept": 0.75,
    }  # fmt: skip


def test_of_several_rounds_the_quiet_ones_count_question_by_question() -> None:
    rounds = [Outcome([1], first, total, up_bytes=5) for first, total in ((9.0, 30.0), (1.0, 10.0), (2.0, 90.0))]
    found = calm(rounds)
    assert (found.tokens, found.up_bytes, found.first_ms, found.total_ms) == ([1], 5, 1.5, 20.0)
    assert calm([Outcome([], None, 7.0)]) == Outcome([], None, 7.0)


def test_a_later_result_takes_the_place_of_the_same_point_alone() -> None:
    one = {"mbps": 5.0, "rtt_ms": 2.0, "jitter_ms": 0.0, "loss": 0.0, "edges": 1, "speeds": "measured", "rows": []}
    assert same_place(one, {**one, "rows": [1]})
    changed = {"mbps": 6.0, "rtt_ms": 3.0, "jitter_ms": 1.0, "loss": 0.1, "edges": 2, "speeds": "declared"}
    assert not any(same_place(one, {**one, name: value}) for name, value in changed.items())


@pytest.mark.whole
def test_a_cloud_that_does_not_start_is_told_with_its_last_word(tmp_path: Path) -> None:
    log = tmp_path / "cloud.log"
    with pytest.raises(StageError, match=r"the cloud of the check did not start; its last word in .*deployment\.json"):
        with cloud(tmp_path / "nowhere", 4, None, log):
            pass


@pytest.mark.whole
def test_what_an_edge_raises_is_raised_here_and_its_process_ends(pair: Pair, tmp_path: Path) -> None:
    address = f"grpc://127.0.0.1:{served.free_port()}"
    task = EdgeTask(tmp_path, address, address, (), 0, pair.here, pair.there, slowed=False)
    with pytest.raises(DeploymentError, match=r"deployment\.json"), edges([task]) as clients:
        clients.answer("cloud-only")
    assert not multiprocessing.active_children()


def test_lateness_is_of_the_block() -> None:
    with Lateness() as late:
        pass
    found = late.figures()
    assert 0 <= found["p50"] <= found["p95"]
