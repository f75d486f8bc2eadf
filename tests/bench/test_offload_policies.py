"""What each policy answers and what it costs, on tiny models in counted time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import pairs
import pytest
import tiny

from msao_compile.bench.policies import Bandit, policies
from msao_compile.bench.run import Asked, Pair, Seen, point, summary
from msao_compile.bench.setting import Setting, Side, Sweep
from msao_compile.bench.shape import Shape
from msao_compile.bench.sides import Outcome
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.views import Question

SETTING = Setting(
    name="tiny", why="as measured", edge=Side(name="edge"), cloud=Side(name="cloud"),
    sweeps=(Sweep(mbps=(20.0,), rtt_ms=(20.0,)),),
)  # fmt: skip
NEAR, FAR = Shape(mbps=200.0, rtt_ms=2.0), Shape(mbps=20.0, rtt_ms=80.0)
GUARD = 1.05


def questions(count: int, limit: int = 24) -> list[Asked]:
    return [Asked(Question(tiny.prompt(seed), (), limit, SamplingParameters()), "", "") for seed in range(count)]


def timed(pair: Pair, draft_ms: float, decode_ms: float) -> Pair:
    here, there = pairs.times("edge", draft_ms, draft_ms), pairs.times("cloud", decode_ms, 1.1 * decode_ms)
    return replace(pair, here=here, there=there)


def run(pair: Pair, name: str, shape: Shape, asked: Sequence[Asked], sessions: int = 1) -> Seen:
    return point(pair, SETTING, shape, sessions, policies(None)[name], asked)


def mean_ms(seen: Seen) -> float:
    return statistics.fmean(outcome.total_ms for outcome in seen.outcomes)


def tokens(seen: Seen) -> list[list[int]]:
    return [outcome.tokens for outcome in seen.outcomes]


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("name", [name for name, one in policies(None).items() if "calibrated" not in name])
def test_every_policy_answers_and_the_lossless_ones_as_the_cloud_does(pair: Pair, name: str, sessions: int) -> None:
    asked, timely = questions(8), timed(pair, 2.0, 20.0)
    cloud = run(timely, "cloud-only", NEAR, asked)
    seen = run(timely, name, NEAR, asked, sessions)
    assert all(outcome.tokens and 0 < outcome.first_ms <= outcome.total_ms for outcome in seen.outcomes)  # type: ignore[operator]
    if policies(None)[name].lossless:
        assert tokens(seen) == tokens(cloud)
        assert all(outcome.verified for outcome in seen.outcomes)
        assert all(outcome.up_bytes > 300 and outcome.down_bytes > 300 for outcome in seen.outcomes)


def test_the_edge_alone_answers_otherwise_sends_nothing_and_tells_that_nobody_verified_it(pair: Pair) -> None:
    asked = questions(8)
    seen = run(timed(pair, 2.0, 20.0), "edge-only", NEAR, asked)
    assert tokens(seen) != tokens(run(pair, "cloud-only", NEAR, asked))
    assert all((one.up_bytes, one.down_bytes, one.verified) == (0, 0, False) for one in seen.outcomes)
    assert seen.cloud_busy_ms.keys() <= {"prepare", "prefill"}


def test_the_clouds_answer_takes_what_can_be_counted_by_hand(pair: Pair) -> None:
    """Half a round trip and the bytes up, prompt, a step for each token, half a round trip and the last bytes down."""
    asked, shape = questions(1), Shape(mbps=1000.0, rtt_ms=40.0)
    found = run(timed(pair, 2.0, 20.0), "cloud-only", shape, asked).outcomes[0]
    steps = len(found.tokens) - 1  # the prompt gives the first, and the limit ends it
    assert len(found.tokens) == 24
    bytes_ms = 8 * (found.up_bytes + found.down_bytes) / 1e6
    assert found.total_ms == pytest.approx(40 + 10 + 20 * steps, abs=bytes_ms + 0.1)
    assert found.first_ms == pytest.approx(40 + 10, abs=bytes_ms + 0.1)


def test_the_same_run_is_the_same_to_the_byte(pair: Pair) -> None:
    def once() -> list[Outcome]:
        shape = Shape(mbps=5.0, rtt_ms=20.0, jitter_ms=5.0, loss=0.05)
        return run(timed(pair, 2.0, 20.0), "auto", shape, questions(6), sessions=3).outcomes

    assert once() == once()


@pytest.mark.parametrize(("draft_ms", "decode_ms"), [(1.0, 20.0), (11.0, 20.0), (30.0, 20.0)])
@pytest.mark.parametrize("shape", [NEAR, Shape(mbps=20.0, rtt_ms=20.0), FAR])
def test_auto_is_never_much_slower_than_the_best_lossless_policy(
    pair: Pair, shape: Shape, draft_ms: float, decode_ms: float
) -> None:
    asked, timely = questions(24), timed(pair, draft_ms, decode_ms)
    best = min(mean_ms(run(timely, name, shape, asked)) for name in ("cloud-only", "stop-and-wait"))
    assert mean_ms(run(timely, "auto", shape, asked)) <= GUARD * best


def test_auto_is_faster_than_both_where_drafts_overlap_the_link(pair: Pair) -> None:
    asked, timely = questions(24), timed(pair, 1.0, 40.0)
    shape = Shape(mbps=20.0, rtt_ms=20.0)
    best = min(mean_ms(run(timely, name, shape, asked)) for name in ("cloud-only", "stop-and-wait"))
    assert mean_ms(run(timely, "auto, no guard", shape, asked)) < best


def test_on_a_far_link_the_guard_decides_little_where_the_cloud_goes_on_by_itself(pair: Pair) -> None:
    """Without either, drafts that are mostly refused would cost a round trip each."""
    asked, timely = questions(8), timed(pair, 11.0, 20.0)
    waits, no_guard, auto = (
        mean_ms(run(timely, name, FAR, asked)) for name in ("stop-and-wait", "auto, no guard", "auto")
    )
    assert waits > 1.5 * auto
    assert auto <= no_guard * GUARD and no_guard <= 1.1 * auto


def test_sessions_at_once_share_the_clouds_steps(pair: Pair) -> None:
    asked, timely = questions(16), timed(pair, 2.0, 20.0)
    alone, together = (run(timely, "cloud-only", NEAR, asked, sessions) for sessions in (1, 8))
    assert tokens(alone) == tokens(together)
    assert together.passed_ms < alone.passed_ms / 3
    assert sum(together.cloud_busy_ms.values()) < sum(alone.cloud_busy_ms.values()) / 2


def test_a_summary_counts_what_was_seen(pair: Pair) -> None:
    asked = [replace(one, answer="w1 w2") for one in questions(2)]
    outcomes = [
        Outcome([1, 2], 10.0, 30.0, "speculate", 1000, 400, drafted=8, accepted=6, rejected=1, rounds=3),
        Outcome([5, 6, 7], 20.0, 60.0, "cloud", 3000, 600, verified=False, guarded=True),
    ]
    found = summary(pair, Seen(outcomes, {"decode": 40.0, "verify": 10.0}, 100.0), asked, [outcomes[0], outcomes[0]])
    assert found == {
        "n": 2, "mean_ms": 45.0, "p50_ms": 45.0, "p95_ms": pytest.approx(58.5), "ttft_ms": 15.0, "tpot_ms": 20.0,
        "tokens_per_s": 50.0, "accuracy": 0.5, "equal": 1, "up_bytes": 2000.0, "down_bytes": 500.0,
        "cloud_ms_per_token": 10.0, "accepted": 0.75, "kept": 6 / 7, "rounds": 1.5, "alone": 1, "guarded": 1,
    }  # fmt: skip


def test_the_bandit_tries_both_and_keeps_to_the_quicker(pair: Pair) -> None:
    bandit, asked = Bandit(), questions(24)
    policy = replace(policies(None)["cs-ucb"], answer=bandit.answer)
    point(timed(pair, 1.0, 60.0), SETTING, FAR, 1, policy, asked)
    assert {name for _, name in bandit.seen} == {"edge", "cloud"}
    assert len(bandit.seen[False, "edge"]) > 2 * len(bandit.seen[False, "cloud"])
