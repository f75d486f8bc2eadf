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
from msao_compile.steps import check_excluded, check_positions


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


def test_every_excluded_name_leaves_something_out(caplog: pytest.LogCaptureFixture) -> None:
    splits = [
        {"excluded": ["video_encoder"], "kept": [], "encoders": [{"component": "vision_encoder"}]},
        {"excluded": ["talker"], "kept": ["model.norm"], "encoders": [{"component": "audio_encoder"}]},
    ]
    check_excluded(("video_encoder", "talker"), splits)
    assert not caplog.messages
    check_excluded(("model.norm",), splits)
    assert "export.exclude: graphs read model.norm, so it is not left out" in caplog.text
    with pytest.raises(RecipeError, match=r"'vison_encoder' is no encoder .*: did you mean 'vision_encoder'\?$"):
        check_excluded(("vison_encoder",), splits)
    with pytest.raises(RecipeError, match=r"'talkers' is no encoder .*: take it from the list$"):
        check_excluded(("talkers",), splits)
