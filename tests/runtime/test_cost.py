"""What each route would take: sums that can be checked by hand, and directions that never turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.cost import (
    Drafting,
    Host,
    Work,
    cloud_ms,
    edge_ms,
    kept_tokens,
    speculate_ms,
    split_ms,
    token_ms,
)
from msao_compile.runtime.link_state import LinkEstimate

EDGE = Primitives(model="edge", prepare=Line(fixed_ms=0, each_ms=2), encode=Line(fixed_ms=1, each_ms=10),
                  prefill=Line(fixed_ms=2, each_ms=0.1), decode=Line(fixed_ms=4, each_ms=1),
                  verify=Line(fixed_ms=4, each_ms=1))  # fmt: skip
CLOUD = Primitives(model="cloud", prepare=Line(fixed_ms=0, each_ms=1), encode=Line(fixed_ms=1, each_ms=4),
                   prefill=Line(fixed_ms=3, each_ms=0.05), decode=Line(fixed_ms=9, each_ms=1),
                   verify=Line(fixed_ms=9, each_ms=1))  # fmt: skip
WORK = Work(prompt_tokens=100, pictures=1, payload_bytes={"full": 25_000, "thumbnail": 5_000, "drop": 0},
            answer_tokens=20, features_bytes=50_000, pack_ms={"thumbnail": 3.0})  # fmt: skip
LINK = LinkEstimate(up_kbps=20_000, rtt_ms=20)
EDGE_HOST, CLOUD_HOST = Host(EDGE), Host(CLOUD)


def test_the_edge_alone_by_hand() -> None:
    assert edge_ms(EDGE_HOST, WORK) == pytest.approx(2 + 11 + 12 + 20 * 5)
    assert edge_ms(Host(EDGE, queue_ms=7, load=0.5), WORK) == pytest.approx(7 + 2 * (25 + 100))
    assert edge_ms(EDGE_HOST, WORK, "drop") == pytest.approx(12 + 20 * 5)


def test_the_cloud_alone_by_hand() -> None:
    assert cloud_ms(CLOUD_HOST, LINK, WORK) == pytest.approx(10 + 10 + 1 + 5 + 8 + 20 * 10 + 10)
    assert cloud_ms(CLOUD_HOST, LINK, WORK, "thumbnail") == pytest.approx(3 + 2 + 10 + 1 + 5 + 8 + 200 + 10)
    assert cloud_ms(CLOUD_HOST, LINK, WORK, "drop") == pytest.approx(10 + 8 + 200 + 10)


def test_a_split_by_hand() -> None:
    here = Host(EDGE, queue_ms=5)
    assert split_ms(here, CLOUD_HOST, LINK, WORK) == pytest.approx(5 + 13 + (20 + 10) + 8 + 200 + 10)


def test_stop_and_wait_by_hand() -> None:
    """Rate of document 4, section 4: E / (g t_d + RTT + t_v)."""
    assert kept_tokens(Drafting(2, 0.5)) == pytest.approx(1.75)
    assert token_ms(EDGE_HOST, CLOUD_HOST, LINK, Drafting(2, 0.5)) == pytest.approx((2 * 5 + 20 + 12) / 1.75)


def test_speculation_begins_when_the_slower_side_is_ready() -> None:
    drafting = Drafting(2, 0.5)
    here, there = 25 + 2 * 5, 20 + 14
    left = (20 - 1.75) * token_ms(EDGE_HOST, CLOUD_HOST, LINK, drafting)
    assert speculate_ms(EDGE_HOST, CLOUD_HOST, LINK, WORK, drafting) == pytest.approx(max(here, there) + 12 + 10 + left)
    less = speculate_ms(EDGE_HOST, CLOUD_HOST, LINK, WORK, drafting, "thumbnail")
    assert less == pytest.approx(max(here, 3 + 12 + 14) + 12 + 10 + left)
    slow = Host(EDGE, queue_ms=500)
    assert speculate_ms(slow, CLOUD_HOST, LINK, WORK, drafting) == pytest.approx(500 + here + 12 + 10 + left)


def test_while_a_round_is_on_its_way_after_a_refused_draft_the_cloud_decodes_by_itself() -> None:
    """Half a round of drafts, a round trip and a verification; at 10 ms a token, which would have cost 5 ms each."""
    away_ms = (4 - 1) / 2 * 5 + 20 + CLOUD_HOST.verify_ms(5)
    for rest, gained in ((0, 0), (2, 2), (9, away_ms / 10)):
        drafting = Drafting(4, 0.8, rounds=6, rest=rest)
        pace_ms = 5 + 0.2 * (away_ms - gained * 5)
        assert token_ms(EDGE_HOST, CLOUD_HOST, LINK, drafting) == pytest.approx(pace_ms)


def test_a_drafter_that_is_ready_late_finds_the_tokens_that_the_cloud_decoded_meanwhile() -> None:
    there, pace_ms = 20 + 14, token_ms(EDGE_HOST, CLOUD_HOST, LINK, rests := Drafting(4, 0.8, rounds=6, rest=3))
    late = Host(EDGE, queue_ms=there + 100 - 25)
    assert speculate_ms(late, CLOUD_HOST, LINK, WORK, rests) == pytest.approx(there + 100 + 10 + 10 * pace_ms)
    never = Host(EDGE, queue_ms=10_000)
    assert speculate_ms(never, CLOUD_HOST, LINK, WORK, rests) == pytest.approx(cloud_ms(CLOUD_HOST, LINK, WORK))
    waits = replace(rests, rest=0)
    pace_ms = token_ms(EDGE_HOST, CLOUD_HOST, LINK, waits)
    assert speculate_ms(late, CLOUD_HOST, LINK, WORK, waits) == pytest.approx(there + 100 + 10 + 20 * pace_ms)


@pytest.mark.parametrize(("chance", "tokens", "wanted"), [(0.0, 4, 1.0), (1.0, 4, 5.0), (0.5, 0, 1.0)])
def test_tokens_of_a_round_at_the_ends(chance: float, tokens: int, wanted: float) -> None:
    assert kept_tokens(Drafting(tokens, chance)) == pytest.approx(wanted)


SHARE = st.floats(0, 1)
TOKENS = st.integers(1, 16)
ROUNDS = st.integers(1, 6)
RTT = st.floats(0, 500)
LOAD = st.floats(0, 1.5)


@given(tokens=TOKENS, rounds=ROUNDS, rtt=RTT, chances=st.tuples(SHARE, SHARE), rest=st.integers(0, 8))
def test_better_drafts_never_cost_more(
    tokens: int, rounds: int, rtt: float, chances: tuple[float, float], rest: int
) -> None:
    worse, better = (Drafting(tokens, chance, rounds, rest=rest) for chance in sorted(chances))
    link = replace(LINK, rtt_ms=rtt)
    assert kept_tokens(better) >= kept_tokens(worse)
    assert kept_tokens(better) <= tokens + 1
    for cost in (token_ms, lambda *given: speculate_ms(*given[:3], WORK, given[3])):
        assert cost(EDGE_HOST, CLOUD_HOST, link, better) <= cost(EDGE_HOST, CLOUD_HOST, link, worse) * (1 + 1e-9)


def every(edge: Host, cloud: Host, link: LinkEstimate, work: Work, drafting: Drafting) -> list[float]:
    return [edge_ms(edge, work), cloud_ms(cloud, link, work), cloud_ms(cloud, link, work, "thumbnail"),
            split_ms(edge, cloud, link, work), speculate_ms(edge, cloud, link, work, drafting)]  # fmt: skip


@given(
    drafting=st.builds(Drafting, TOKENS, SHARE, ROUNDS),
    rtts=st.tuples(RTT, RTT),
    rates=st.tuples(st.floats(10, 1e6), st.floats(10, 1e6)),
    loads=st.tuples(LOAD, LOAD),
    queues=st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)),
    answers=st.tuples(st.floats(1, 500), st.floats(1, 500)),
)
def test_whatever_grows_worse_makes_no_route_faster(drafting: Drafting, **pairs: tuple[float, float]) -> None:
    def at(which: int, kind: str) -> list[float]:
        best: dict[str, Any] = {name: sorted(pair)[0] for name, pair in pairs.items()}
        best["rates"] = max(pairs["rates"])
        if which:
            best[kind] = min(pairs[kind]) if kind == "rates" else max(pairs[kind])
        hosts = [Host(times, best["queues"], best["loads"]) for times in (EDGE, CLOUD)]
        link = LinkEstimate(best["rates"], best["rtts"])
        return every(hosts[0], hosts[1], link, replace(WORK, answer_tokens=best["answers"]), drafting)

    for kind in pairs:
        for good, bad in zip(at(0, kind), at(1, kind), strict=True):
            assert bad >= good * (1 - 1e-9) > 0, kind


def test_a_host_that_is_always_busy_is_slow_and_not_infinitely_so() -> None:
    assert Host(EDGE, load=0.5).slower == pytest.approx(2)
    assert Host(EDGE, load=5).slower == pytest.approx(20)
    assert Host(EDGE, load=-1).slower == 1
