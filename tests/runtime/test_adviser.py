"""What an edge makes of what it saw: situations of links and drafts, and what follows for the next question."""

from __future__ import annotations

import pairs
import pytest

from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.adviser import (
    FORGET,
    GUESS_PROMPT,
    GUESS_TOKENS,
    OVERHEAD_BYTES,
    PRIOR,
    TRY_AFTER,
    Adviser,
)
from msao_compile.runtime.calibrated import Reduced
from msao_compile.runtime.policy import Choice, Limits
from msao_compile.runtime.remote import Patience

BOTH: frozenset[Choice] = frozenset(("cloud", "speculate"))
FITTED = 0.9
"""Of `pairs.SPECULATION`: the chance of a sure draft."""


def adviser(draft_ms: float = 2.0, decode_ms: float = 20.0) -> Adviser:
    here, there = pairs.times("edge", draft_ms, draft_ms), pairs.times("cloud", decode_ms, 1.1 * decode_ms)
    return Adviser(pairs.SPECULATION, here, there)


def heard(found: Adviser, rtt_ms: float, mbps: float = 100.0) -> Adviser:
    """After a quiet history of such a link."""
    for now_ms in range(3):
        found.link.heard(float(now_ms), rtt_ms)
        found.link.sent(100_000, 8 * 100_000 / (mbps * 1e3))
    return found


@pytest.mark.parametrize(
    ("draft_ms", "decode_ms", "rtt_ms", "kept", "route"),
    [
        (2.0, 20.0, 5.0, 0.95, "speculate"),  # a quick drafter that is mostly right, near the cloud
        (2.0, 20.0, 5.0, 0.3, "cloud"),  # one that is mostly wrong
        (2.0, 20.0, 400.0, 0.9, "cloud"),  # every mistake costs a long way
        (25.0, 20.0, 5.0, 0.95, "cloud"),  # a drafter that is slower than the cloud
        (2.0, 1.0, 5.0, 0.95, "cloud"),  # a cloud that hardly needs help
    ],
)
def test_the_route_follows_from_link_speeds_and_drafts(
    draft_ms: float, decode_ms: float, rtt_ms: float, kept: float, route: str
) -> None:
    found = heard(adviser(draft_ms, decode_ms), rtt_ms)
    found.learn(24, 24, round(1000 * kept), round(1000 * (1 - kept)))
    assert found.decide([], 10.0, Limits(routes=BOTH)).route == route


def test_a_large_picture_on_a_slow_link_is_counted_by_its_bytes() -> None:
    found = heard(adviser(), 5.0, mbps=1.0)
    small, large = (found.decide([size], 10.0, Limits(routes=BOTH)).options[0].time_ms for size in (1000, 101_000))
    assert large - small == pytest.approx(8 * 100_000 / 1e3)
    assert found.observed([500, 300], 10.0).work.payload_bytes == {"full": 800 + OVERHEAD_BYTES}


def test_what_may_cross_is_weighed_with_what_it_takes_to_make_it() -> None:
    left = Reduced("thumbnail", None, 0.25, 0.9)
    found = heard(adviser(), 5.0, mbps=1.0)
    for took_ms in (70.0, 7.0):
        found.packing.learn("thumbnail", 1000, 100, took_ms)
    seen = found.observed([50_000], 10.0, left)
    assert seen.work.payload_bytes == {"full": 50_000 + OVERHEAD_BYTES, "thumbnail": 5_000 + OVERHEAD_BYTES}
    assert (seen.reduced, seen.work.pack_ms["thumbnail"], seen.stands) == (("thumbnail",), 7.0, 0.25)
    limits = Limits(mode="calibrated", routes=BOTH)
    assert found.decide([50_000], 10.0, limits, left).payload == "thumbnail"
    assert found.decide([50_000], 10.0, Limits(routes=BOTH), left).payload == "full"
    assert found.decide([700], 10.0, limits, left).payload == "full"  # no 7 ms are gained by 630 bytes less
    found.packing.learn("thumbnail", 1000, 100, 7000.0)
    assert found.decide([50_000], 10.0, limits, left).payload == "full"


