"""A record is lost where any answer that may be given is wrong and the cloud's is right."""

from __future__ import annotations

import numpy as np
import pytest

from msao_compile.stages.fit.costs import Drafts
from msao_compile.stages.fit.learned import Guesses
from msao_compile.stages.fit.outcomes import Knobs, Marks, Outcome, outcome
from msao_compile.stages.fit.record import Record, Reduced
from tests.stages.fit.made import RIGHT, costs, record, said

DRAFTS = Drafts(4, 0.5)
LEVEL = (0.5, 0.1)
WHOLE = Knobs(None, 0.0, None, None, DRAFTS)


def came(
    knobs: Knobs, one: Record, sure: float = 0.9, blind: float = 0.9, needed: float = 0.5, words: float | None = None
) -> Outcome:
    words = needed if words is None else words
    return outcome(
        knobs, costs([one]), Marks.of([one]),
        Guesses(np.array([sure]), np.array([blind]), {"early": np.array([needed]), "words": np.array([words])}),
    )  # fmt: skip


def test_nothing_is_lost_where_the_cloud_sees_everything() -> None:
    found = came(WHOLE, record(edge="no", text="no"))
    assert (found.alone_N[0], found.dropped_N[0], found.lost_N[0], found.risk_N[0]) == (False, False, False, 0)
    assert found.ms_N[0] == costs([record()]).best("full", DRAFTS)[0]


@pytest.mark.parametrize(("tau", "edge", "alone", "lost"), [
    (0.9, "no", True, True), (0.91, "no", False, False), (0.9, RIGHT, True, False),
])  # fmt: skip
def test_a_sure_edge_answers_and_loses_where_it_is_wrong(tau: float, edge: str, alone: bool, lost: bool) -> None:
    found = came(Knobs(tau, 0.0, None, None, DRAFTS), record(edge=edge))
    assert (bool(found.alone_N[0]), bool(found.lost_N[0])) == (alone, lost)
    assert found.risk_N[0] == pytest.approx(0.1 if alone else 0.0)
    assert found.ms_N[0] == (costs([record()]).edge(False)[0] if alone else costs([record()]).best("full", DRAFTS)[0])


def test_where_the_picture_is_dropped_both_sides_answer_without_it() -> None:
    drop = Knobs(0.9, 0.3, None, None, DRAFTS)
    kept = came(drop, record(text="no"), needed=0.3)
    assert not kept.dropped_N[0] and not kept.lost_N[0]
    lost = came(drop, record(text="no"), needed=0.29)
    assert lost.dropped_N[0] and lost.lost_N[0]
    here, there = (Record(**{**vars(record()), name: said("no")}) for name in ("edge_text", "cloud_text"))
    assert came(drop, here, needed=0.1).lost_N[0] and not came(drop, here, needed=0.5).lost_N[0]
    assert came(drop, there, needed=0.1).lost_N[0] and not came(drop, there, needed=0.5).lost_N[0]
    assert not came(drop, here, blind=0.5, needed=0.1).lost_N[0]  # not sure, so it is not given
    # a sure answer with the picture is no reason to take an unsure one without it
    unsure = came(drop, record(), sure=1.0, blind=0.5, needed=0.1)
    assert unsure.dropped_N[0] and not unsure.alone_N[0]


def test_a_request_without_pictures_has_none_to_drop() -> None:
    found = came(Knobs(None, 0.9, None, None, DRAFTS), record(picture=None), needed=0.0)
    assert not found.dropped_N[0]


def test_reduced_pictures_count_as_lost_where_the_cloud_is_wrong_about_them() -> None:
    knobs = Knobs(None, 0.3, "regions", LEVEL, DRAFTS)
    wrong, right = (record(reduced={LEVEL: Reduced(text, 50, 0.5)}) for text in ("no", RIGHT))
    assert came(knobs, wrong).lost_N[0] and came(knobs, wrong).risk_N[0] == 1
    assert not came(knobs, right).lost_N[0] and came(knobs, right).risk_N[0] == 0
    assert not came(knobs, wrong, needed=0.1).lost_N[0]  # dropped, so that no part of it crosses
    whole = record(reduced={LEVEL: Reduced("no", 50, 0.9)})
    assert not came(knobs, whole).lost_N[0]


@pytest.mark.parametrize(("needed", "words", "dropped", "lost"), [
    (0.1, 0.9, True, True), (0.9, 0.1, False, True), (0.9, 0.9, False, False),
])  # fmt: skip
def test_what_the_probe_or_the_words_in_its_place_would_lose_is_lost(
    needed: float, words: float, dropped: bool, lost: bool
) -> None:
    one = record(text="no")
    found = came(Knobs(None, 0.3, None, None, DRAFTS, "early"), one, needed=needed, words=words)
    assert (bool(found.dropped_N[0]), bool(found.lost_N[0])) == (dropped, lost)
    waits_ms = costs([one]).looking("early")[0]
    way = costs([one]).best("full", DRAFTS)[0]
    assert found.ms_N[0] == pytest.approx(
        (min(way, costs([one]).best("drop", DRAFTS)[0]) if dropped else way) + waits_ms
    )


def test_what_the_cloud_gets_wrong_itself_is_no_loss() -> None:
    both = record(edge="no")
    wrong = Record(**{**vars(both), "cloud": both.edge})
    assert not came(Knobs(0.9, 0.0, None, None, DRAFTS), wrong).lost_N[0]


@pytest.mark.parametrize(("drop", "rung", "told"), [
    (0.0, None, ()), (0.1, None, ("drop",)), (0.0, "regions", ("regions",)), (0.1, "thumbnail", ("drop", "thumbnail")),
])  # fmt: skip
def test_knobs_tell_what_may_cross(drop: float, rung: str | None, told: tuple[str, ...]) -> None:
    assert Knobs(None, drop, rung, None, DRAFTS).reduced == told  # type: ignore[arg-type]
