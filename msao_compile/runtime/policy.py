"""Where one request is answered: a pure choice among routes and payloads, with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from msao_compile.errors import InputError
from msao_compile.runtime.cost import (
    Drafting,
    Host,
    Payload,
    Work,
    cloud_ms,
    edge_ms,
    kept_tokens,
    speculate_ms,
    split_ms,
    token_ms,
)
from msao_compile.runtime.link_state import LinkEstimate

Choice = Literal["edge", "cloud", "split", "speculate"]
Mode = Literal["strict", "calibrated"]
FINDING_OUT: tuple[Choice, ...] = ("cloud", "speculate", "split", "edge")
"""Which route is tried first where nothing is known of any."""
IDLE_PRICE = 0.25
"""Milliseconds of waiting that a millisecond of an idle cloud is worth at least: whether a likely answer of the edge's
own is waited for before the cloud is asked."""
DROPPED = 0.5
"""A link of which more calls fail than this is not counted on."""


@dataclass(frozen=True)
class Observed:
    """What is known when a request comes. `link` None: there is no cloud, or nothing was heard of it.

    By what was fitted on samples and proven within its bound, and so read in `calibrated` alone: `reduced` are payloads
    below `full` that this request may be sent as, and `stands` is the chance that the edge's own answer is taken for
    the cloud's; 0 where it never is.
    """

    edge: Host
    cloud: Host | None
    link: LinkEstimate | None
    work: Work
    drafting: Drafting | None = None
    encoder_here: Host | None = None
    reduced: tuple[Payload, ...] = ()
    stands: float = 0.0


@dataclass(frozen=True)
class Wishes:
    """What a user asks of answers: a deadline, and how many milliseconds of waiting a millisecond of the cloud's work,
    one of the edge's, and a byte that crosses are worth.
    """

    deadline_ms: float | None = None
    cloud_price: float = 0.0
    edge_price: float = 0.0
    byte_price: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError: one is no number from 0 on, or has no end."""
        for name in ("deadline_ms", "cloud_price", "edge_price", "byte_price"):
            value = getattr(self, name)
            if not (value is None and name == "deadline_ms") and not (
                isinstance(value, int | float) and 0 <= value < inf
            ):
                raise InputError(f"wish {name} is {value!r}: give a number from 0 on")


@dataclass(frozen=True)
class Limits(Wishes):
    """What an answer is to keep to: the wishes, a mode, and the routes there are.

    `margin`: a route that is not lossless-fastest by this share is not worth leaving plain cloud decoding for.
    """

    mode: Mode = "strict"
    routes: frozenset[Choice] = frozenset(("edge", "cloud", "split", "speculate"))
    edge_is_verifier: bool = False
    margin: float = 0.0


@dataclass(frozen=True)
class Option:
    """One way to answer, and its cost J = T + prices."""

    route: Choice
    payload: Payload
    time_ms: float
    cost: float


@dataclass(frozen=True)
class Decision:
    """The route taken, and why; `options` are all that were weighed, cheapest first. `first`: the edge is asked before
    the cloud, which has nothing to do where its answer stands; else both begin at once.
    """

    route: Choice
    payload: Payload
    reason: str
    options: tuple[Option, ...] = field(default=())
    guarded: bool = False
    first: bool = False


def decide(observed: Observed, limits: Limits) -> Decision:
    """The cheapest of the options that the mode allows, and never speculation where plain decoding is as fast.

    The route is the edge only where its model is the verifier itself, or where there is no cloud and `edge` is one of
    the routes. Where nothing can be counted on, the first route there is has to find out.
    """
    found = sorted(_options(observed, limits), key=lambda option: (option.cost, option.route))
    if not found:
        route = next((route for route in FINDING_OUT if route in limits.routes), FINDING_OUT[0])
        first = limits.mode == "calibrated" and observed.stands > 0
        reason = f"no cloud can be counted on, and {route} is the route there is"
        return Decision(route, "full", reason + ": the edge is asked first" * first, first=first)
    best, guarded = found[0], False
    plain = next((option for option in found if option.route == "cloud"), None)
    if best.route == "speculate" and plain is not None and not limits.cloud_price:
        guarded = best.time_ms > plain.time_ms * (1 - limits.margin)
        best = plain if guarded else best
    in_time = [option for option in found if limits.deadline_ms is None or option.time_ms <= limits.deadline_ms]
    if in_time and best not in in_time:
        best = in_time[0]
    first = best.route != "edge" and limits.mode == "calibrated" and _edge_first(observed, best, limits)
    reason = _reason(best, found, guarded) + ("" if _reachable(observed) else ", and no cloud can be counted on")
    if first:
        reason = f"the edge is asked first, whose answer stands with a chance of {observed.stands:.2f}; else {reason}"
    return Decision(best.route, best.payload, reason, tuple(found), guarded, first)