def test_a_split_is_weighed_by_what_was_measured_until_it_was_taken_and_then_by_what_it_took() -> None:
    routes: frozenset[Choice] = frozenset(("cloud", "split"))
    found = heard(adviser(), 5.0, mbps=1.0)
    assert {option.route for option in found.decide([50_000], 10.0, Limits(routes=routes)).options} == {"cloud"}
    there = found.there.model_copy(update={"encode": Line(fixed_ms=0.0, each_ms=3.0)})
    found = heard(Adviser(pairs.SPECULATION, found.here, there, crosses=2000.0), 5.0, mbps=1.0)
    first = found.decide([50_000, 50_000], 10.0, Limits(routes=routes))
    assert first.route == "split" and "split is expected to take" in first.reason
    seen = found.observed([50_000, 50_000], 10.0)
    assert seen.work.features_bytes == 4000 and seen.encoder_here is not None
    assert seen.encoder_here.times.encode.at(2) == 6.0
    found.encoded(took_ms=9e9, size_bytes=3000, pictures=2)
    assert found.decide([50_000, 50_000], 10.0, Limits(routes=routes)).route == "split"  # the first loads an engine
    found.encoded(took_ms=2000.0, size_bytes=3000, pictures=2)
    seen = found.observed([50_000], 10.0)
    assert seen.work.features_bytes == 1500 and seen.encoder_here is not None
    assert seen.encoder_here.times.encode.at(2) == 2000.0
    assert found.decide([50_000], 10.0, Limits(routes=routes)).route == "cloud"
    assert found.plan(16, frozenset(), 10.0, "split", Patience()).stream


def test_drafts_fare_as_fitted_until_they_were_seen_and_then_as_seen() -> None:
    found = adviser()
    assert found.drafting().chance == FITTED
    found.learn(24, 24, 30, 70)
    assert found.drafting().chance == pytest.approx((30 + PRIOR * FITTED) / (100 + PRIOR))
    assert found.drafting(0.5).chance == 0.5


def test_what_was_seen_of_drafts_fades_so_that_they_are_tried_again() -> None:
    found = heard(adviser(), 5.0)
    found.learn(24, 24, 0, 12)
    assert found.decide([], 10.0, Limits(routes=BOTH)).route == "cloud"
    for _ in range(80):
        found.learn(24, 24, 0, 0)
    assert found.judged == pytest.approx(12 * FORGET**80)
    assert found.decide([], 10.0, Limits(routes=BOTH)).route == "speculate"


def test_drafts_that_were_kept_fade_as_those_that_were_not() -> None:
    found = adviser()
    found.learn(24, 24, 10, 5)
    found.learn(24, 24, 2, 1)
    assert (found.accepted, found.judged) == pytest.approx((FORGET * 10 + 2, FORGET * 15 + 3))


def test_lengths_are_guessed_until_they_were_seen() -> None:
    found = adviser()
    work = found.observed([], 0.0).work
    assert (work.answer_tokens, work.prompt_tokens) == (GUESS_TOKENS, GUESS_PROMPT)
    found.learn(0, 30, 0, 0)
    found.learn(50, 30, 0, 0)
    work = found.observed([], 0.0).work
    assert (work.answer_tokens, work.prompt_tokens) == (30.0, 50)


def test_nothing_heard_of_a_cloud_finds_out_and_a_cloud_that_fails_leaves_the_edge() -> None:
    routes: frozenset[Choice] = frozenset(("edge", "cloud", "speculate"))
    found = adviser()
    assert found.decide([], 0.0, Limits(routes=BOTH)).route == "cloud"
    assert found.decide([], 0.0, Limits(routes=routes)).route == "edge"
    heard(found, 5.0)
    assert found.decide([], 10.0, Limits(routes=routes)).route != "edge"
    for now_ms in (11.0, 12.0, 13.0):
        found.link.failed(now_ms)
    assert found.decide([], 14.0, Limits(routes=routes)).route == "edge"


def test_a_busy_cloud_is_slower_by_what_it_says_of_waits() -> None:
    found = heard(adviser(), 5.0)
    idle = found.decide([], 10.0, Limits(routes=frozenset({"cloud"}))).options[0].time_ms
    found.busy(queue_ms=30.0, step_wait_ms=4.0)
    busy = found.decide([], 10.0, Limits(routes=frozenset({"cloud"}))).options[0].time_ms
    assert busy - idle == pytest.approx(30 + GUESS_TOKENS * 4)


@pytest.mark.parametrize(("kept", "goes_on"), [(0.95, True), (0.2, False)])
def test_a_plan_goes_on_speculating_only_where_drafts_are_kept(kept: float, goes_on: bool) -> None:
    plan = heard(adviser(), 5.0).plan(16, frozenset({2}), 10.0, "speculate", Patience())
    assert plan.goes_on is not None and plan.goes_on(round(kept * 100), 100) is goes_on


