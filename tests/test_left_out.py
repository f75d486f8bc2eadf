"""A model that this machine cannot hold is built and not compared, and says so wherever somebody may look."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from building import Workshop, run, write_recipe

from msao_compile.errors import RecipeError
from msao_compile.recipe import room
from msao_compile.runtime.loader import read_manifest
from msao_compile.steps import check_positions, warn_unread


def test_a_job_that_needs_more_than_there_is_says_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_here", lambda: 8 * room.GIB)
    assert room.lack(7 * room.GIB) is None  # and the system's own part
    assert room.lack(7.5 * room.GIB) == "needs about 8 GiB of memory where this machine has 8"
    assert room.lack(21 * room.GIB) == "needs about 21 GiB of memory where this machine has 8"
    monkeypatch.setattr(room, "memory_here", lambda: None)
    assert room.lack(1e15) is None


def test_what_does_not_fit_is_deferred_and_never_a_pass(
    workshop: Workshop, checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model under another name, on a machine that has no memory beside what the system needs."""
    recipe = write_recipe(tmp_path / "large.toml", {"edge": (checkpoint("idefics3"), "draft")})
    monkeypatch.setattr(room, "memory_here", lambda: room.OWN_RESERVE_BYTES)
    built = workshop.build(recipe)
    manifest = read_manifest(built.folder)
    assert {engine.status for engine in manifest.engines} == {"deferred"}
    assert all("needs about 0 GiB of memory where this machine has 1" in str(e.reason) for e in manifest.engines)
    assert manifest.partition_points == ()
    evidence = json.loads((built.folder / "evidence/parity.json").read_text())
    assert evidence["rows"] == [] and "torch original" in evidence["left_out"]["edge"]
    assert ("parity", "edge", "deferred") in {(event.stage, event.subject, event.state) for event in workshop.events}
    done = run("parity", built.folder)
    assert done.returncode == 5 and "edge: to be compared with its torch original it needs" in done.stderr


def test_a_cache_that_is_longer_than_the_frequencies_stay_constant_is_refused() -> None:
    check_positions("m", {"position_limit": None, "trained_positions": None}, 1_000_000)
    told = {"position_limit": 32_768, "trained_positions": 131_072}
    check_positions("m", told, 32_768)
    with pytest.raises(
        RecipeError, match="kv_capacity: 32769 where the rotary frequencies of m are constant up to 32768"
    ):
        check_positions("m", told, 32_769)


def test_a_cache_that_is_longer_than_the_model_was_made_for_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    told = {"position_limit": None, "trained_positions": 448}
    check_positions("m", told, 448)
    assert not caplog.messages
    check_positions("m", told, 449)
    assert "kv_capacity: 449 where m was made for 448 positions" in caplog.text


def test_a_part_that_no_graph_reads_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    components = [{"params": 900}, {"params": 60}]
    warn_unread("m", {"components": components, "unread": {}})
    warn_unread("m", {"components": components, "unread": {"model.tower": {"params": 40, "of": 400}}})
    assert not caplog.messages  # a tower whose last layer nobody asks for
    warn_unread("m", {"components": components, "unread": {"model.protein": {"params": 40, "of": 40}}})
    assert "m: no graph reads 40 of its 1000 parameters, among them all of model.protein: no picture" in caplog.text
    warn_unread("m", {"components": components, "unread": {"model.tower": {"params": 140, "of": 400}}})
    assert "m: no graph reads 140 of its 1100 parameters, among them some of model.tower" in caplog.text
