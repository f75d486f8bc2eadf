"""Times by hand: a picture takes 2 ms here and 10 there, a prompt token 0.1 and 0.5, an answer's token 1 and 4; a round
of n drafts 4 + n + 1; a kilobyte a millisecond, a round trip 20."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msao_compile.stages.fit.costs import Costs, Drafts, reduces, rounds_ms
from msao_compile.stages.fit.record import Reduced
from tests.stages.fit.made import RIGHT, SIDES, costs, record

DRAFTS = Drafts(most=4, confidence=0.5)
PACE = 9 / 4  # of four drafts in a round, which take the cloud 9 ms


def test_the_edge_reads_less_without_the_picture() -> None:
    found = costs([record(), record(picture=None)])
    assert found.edge(False).tolist() == pytest.approx([2 + 2 + 2, 2 + 2])
    assert found.edge(True).tolist() == pytest.approx([1 + 2, 1 + 2])


def test_the_cloud_waits_for_what_is_sent_and_no_longer() -> None:
    less = Reduced(RIGHT, size_bytes=50, share=0.5)
    found = costs([record(picture=100, reduced={None: less})])
    begin_and_decode = 10 + 10 + 2 * 4
    assert found.cloud("full")[0] == pytest.approx(0.8 + 10 + begin_and_decode + 10)
    assert found.cloud(None)[0] == pytest.approx(0.75 + 10 + begin_and_decode + 10)
    assert found.cloud("drop")[0] == pytest.approx(0.7 + 10 + 5 + 2 * 4 + 10)


@pytest.mark.parametrize(
    ("told", "kept", "confidence", "wanted"),
    [
        ((0.9, 0.9), (True, True), 0.5, 2 * PACE + 20 + 7),
        # The round is filled up, then five of the cloud's own while the next one is on its way.
        ((0.9,) * 7, (False,) + (True,) * 6, 0.5, (4 * PACE + 20 + 9) + (PACE + 20 + 6)),
        ((0.9,) * 12, (True,) * 12, 0.95, 2 * (20 + 5)),
        ((0.4,) + (0.9,) * 7, (True,) * 8, 0.5, (20 + 5) + (2 * PACE + 20 + 7)),
        ((0.9,) * 8, (True, False) + (True,) * 6, 0.5, (4 * PACE + 20 + 9) + (PACE + 20 + 6)),
        ((0.9,) * 6, (True,) * 6, 0.5, 6 * PACE + 20 + 9),
        ((), (), 0.5, 0.0),
    ],
)
def test_rounds_take_the_slower_sides_pace_and_a_round_trip_where_drafting_stops(
    told: tuple[float, ...], kept: tuple[bool, ...], confidence: float, wanted: float
) -> None:
    assert rounds_ms(told, kept, Drafts(4, confidence), SIDES) == pytest.approx(wanted)


def test_speculation_begins_when_both_are_ready_and_the_quicker_way_is_taken() -> None:
    found = costs([record()])
    there = 0.8 + 10 + 10 + 10
    assert found.speculated("full", DRAFTS)[0] == pytest.approx(there + (2 * PACE + 20 + 7) - 10)
    assert found.best("full", DRAFTS)[0] == min(found.cloud("full")[0], found.speculated("full", DRAFTS)[0])


@pytest.mark.parametrize(
    ("size", "share", "level", "less"),
    [(50, 0.5, (0.5, 0.1), True), (50, 0.86, (0.5, 0.1), False), (100, 0.5, (0.5, 0.1), False), (50, 1.0, None, True)],
)
def test_a_picture_is_reduced_where_that_spares_bytes_and_leaves_something_out(
    size: int, share: float, level: tuple[float, float] | None, less: bool
) -> None:
    assert reduces(record(picture=100, reduced={level: Reduced(RIGHT, size, share)}), level) is less


def test_a_probe_that_looks_keeps_what_is_sent_waiting() -> None:
    found = costs([record(), record(picture=None)])
    for probe, wanted in (("words", [0, 0]), ("classical", [0, 0]), ("early", [2, 0])):  # prepared in no time
        assert found.looking(probe).tolist() == pytest.approx(wanted)  # type: ignore[arg-type]


def test_pictures_weigh_what_is_declared_and_reduced_ones_their_share_of_it() -> None:
    less = Reduced(RIGHT, size_bytes=50, share=0.5)
    found = Costs([record(picture=100, reduced={None: less})], replace(SIDES, picture_bytes=10_000))
    begin_and_decode = 10 + 10 + 10 + 2 * 4
    assert found.cloud("full")[0] == pytest.approx(10.7 + begin_and_decode + 10)
    assert found.cloud(None)[0] == pytest.approx(5.7 + begin_and_decode + 10)