def test_a_plan_bursts_as_long_as_a_round_trip_lasts_and_streams_where_that_was_chosen() -> None:
    near, far = (heard(adviser(), rtt_ms).plan(16, frozenset({2}), 10.0, "speculate", Patience())
                 for rtt_ms in (5.0, 65.0))  # fmt: skip
    assert (near.burst, far.burst, near.stream) == (0, 3, False)
    assert far.pace.round_ms == pytest.approx(65.0 + 22.0)
    cloud = heard(adviser(), 5.0).plan(16, frozenset({2}), 10.0, "cloud", Patience())
    assert cloud.stream
    unheard = adviser().plan(16, frozenset({2}), 10.0, "speculate", Patience())
    assert unheard.goes_on is not None and unheard.goes_on(0, 100)  # nothing is known to judge by


def test_a_plan_has_the_cloud_go_on_as_long_as_the_next_round_takes() -> None:
    near, far = (heard(adviser(), rtt_ms).plan(16, frozenset({2}), 10.0, "speculate", Patience())
                 for rtt_ms in (5.0, 65.0))  # fmt: skip
    assert (near.rest, far.rest) == (0, 3)  # a round trip and 4 drafts of 2 ms, at 20 ms a token


def test_where_others_wait_rounds_are_longer_and_one_at_a_time_and_the_cloud_decodes_nothing_by_itself() -> None:
    found = heard(adviser(), 65.0)
    alone = found.plan(16, frozenset({2}), 10.0, "speculate", Patience())
    found.busy(queue_ms=11.0, step_wait_ms=22.0)  # a prompt of others, and as long as a step takes
    crowded = found.plan(16, frozenset({2}), 10.0, "speculate", Patience())
    assert (alone.settings.draft_tokens, alone.rounds, alone.rest) == (4, 6, 3)
    assert (crowded.settings.draft_tokens, crowded.rounds, crowded.rest) == (8, 1, 0)
    found.busy(queue_ms=9.0, step_wait_ms=2200.0)
    assert found.plan(16, frozenset({2}), 10.0, "speculate", Patience()).settings.draft_tokens == 16


def test_free_work_makes_no_endless_burst() -> None:
    free: Primitives = pairs.times("cloud", 0.0, 0.0)
    found = heard(Adviser(pairs.SPECULATION, free, free), 1000.0)
    plan = found.plan(16, frozenset(), 10.0, "speculate", Patience())
    assert (plan.burst, plan.rest) == (8, 8)


def test_what_speculation_really_took_corrects_what_was_reckoned_but_one_answer_alone_does_not() -> None:
    found = heard(adviser(), 5.0)
    reckoned = found.decide([], 10.0, Limits(routes=BOTH)).options[0].time_ms
    found.paced(60.0, 10.0)  # three times what a token takes in the cloud
    once = found.drafting().slower
    for _ in range(20):
        found.paced(60.0, 10.0)
    assert 1.0 < once < found.drafting().slower
    assert found.decide([], 10.0, Limits(routes=BOTH)).route == "cloud"
    for _ in range(100):
        found.learn(24, round(GUESS_TOKENS), 0, 0)
    assert found.drafting().slower == pytest.approx(1.0, abs=0.2)
    found.prompt_tokens.mean = GUESS_PROMPT
    again = found.decide([], 10.0, Limits(routes=BOTH)).options[0]
    assert (again.route, again.time_ms) == ("speculate", pytest.approx(reckoned, rel=0.2))


def test_speculation_that_is_a_little_slower_is_tried_now_and_then() -> None:
    found = heard(adviser(draft_ms=21.0), 5.0)
    routes = [found.decide([], 10.0, Limits(routes=BOTH)).route for _ in range(3 * TRY_AFTER)]
    assert set(routes[:TRY_AFTER]) == {"cloud"} and 1 <= routes.count("speculate") <= 3
    slow = heard(adviser(draft_ms=60.0), 5.0)
    assert {slow.decide([], 10.0, Limits(routes=BOTH)).route for _ in range(3 * TRY_AFTER)} == {"cloud"}


def test_speculation_is_not_tried_where_it_would_be_late_and_the_cloud_is_not() -> None:
    found = heard(adviser(draft_ms=21.0), 5.0)
    times = {one.route: one.time_ms for one in found.decide([], 10.0, Limits(routes=BOTH)).options}
    within = Limits(deadline_ms=(times["cloud"] + times["speculate"]) / 2, routes=BOTH)
    assert {found.decide([], 10.0, within).route for _ in range(3 * TRY_AFTER)} == {"cloud"}
