"""The invariants of the temporal part: frames and seconds that repeat what was kept are left out, others never."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msao_compile.runtime.mas.reading import Fitted, Limits, read_clip, read_features, read_sound
from msao_compile.runtime.mas.temporal import (
    BITS,
    TemporalLimits,
    codes,
    hamming_limit,
    hyperplanes,
    kept_units,
    pooled,
    segments,
)

SIZE = 128
ZERO = np.zeros(SIZE)
FOREVER = 10**6


def shots(chance: np.random.Generator, count: int, length: int, noise: float = 0.0) -> np.ndarray:
    """[count x length, SIZE]: so many shots of so many frames."""
    base = np.repeat(chance.standard_normal((count, SIZE)), length, axis=0)
    return base + noise * chance.standard_normal(base.shape)


def kept(frames: np.ndarray, cosine: float = 0.9, gap: int = FOREVER, relevance: np.ndarray | None = None) -> list[int]:
    relevant = np.zeros(len(frames)) if relevance is None else relevance
    return np.flatnonzero(kept_units(frames, ZERO, relevant, TemporalLimits(cosine, gap))).tolist()


def test_the_hamming_limit_follows_from_the_cosine() -> None:
    assert hamming_limit(1.0) == 0
    assert hamming_limit(0.0) == BITS // 2
    assert hamming_limit(0.9) == math.floor(64 * math.acos(0.9) / math.pi) == 9
    assert hamming_limit(-1.0) == BITS


def test_bits_differ_as_often_as_the_angle_says() -> None:
    chance = np.random.default_rng(4)
    angle, differing = math.pi / 5, []
    for _ in range(300):
        first, second = np.linalg.qr(chance.standard_normal((SIZE, 2)))[0].T
        turned = math.cos(angle) * first + math.sin(angle) * second
        differing.append((codes(first[None], ZERO) != codes(turned[None], ZERO)).mean())
    assert np.mean(differing) == pytest.approx(angle / math.pi, abs=0.015)


def test_the_hyperplanes_are_always_the_same() -> None:
    assert hyperplanes(3)[0] == pytest.approx([2.017663253255795, -1.271834284404767, -0.04239415060588728])


def test_one_frame_of_each_shot_is_kept() -> None:
    frames = shots(np.random.default_rng(5), 4, 8, noise=0.05)
    assert kept(frames) == [0, 8, 16, 24]


def test_frames_that_have_nothing_in_common_are_all_kept() -> None:
    assert kept(np.random.default_rng(6).standard_normal((32, SIZE))) == list(range(32))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_duplicate_frames_change_nothing(seed: int, repeats: list[int]) -> None:
    chance = np.random.default_rng(seed)
    frames, relevance = chance.standard_normal((6, SIZE)) + 2, chance.random(6)
    once = kept(frames, 0.5, FOREVER, relevance)
    firsts = np.cumsum([0, *repeats[:-1]])
    again = kept(np.repeat(frames, repeats, axis=0), 0.5, FOREVER, np.repeat(relevance, repeats))
    assert again == [int(firsts[frame]) for frame in once]


def test_a_slow_drift_is_followed() -> None:
    angles = np.linspace(0, math.pi, 200)
    first, second = np.linalg.qr(np.random.default_rng(11).standard_normal((SIZE, 2)))[0].T
    frames = np.cos(angles)[:, None] * first + np.sin(angles)[:, None] * second
    assert 4 < len(kept(frames)) < 12  # frame by frame nothing moves


def test_a_still_clip_has_only_forced_key_frames() -> None:
    assert kept(np.ones((40, SIZE)), gap=16) == [0, 16, 32]


def test_no_gap_is_longer_than_allowed() -> None:
    frames = shots(np.random.default_rng(7), 3, 20, noise=0.01)
    assert np.diff([*kept(frames, gap=7), 60]).max() <= 7


def test_the_most_relevant_frame_is_kept_although_it_is_like_the_last() -> None:
    chance = np.random.default_rng(8)
    frames = shots(chance, 1, 12, noise=0.1)
    relevance = np.zeros(12)
    relevance[5] = 1
    assert kept(frames, 0.5) == [0] and kept(frames, 0.5, relevance=relevance) == [0, 5]


def test_a_clip_is_seen_from_the_fixed_mean_and_not_its_own() -> None:
    frames = np.ones((3, SIZE)) + 1e-6 * np.random.default_rng(9).standard_normal((3, SIZE))
    assert kept(frames) == [0]
    centred = kept_units(frames, frames.mean(0), np.zeros(3), TemporalLimits(0.9, FOREVER))
    assert centred.all()  # what a clip's own mean leaves is noise


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_frames_that_are_not_finite_are_all_kept(value: float) -> None:
    frames = np.ones((5, SIZE))
    frames[3, 0] = value
    assert kept(frames) == [0, 1, 2, 3, 4]


def test_a_frame_is_pooled_to_sixteen_places() -> None:
    frame = np.arange(64.0).reshape(8, 8, 1)
    assert pooled(frame)[:4].tolist() == [4.5, 6.5, 8.5, 10.5] and pooled(frame).shape == (16,)
    assert pooled(np.arange(9.0).reshape(3, 3, 1)).shape == (16,)


def test_a_sound_is_cut_into_seconds() -> None:
    features = np.arange(100.0)[:, None]
    assert segments(features, 4.0)[:, 0].tolist() == [12, 37, 62, 87]
    assert segments(features, 0.2).shape == (1, 1) and segments(features[:2], 9.0).shape == (2, 1)


def test_clips_and_sounds_keep_by_one_rule_and_their_score_falls_with_it() -> None:
    chance = np.random.default_rng(10)
    frames = shots(chance, 3, 4, noise=0.01)
    limits = Limits(0.8, 0.1, 0.05, TemporalLimits(0.9, FOREVER))
    fitted, word = Fitted((0.3, 0.3, 0.4), (3.0, 0.0, 0.0, 0.0)), chance.standard_normal((1, SIZE))
    cells = np.repeat(frames, 4, axis=0)
    clip = read_features(cells, word, 0.0, [(2, 2)] * 12, fitted, limits)
    seen = read_clip(clip, frames, ZERO, np.zeros(12), limits)
    heard = read_sound(read_features(frames, word, 0.0, [(12, 1)], fitted, limits), frames, ZERO, np.zeros(12), limits)
    for found in (seen, heard):
        assert found.kept_frames is not None
        assert np.flatnonzero(found.kept_frames).tolist() == [0, 4, 8] and found.kappa_temporal == 0.25
    assert not any(cells.any() for frame, cells in enumerate(seen.kept) if frame not in (0, 4, 8))
    assert seen.mas > clip.mas and heard.kappa_spatial == 1 and heard.action == "reduce"
