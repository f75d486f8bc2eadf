"""Where a request is answered: a table of situations, and what holds in all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msao_compile.errors import InputError
from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.cost import Drafting, Host, Payload, Work, speculate_ms
from msao_compile.runtime.link_state import LinkEstimate
from msao_compile.runtime.policy import IDLE_PRICE, Choice, Decision, Limits, Observed, Wishes, decide, goes_on


def times(name: str, decode_ms: float, verify_ms: float = 10.0) -> Primitives:
    return Primitives(
        model=name, prepare=Line(fixed_ms=0, each_ms=1), encode=Line(fixed_ms=0, each_ms=10),
        prefill=Line(fixed_ms=0, each_ms=0.1), decode=Line(fixed_ms=0, each_ms=decode_ms),
        verify=Line(fixed_ms=verify_ms, each_ms=0.2),
    )  # fmt: skip


WORK = Work(prompt_tokens=100, pictures=1, payload_bytes={"full": 100_000, "thumbnail": 5_000, "drop": 0},
            answer_tokens=50, features_bytes=200_000)  # fmt: skip
GOOD, FAR, NARROW = LinkEstimate(200_000, 5), LinkEstimate(200_000, 2000), LinkEstimate(500, 20)
DOWN = LinkEstimate(200_000, 5, failing=0.9)
EDGE, CLOUD = Host(times("edge", 3)), Host(times("cloud", 30))
SURE, UNSURE = Drafting(8, 0.95, 4), Drafting(8, 0.05, 1)
SEEN = Observed(EDGE, CLOUD, GOOD, WORK, SURE, encoder_here=EDGE)
CALIBRATED = Limits(mode="calibrated")
STRICT = Limits()
QUICK = replace(SEEN, cloud=Host(times("cloud", 0.5)))

TABLE: dict[str, tuple[Observed, Limits, Choice, Payload]] = {
    "good drafts, a slow verifier": (SEEN, STRICT, "speculate", "full"),
    "poor drafts": (replace(SEEN, drafting=UNSURE), STRICT, "cloud", "full"),
    "no drafter": (replace(SEEN, drafting=None), STRICT, "cloud", "full"),
    "a cloud as quick as a draft": (QUICK, STRICT, "cloud", "full"),
    "far away": (replace(SEEN, link=FAR, drafting=UNSURE), STRICT, "cloud", "full"),
    "no cloud": (replace(SEEN, cloud=None, link=None), STRICT, "edge", "full"),
    "nothing heard of it": (replace(SEEN, link=None), STRICT, "edge", "full"),
    "a link that fails": (replace(SEEN, link=DOWN), STRICT, "edge", "full"),
    "no cloud and no edge": (
        replace(SEEN, link=None), Limits(routes=frozenset(("cloud", "speculate"))), "cloud", "full"
    ),
    "a link that fails and no edge": (replace(SEEN, link=DOWN), Limits(routes=frozenset(("split",))), "split", "full"),
    "the edge is fast but not the verifier": (replace(SEEN, link=FAR), STRICT, "cloud", "full"),
    "the edge is the verifier": (replace(SEEN, link=FAR), Limits(edge_is_verifier=True), "edge", "full"),
    "a picture that is not needed, strictly": (replace(SEEN, reduced=("drop",)), STRICT, "speculate", "full"),
    "a picture that is not needed": (replace(SEEN, reduced=("drop",)), CALIBRATED, "speculate", "drop"),
    "a thumbnail that takes longer to make than the picture to send": (
        replace(SEEN, reduced=("thumbnail",), work=replace(WORK, pack_ms={"thumbnail": 8.0})), CALIBRATED, "speculate",
        "full",
    ),
    "one that is made at once": (replace(SEEN, reduced=("thumbnail",)), CALIBRATED, "speculate", "thumbnail"),
    "a narrow link, strictly": (replace(SEEN, link=NARROW, reduced=("thumbnail",)), STRICT, "speculate", "full"),
    "a narrow link": (replace(SEEN, link=NARROW, reduced=("thumbnail",)), CALIBRATED, "speculate", "thumbnail"),
    "a payload that nobody made": (replace(SEEN, link=NARROW, reduced=("regions",)), CALIBRATED, "speculate", "full"),
    "features smaller than the picture": (
        replace(SEEN, link=NARROW, drafting=None, work=replace(WORK, features_bytes=1_000)), STRICT, "split", "full"
    ),
    "only a split": (SEEN, Limits(routes=frozenset(("split",))), "split", "full"),
    "drafts are dear": (SEEN, Limits(edge_price=20.0), "cloud", "full"),
    "encoding here is dear": (
        replace(SEEN, link=NARROW, drafting=None, work=replace(WORK, features_bytes=1_000)), Limits(edge_price=1000.0),
        "cloud", "full",
    ),
    "cloud time is dear": (
        replace(QUICK, cloud=Host(times("cloud", 3.0, verify_ms=3.0))), Limits(cloud_price=50.0), "speculate", "full"
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", TABLE)
def test_a_table_of_situations(situation: str) -> None:
    observed, limits, route, payload = TABLE[situation]
    found = decide(observed, limits)
    assert (found.route, found.payload) == (route, payload), found.reason
    assert route in found.reason


def test_the_reason_holds_the_times_and_the_guard() -> None:
    found = decide(SEEN, STRICT)
    assert f"{found.options[0].time_ms:.0f} ms" in found.reason and "cloud" in found.reason
    guarded = decide(SEEN, Limits(margin=0.9))
    assert (guarded.route, guarded.guarded) == ("cloud", True)
    assert "would not be faster" in guarded.reason


def test_a_deadline_takes_what_is_in_time_over_what_is_cheap() -> None:
    dear = Limits(cloud_price=100.0, edge_is_verifier=True)
    slow = replace(SEEN, edge=Host(times("edge", 90)))
    cheap = decide(slow, dear)
    assert cheap.route == "edge"
    fastest = min(cheap.options, key=lambda option: option.time_ms)
    in_time = decide(slow, replace(dear, deadline_ms=fastest.time_ms + 1))
    assert in_time.route == fastest.route != "edge"
    assert decide(slow, replace(dear, deadline_ms=1.0)).route == "edge"  # none is: the cheapest it is


@pytest.mark.parametrize(("price", "queue_ms", "share", "first"), [
    (0.0, 0.0, 0.99, True), (0.0, 0.0, 1.01, False),
    (4 * IDLE_PRICE, 0.0, 3.99, True), (4 * IDLE_PRICE, 0.0, 4.01, False),
    (0.0, 52.5, 10.99, True), (0.0, 52.5, 11.01, False),
])  # fmt: skip
def test_the_edge_is_asked_first_where_the_clouds_time_that_is_spared_is_worth_the_wait(
    price: float, queue_ms: float, share: float, first: bool
) -> None:
    """At even chances: the edge's prompt and first token against the cloud's prompt [21 ms with its picture] at its
    price, and against the time that those behind it wait.
    """
    cloud = Host(times("cloud", 30), queue_ms=queue_ms)
    edge = Host(times("edge", 0.0).model_copy(update={"decode": Line(fixed_ms=0, each_ms=0.0)}))
    spared_ms = Host(times("cloud", 30)).begin_ms(100, 1)
    assert spared_ms == 21.0
    edge = replace(edge, queue_ms=share * IDLE_PRICE * spared_ms - edge.begin_ms(100, 1))
    seen = replace(SEEN, cloud=cloud, edge=edge, stands=0.5)
    found = decide(seen, Limits(mode="calibrated", cloud_price=price))
    assert found.first is first and ("the edge is asked first" in found.reason) is first
    assert not decide(seen, Limits(cloud_price=price)).first  # strictly, no answer of its own stands
    assert not decide(replace(seen, stands=0.0), Limits(mode="calibrated", cloud_price=price)).first


def test_an_edge_whose_whole_answer_takes_longer_than_the_clouds_is_not_waited_for() -> None:
    seen = replace(SEEN, stands=0.95)
    assert decide(seen, CALIBRATED).first
    assert not decide(replace(seen, edge=Host(times("edge", 60))), CALIBRATED).first


def test_the_edge_is_not_asked_first_where_that_would_make_late_what_is_in_time() -> None:
    seen = replace(SEEN, stands=0.95)
    best = decide(seen, CALIBRATED).options[0].time_ms
    late = EDGE.begin_ms(100, 1) + EDGE.decode_ms + best
    for deadline_ms, first in ((best + 1, False), (late - 1, False), (late + 1, True), (best - 1, True)):
        assert decide(seen, replace(CALIBRATED, deadline_ms=deadline_ms)).first is first, deadline_ms


@pytest.mark.parametrize("wish", ["deadline_ms", "cloud_price", "edge_price", "byte_price"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1"])
def test_a_wish_that_is_no_number_from_0_on_is_wrong_input(wish: str, value: object) -> None:
    with pytest.raises(InputError, match=f"wish {wish} is "):
        Wishes(**{wish: value})  # type: ignore[arg-type]


def test_where_no_cloud_can_be_counted_on_an_answer_that_may_stand_is_made_first() -> None:
    away = replace(SEEN, link=None, stands=0.5)
    limits = Limits(mode="calibrated", routes=frozenset(("cloud", "speculate")))
    assert decide(away, limits).first and not decide(replace(away, stands=0.0), limits).first


HOSTS = st.builds(lambda decode, verify, queue, load: Host(times("x", decode, verify), queue, load),
                  st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 1000), st.floats(0, 1))  # fmt: skip
LINKS = st.builds(LinkEstimate, st.floats(100, 1e6), st.floats(0.1, 1000), st.floats(0, 1))
SEENS = st.builds(
    Observed, HOSTS, st.none() | HOSTS, st.none() | LINKS, st.just(WORK),
    st.none() | st.builds(Drafting, st.integers(1, 16), st.floats(0, 1), st.integers(1, 4)), st.none() | HOSTS,
    st.sampled_from([(), ("thumbnail",), ("drop", "thumbnail")]), st.floats(0, 1),
)  # fmt: skip
PRICES = st.sampled_from([0.0, 0.5, 20.0])
LIMITS = st.builds(
    Limits, st.none() | st.floats(1, 5000), PRICES, PRICES, st.sampled_from([0.0, 0.001]),
    st.sampled_from(["strict", "calibrated"]), st.frozensets(st.sampled_from(get_args(Choice)), min_size=1),
    st.booleans(), st.floats(0, 0.3),
)  # fmt: skip


def reachable(observed: Observed) -> bool:
    return observed.cloud is not None and observed.link is not None and observed.link.failing <= 0.5


@given(observed=SEENS, limits=LIMITS)
def test_what_holds_in_every_situation(observed: Observed, limits: Limits) -> None:
    found = decide(observed, limits)
    assert found.route in limits.routes
    assert found == decide(observed, limits)
    if limits.mode == "strict":
        assert found.payload == "full"
        others = limits.routes & {"cloud"} and reachable(observed)
        assert found.route != "edge" or limits.edge_is_verifier or not others
    if found.route == "edge" and reachable(observed) and len(limits.routes) > 1 and found.options:
        assert limits.edge_is_verifier
    if found.payload != "full":
        assert found.payload in observed.reduced
    if found.first:
        assert limits.mode == "calibrated" and observed.stands > 0
    _cheapest_in_time(found, limits)


def _cheapest_in_time(found: Decision, limits: Limits) -> None:
    if not found.options:
        return
    taken = next(option for option in found.options if (option.route, option.payload) == (found.route, found.payload))
    in_time = [option for option in found.options if limits.deadline_ms is None or option.time_ms <= limits.deadline_ms]
    if in_time:
        assert taken in in_time
    plain = next((option for option in found.options if option.route == "cloud"), None)
    if taken.route == "speculate" and plain is not None and not limits.cloud_price and plain in in_time:
        assert taken.time_ms <= plain.time_ms  # no regret
    if not found.guarded and in_time:
        assert taken.cost == min(option.cost for option in in_time)


@given(observed=SEENS, more=st.floats(1, 10))
def test_a_slower_link_never_turns_an_answer_of_the_edge_into_one_of_the_cloud(observed: Observed, more: float) -> None:
    limits = Limits(edge_is_verifier=True)
    before = decide(observed, limits)
    if observed.link is None or before.route != "edge":
        return
    worse = replace(observed.link, rtt_ms=observed.link.rtt_ms * more, up_kbps=observed.link.up_kbps / more)
    assert decide(replace(observed, link=worse), limits).route == "edge"


@pytest.mark.parametrize(("link", "drafting"), list(product((GOOD, FAR), (SURE, UNSURE))))
def test_an_answer_goes_on_being_drafted_where_a_token_comes_sooner_so(link: LinkEstimate, drafting: Drafting) -> None:
    observed: dict[str, Any] = {"edge": EDGE, "cloud": CLOUD, "link": link, "drafting": drafting}
    long = [replace(WORK, answer_tokens=count) for count in (1000, 1100)]
    each = (
        speculate_ms(EDGE, CLOUD, link, long[1], drafting) - speculate_ms(EDGE, CLOUD, link, long[0], drafting)
    ) / 100
    assert goes_on(**observed) == (each <= 30)
    assert goes_on(**{**observed, "link": GOOD, "drafting": SURE})
    assert not goes_on(**{**observed, "link": FAR, "drafting": UNSURE})
