"""What work takes here: every piece timed, and lines through it by arithmetic that is done by hand."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pairs
import pytest
import tiny

from msao_compile.bench.primitives import Piece, TimedDevice, line, measured, quiet, turns_ms, undisturbed
from msao_compile.bench.run import Asked, Pair
from msao_compile.manifest.offload import Line
from msao_compile.runtime.device import Work
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.views import Question


def pieces(*told: tuple[int, float], kind: Work = "verify") -> list[Piece]:
    return [Piece((place,), kind, count, spent_ms) for place, (count, spent_ms) in enumerate(told)]


@pytest.mark.parametrize(
    ("told", "fixed_ms", "each_ms"),
    [((), 0.0, 0.0), (((1, 4.0), (1, 6.0)), 5.0, 0.0), (((2, 5.0), (4, 7.0), (8, 11.0)), 3.0, 1.0),
     (((1, 9.0), (3, 3.0)), 6.0, 0.0), (((1, 0.0), (3, 8.0)), 0.0, 2.0)],
)  # fmt: skip
def test_a_line_neither_falls_nor_begins_below_nothing(
    told: tuple[tuple[int, float], ...], fixed_ms: float, each_ms: float
) -> None:
    found = line(pieces(*told))
    assert (found.fixed_ms, found.each_ms) == (pytest.approx(fixed_ms), pytest.approx(each_ms))


def test_of_moments_the_quiet_ones_count() -> None:
    assert quiet([1.0, 1.0, 1.0, 1.0, 90.0]) == 1.0
    assert quiet([3.0, 1.0, 2.0, 90.0, 80.0]) == 2.0
    assert quiet([]) == 0.0


def test_a_piece_is_compared_with_itself_in_other_rounds_alone() -> None:
    one, other = pieces((1, 1.0), (1, 5.0))
    rounds = [one, other, replace(one, spent_ms=40.0), other, one, replace(other, spent_ms=60.0)]
    assert [piece.spent_ms for piece in undisturbed(rounds)] == [1.0, 5.0]


def test_a_timed_device_remembers_what_each_piece_took_and_takes_as_long_as_it_is_told() -> None:
    async def work() -> list[Piece]:
        device = TimedDevice("edge", pairs.times("edge", 30.0, 0.0))
        device.begin(7, "cloud")
        assert [await device.run("decode", 1, lambda: 5) for _ in range(2)] == [5, 5]
        await device.run("verify", 3, lambda: time.sleep(0.01))
        device.close()
        return device.pieces

    found = asyncio.run(work())
    assert [(piece.place, piece.kind, piece.count) for piece in found] == [
        ((7, "cloud", 1), "decode", 1), ((7, "cloud", 2), "decode", 1), ((7, "cloud", 1), "verify", 3),
    ]  # fmt: skip
    assert found[0].spent_ms >= 30.0 and found[2].spent_ms >= 10.0
    assert all(piece.turn_ms > 0 for piece in found)


@pytest.mark.parametrize("sessions", [1, 3])
def test_both_models_are_timed_by_the_questions_given(pair: Pair, sessions: int) -> None:
    asked = [Asked(Question(tiny.prompt(seed), (), 12, SamplingParameters()), "", "") for seed in range(3)]
    here, there = measured(pair, asked, sessions)
    assert (here.model, there.model) == ("edge", "cloud")
    assert all(times.decode.at(1) > 0 and times.prefill.at(8) > 0 for times in (here, there))
    assert there.verify.at(4) > 0
    assert here.encode == there.encode == Line(fixed_ms=0.0, each_ms=0.0)  # no pictures


def test_turns_are_what_lies_between_pieces_of_work_however_long_those_are(pair: Pair) -> None:
    slow = replace(pair, here=pairs.times("edge", 80.0, 80.0), there=pairs.times("cloud", 80.0, 80.0))
    asked = [Asked(Question(tiny.prompt(0), (), 4, SamplingParameters()), "", "")]
    edge_ms, cloud_ms = turns_ms(slow, asked, slowed=True)
    assert 0 < edge_ms < 80 and 0 < cloud_ms < 80
