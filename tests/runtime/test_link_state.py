"""A link is counted on for less than was seen, and for less still the longer nothing was heard of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msao_compile.runtime.link_state import STALE_MS, Average, LinkEstimate, LinkState

TIMES = st.lists(st.floats(0.1, 1000), min_size=1, max_size=30)


def heard(rtts: list[float], rates_kbps: list[float]) -> LinkState:
    state = LinkState()
    for at, rtt in enumerate(rtts):
        state.heard(float(at), rtt)
    for rate in rates_kbps:
        state.sent(10_000, 80_000 / rate)
    return state


def test_nothing_is_counted_on_before_anything_was_heard() -> None:
    state = LinkState()
    assert state.estimate(0.0) is None
    state.failed(1.0)
    assert state.estimate(2.0) is None


def test_a_steady_link_is_taken_as_it_is() -> None:
    found = heard([20.0] * 9, [400.0] * 9).estimate(8.0)
    assert found is not None
    assert (found.rtt_ms, found.up_kbps, found.failing) == pytest.approx((20, 400, 0))
    assert found.up_ms(50_000) == pytest.approx(8 * 50_000 / 400 + 10)


@given(rtts=TIMES, rates=TIMES)
def test_what_is_counted_on_is_never_better_than_the_mean(rtts: list[float], rates: list[float]) -> None:
    state = heard(rtts, rates)
    found = state.estimate(float(len(rtts)))
    assert found is not None
    assert found.rtt_ms >= state.rtt.mean * (1 - 1e-9)
    assert state.up.mean * (1 + 1e-9) >= found.up_kbps >= state.up.mean / 10 * (1 - 1e-9) > 0
    assert 0 <= found.failing <= 1


@given(rtts=TIMES, rates=TIMES, ages=st.tuples(st.floats(0, 60_000), st.floats(0, 60_000)))
def test_the_older_the_news_the_more_careful(rtts: list[float], rates: list[float], ages: tuple[float, float]) -> None:
    state = heard(rtts, rates)
    young, old = (state.estimate(state.heard_ms + age) for age in sorted(ages))
    assert young is not None and old is not None
    assert old.rtt_ms >= young.rtt_ms
    assert old.up_kbps <= young.up_kbps
    assert old.up_ms(10_000) >= young.up_ms(10_000)


def test_caution_doubles_after_each_stale_span_and_not_before() -> None:
    state = heard([10.0, 30.0], [])
    found = [state.estimate(state.heard_ms + age) for age in (0.0, STALE_MS, 2 * STALE_MS, 3 * STALE_MS)]
    beyond = [one.rtt_ms - state.rtt.mean for one in found if one is not None]
    assert beyond == pytest.approx([beyond[0], beyond[0], 2 * beyond[0], 3 * beyond[0]])
    assert beyond[0] > 0


def test_a_shaky_link_counts_for_less_than_a_steady_one_of_the_same_mean() -> None:
    steady, shaky = heard([20.0] * 40, [200.0] * 40), heard([5.0, 35.0] * 20, [100.0, 300.0] * 20)
    one, other = steady.estimate(40.0), shaky.estimate(40.0)
    assert one is not None and other is not None
    assert other.rtt_ms > one.rtt_ms and other.up_kbps < one.up_kbps


def test_a_rate_that_is_not_known_costs_half_a_round_trip_only() -> None:
    found = heard([20.0], []).estimate(0.0)
    assert found is not None and math.isinf(found.up_kbps)
    assert found.up_ms(10**9) == pytest.approx(10)


def test_failures_show_and_are_forgotten() -> None:
    state = heard([20.0] * 5, [])
    for at in range(3):
        state.failed(10.0 + at)
    down = state.estimate(13.0)
    for at in range(9):
        state.heard(20.0 + at, 20.0)
    up = state.estimate(29.0)
    assert down is not None and up is not None
    assert down.failing > 0.5 > 0.1 > up.failing


def test_times_that_come_late_do_not_turn_the_clock_back() -> None:
    state = heard([20.0], [])
    state.heard(1000.0, 20.0)
    state.heard(500.0, 20.0)
    assert state.heard_ms == 1000.0
    assert state.estimate(10.0) == LinkEstimate(math.inf, 20.0)  # a moment before the last news


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
def test_an_average_stays_within_what_was_seen(values: list[float]) -> None:
    average = Average()
    for value in values:
        average.add(value)
    assert min(values) - 1e-6 <= average.mean <= max(values) + 1e-6
    assert 0 <= average.variance <= np.ptp(values) ** 2 + 1e-6
