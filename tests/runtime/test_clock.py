"""The account of an answer's time, on a clock that a test sets."""

from __future__ import annotations

import pytest

from msao_compile.runtime import answer
from msao_compile.runtime.answer import Clock


class Hands:
    """Stands where the process's clock stands."""

    now = 100.0

    def perf_counter(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    made = Hands()
    monkeypatch.setattr(answer, "time", made)
    return made


def spend(clock: Clock, hands: Hands, module: str, seconds: float) -> None:
    with clock.module(module):
        hands.now += seconds


def test_time_to_first_token_and_time_per_token(hands: Hands) -> None:
    clock = Clock(started=hands.now)
    for seconds in (0.5, 0.1, 0.3):
        hands.now += seconds
        clock.token()
    timing = clock.timing(bytes_up=7, bytes_down=9)
    assert (timing.ttft_ms, timing.tpot_ms, timing.total_ms) == pytest.approx((500, 200, 900))
    assert (timing.bytes_up, timing.bytes_down) == (7, 9)


def test_modules_are_added_up_until_the_first_token_only(hands: Hands) -> None:
    clock = Clock(started=hands.now)
    spend(clock, hands, "decoder", 0.25)
    spend(clock, hands, "decoder", 0.5)
    clock.token()
    spend(clock, hands, "decoder", 4.0)
    assert clock.timing().modules_ms == pytest.approx({"decoder": 750})


def test_a_module_that_fails_has_its_time_too(hands: Hands) -> None:
    clock = Clock(started=hands.now)
    with pytest.raises(ValueError), clock.module("decoder"):
        hands.now += 0.25
        raise ValueError
    assert clock.timing().modules_ms == pytest.approx({"decoder": 250})


@pytest.mark.parametrize("tokens", [0, 1])
def test_less_than_two_tokens_have_no_time_per_token(hands: Hands, tokens: int) -> None:
    clock = Clock(started=hands.now)
    hands.now += 0.5
    for _ in range(tokens):
        clock.token()
    assert (clock.timing().tpot_ms, clock.timing().total_ms) == (None, pytest.approx(500))


def test_an_empty_answer_took_until_its_end(hands: Hands) -> None:
    clock = Clock(started=hands.now)
    hands.now += 0.5
    assert clock.timing().ttft_ms == pytest.approx(500)