def _edge_first(observed: Observed, best: Option, limits: Limits) -> bool:
    """Whether J is less where the cloud is asked only once the edge's answer does not stand, than where it is at once.

    The first token tells that it does not. Where it stands, what is spared is the cloud's time for the prompt, and as
    much for each prompt that waits behind it. No answer that would be in time is made late so.
    """
    assert observed.cloud is not None  # the cheapest route leads there
    edge, work = observed.edge, observed.work
    stands, pictures = observed.stands, work.shown(best.payload)
    doubt_ms = edge.begin_ms(work.prompt_tokens, pictures) + edge.decode_ms
    alone_ms = edge_ms(edge, work, best.payload)
    later_ms = max(alone_ms - best.time_ms, 0.0)
    latest_ms = max(alone_ms, doubt_ms + best.time_ms)
    if limits.deadline_ms is not None and best.time_ms <= limits.deadline_ms < latest_ms:
        return False
    spared_ms = replace(observed.cloud, queue_ms=0.0).begin_ms(work.prompt_tokens, pictures)
    saved = max(limits.cloud_price, IDLE_PRICE) * spared_ms + observed.cloud.queue_ms
    return stands > 0 and (1 - stands) * doubt_ms + stands * later_ms <= stands * saved


def _reachable(observed: Observed) -> bool:
    link = observed.link
    return observed.cloud is not None and link is not None and link.failing <= DROPPED


def _options(observed: Observed, limits: Limits) -> Iterator[Option]:
    cloud, link, work = observed.cloud, observed.link, observed.work
    reachable = _reachable(observed)
    if "edge" in limits.routes and (limits.edge_is_verifier or not reachable):
        spent = edge_ms(observed.edge, work)
        yield _priced("edge", "full", spent, (spent - observed.edge.queue_ms, 0.0), 0, limits)
    if cloud is None or link is None or not reachable:
        return
    reduced = [payload for payload in observed.reduced if payload in work.payload_bytes]
    payloads: list[Payload] = ["full", *(reduced if limits.mode == "calibrated" else ())]
    for payload in payloads:
        size = work.payload_bytes[payload]
        begun, pictures = cloud.times.prefill.at(work.prompt_tokens), work.shown(payload)
        begun += cloud.times.encode.at(pictures) if pictures else 0.0
        if "cloud" in limits.routes:
            busy = begun + work.answer_tokens * cloud.times.decode.at(1)
            yield _priced("cloud", payload, cloud_ms(cloud, link, work, payload), (0.0, busy), size, limits)
        if "speculate" in limits.routes and observed.drafting is not None:
            drafting = observed.drafting
            rounds = work.answer_tokens / kept_tokens(drafting)
            busy = begun + rounds * cloud.times.verify.at(drafting.tokens + 1)
            here = replace(observed.edge, queue_ms=0.0).begin_ms(work.prompt_tokens, pictures)
            here += rounds * drafting.tokens * observed.edge.decode_ms
            spent = speculate_ms(observed.edge, cloud, link, work, drafting, payload)
            yield _priced("speculate", payload, spent, (here, busy), size, limits)
    if "split" in limits.routes and observed.encoder_here is not None and work.features_bytes:
        spent, encoder = split_ms(observed.encoder_here, cloud, link, work), observed.encoder_here
        here = encoder.slower * (encoder.times.prepare.at(work.pictures) + encoder.times.encode.at(work.pictures))
        busy = cloud.times.prefill.at(work.prompt_tokens) + work.answer_tokens * cloud.times.decode.at(1)
        yield _priced("split", "full", spent, (here, busy), work.features_bytes, limits)


def _priced(
    route: Choice, payload: Payload, time_ms: float, busy_ms: tuple[float, float], size: int, limits: Limits
) -> Option:
    """`busy_ms`: how long the edge and the cloud work for it."""
    here_ms, there_ms = busy_ms
    cost = time_ms + limits.cloud_price * there_ms + limits.byte_price * size + limits.edge_price * here_ms
    return Option(route, payload, time_ms, cost)


def _reason(best: Option, found: list[Option], guarded: bool) -> str:
    others: dict[str, float] = {}
    for option in found:
        others.setdefault(option.route, option.time_ms)
    told = ", ".join(f"{route} {time:.0f} ms" for route, time in others.items() if route != best.route)
    guard = "; speculation would not be faster" if guarded else ""
    rest = f" ({told})" if told else ""
    sent = "" if best.payload == "full" else f", sending {best.payload}"
    return f"{best.route} is expected to take {best.time_ms:.0f} ms{sent}{rest}{guard}"


def goes_on(edge: Host, cloud: Host, link: LinkEstimate, drafting: Drafting) -> bool:
    """Whether an answer that is being speculated should go on so, by what its drafts came to: per step, the guard."""
    return token_ms(edge, cloud, link, drafting) <= cloud.decode_ms
