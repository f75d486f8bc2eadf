"""What an edge has learned of its cloud, and what follows from it for the next question and for each step of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

from msao_compile.manifest.offload import Line, Primitives, Speculation
from msao_compile.runtime import cost
from msao_compile.runtime.calibrated import Packing, Reduced
from msao_compile.runtime.cost import Drafting, Host, Payload, Work
from msao_compile.runtime.link_state import Average, LinkEstimate, LinkState
from msao_compile.runtime.policy import Choice, Decision, Limits, Observed, decide, goes_on
from msao_compile.runtime.remote import Patience
from msao_compile.runtime.speculate.gates import Pace
from msao_compile.runtime.speculate.plan import Plan

UNDER_WAY = 6
"""Rounds under way at once: enough to draft through a round trip, few enough to waste little where one is rejected."""
MOST_BURST, MOST_ROUND = 8, 16
GUESS_TOKENS, GUESS_PROMPT = 8.0, 24.0
"""Of answer and prompt, before any was seen."""
FORGET, PRIOR = 0.95, 8
"""What of earlier answers' drafts still counts after each, and how many drafts what was fitted is worth."""
PAID_PRIOR = 4
"""So many answers count what was reckoned of their time against what they took: one alone says little."""
LEAST = 4
"""Tokens of an answer that tell how long each took."""
TRY_AFTER, TRY_BELOW = 6, 1.3
"""After so many answers without it speculation is tried, where it is thought to take less than so many times longer."""
OVERHEAD_BYTES = 700
"""What a prefill message weighs without its pictures."""


@dataclass
class Adviser:
    """One edge and its cloud. `here` and `there` are what their models' work takes, as measured or declared. `crosses`:
    bytes that the verifier's encoder makes of one picture, 0 where nothing tells.
    """

    settings: Speculation
    here: Primitives
    there: Primitives
    crosses: float = 0.0
    link: LinkState = field(default_factory=LinkState)
    answer_tokens: Average = field(default_factory=Average)
    prompt_tokens: Average = field(default_factory=Average)
    judged: float = 0.0
    accepted: float = 0.0
    packing: Packing = field(default_factory=Packing)
    encode_ms: Average = field(default_factory=Average)
    features_bytes: Average = field(default_factory=Average)
    queue_ms: float = 0.0
    step_wait_ms: float = 0.0
    paid: float = 0.0
    paid_count: float = 0.0
    untried: int = 0

    def decide(self, sizes: Sequence[int], now_ms: float, limits: Limits, left: Reduced | None = None) -> Decision:
        """The route and payload for a question whose pictures have so many bytes; `left`: what of it may be left.

        Where plain decoding seems faster, but not by much, speculation is tried now and then: what it really took
        corrects what was reckoned.
        """
        found = decide(self.observed(sizes, now_ms, left), limits)
        times: dict[str, float] = {}
        for option in found.options:
            times.setdefault(option.route, option.time_ms)
        self.untried += 1
        near = found.route == "cloud" and times.get("speculate", inf) < TRY_BELOW * times.get("cloud", 0.0)
        most = inf if limits.deadline_ms is None else limits.deadline_ms
        late = times.get("cloud", 0.0) <= most < times.get("speculate", inf)
        if near and not late and self.untried > TRY_AFTER:
            found = replace(found, route="speculate", reason=f"to learn what speculation takes; {found.reason}")
        if found.route == "speculate":
            self.untried = 0
        return found

    def observed(self, sizes: Sequence[int], now_ms: float, left: Reduced | None = None) -> Observed:
        """What `policy.decide` is to know."""
        rung, whole = "full" if left is None else left.rung, sum(sizes)
        size, pack_ms = self.packing.foretold(rung, whole)
        payloads: dict[Payload, int] = {"full": whole + OVERHEAD_BYTES, rung: size + OVERHEAD_BYTES}
        prompt = self.prompt_tokens.mean if self.prompt_tokens.count else GUESS_PROMPT
        answer = self.answer_tokens.mean if self.answer_tokens.count else GUESS_TOKENS
        features = self.features_bytes.mean if self.features_bytes.count else self.crosses
        each_ms = self.encode_ms.mean if self.encode_ms.count else self.there.encode.at(1)
        encoder = self.there.model_copy(update={"encode": Line(fixed_ms=0.0, each_ms=each_ms)})
        return Observed(
            edge=Host(self.here),
            cloud=self._cloud(),
            link=self.link.estimate(now_ms),
            work=Work(int(prompt), len(sizes), payloads, answer, round(features * len(sizes)), {rung: pack_ms}),
            drafting=self.drafting(),
            encoder_here=Host(encoder),
            reduced=() if rung == "full" else (rung,),
            stands=0.0 if left is None else left.stands,
        )

    def drafting(self, kept: float | None = None) -> Drafting:
        """How drafts fare: by what was seen, or before that by what was fitted."""
        known = (self.accepted + PRIOR * self.settings.kept) / (self.judged + PRIOR)
        slower = (self.paid + PAID_PRIOR) / (self.paid_count + PAID_PRIOR)
        chance = known if kept is None else kept
        return Drafting(self.settings.draft_tokens, chance, UNDER_WAY, slower, self._rest())

    @property
    def _crowded(self) -> bool:
        """Whether prompts of others wait for the time that the cloud would spend on what may come to nothing."""
        return self.queue_ms > self.there.prefill.at(GUESS_PROMPT)

    @property
    def _rounds(self) -> Speculation:
        """How drafts are made: the longer a step waits for those of others, the more of them go into a round."""
        step_ms = max(self.there.verify.at(self.settings.draft_tokens + 1), 0.1)
        most = round(self.settings.draft_tokens * (step_ms + self.step_wait_ms) / step_ms)
        return self.settings.model_copy(update={"draft_tokens": max(min(most, MOST_ROUND), self.settings.draft_tokens)})

    def _rest(self) -> int:
        """How many tokens the cloud can decode until the next round comes, after one whose draft it refused."""
        if self._crowded:
            return 0
        away_ms = self.link.rtt.mean + self.settings.draft_tokens * self.here.decode.at(1)
        return min(int(away_ms / max(self._cloud().decode_ms, 0.1)), MOST_BURST)

    def plan(self, limit: int | None, stops: frozenset[int], now_ms: float, route: Choice, patience: Patience) -> Plan:
        """How an answer is drafted, or streamed where `route` is `cloud` or `split`."""
        estimate = self.link.estimate(now_ms)
        rtt_ms = estimate.rtt_ms if estimate is not None else 0.0
        verify_ms = self._cloud().verify_ms(self.settings.draft_tokens + 1)
        pace = Pace(self.here.decode.at(1), self.there.verify.each_ms, rtt_ms + verify_ms)
        burst = min(round(rtt_ms / max(self.there.decode.at(1), 0.1)), MOST_BURST)
        return Plan(
            self._rounds, pace, limit, stops, rounds=1 if self._crowded else UNDER_WAY, burst=burst, rest=self._rest(),
            stream=route in ("cloud", "split"),
            goes_on=lambda accepted, judged: self._goes_on(estimate, accepted, judged), patience=patience,
        )  # fmt: skip

    def _goes_on(self, estimate: LinkEstimate | None, accepted: int, judged: int) -> bool:
        """Whether to go on drafting an answer, by its own drafts and those of answers before it."""
        if estimate is None:
            return True
        kept = (accepted + PRIOR * self.drafting().chance) / (judged + PRIOR)
        return goes_on(Host(self.here), self._cloud(), estimate, self.drafting(kept))

    def _cloud(self) -> Host:
        return Host(self.there, self.queue_ms, step_wait_ms=self.step_wait_ms)

    def encoded(self, took_ms: float, size_bytes: int, pictures: int) -> None:
        """What it took to encode pictures here for the verifier, the first time left out, and what crossed then."""
        if self.features_bytes.count:
            self.encode_ms.add(took_ms / pictures)
        self.features_bytes.add(size_bytes / pictures)

    def learn(self, prompt_tokens: int, answer_tokens: int, accepted: int, rejected: int) -> None:
        """What an answer came to: lengths, and how many of its drafts were judged right and wrong.

        What was seen of drafts fades with every answer, so that they are tried again.
        """
        self.answer_tokens.add(answer_tokens)
        if prompt_tokens:
            self.prompt_tokens.add(prompt_tokens)
        self.paid, self.paid_count = FORGET * self.paid, FORGET * self.paid_count
        self.judged = FORGET * self.judged + accepted + rejected
        self.accepted = FORGET * self.accepted + accepted

    def paced(self, token_ms: float, now_ms: float) -> None:
        """How long each token of a speculated answer took, its end included, against what was reckoned."""
        estimate = self.link.estimate(now_ms)
        if estimate is not None:
            reckoned = replace(self.drafting(), slower=1.0)
            self.paid += token_ms / max(cost.token_ms(Host(self.here), self._cloud(), estimate, reckoned), 1e-6)
            self.paid_count += 1

    def busy(self, queue_ms: float, step_wait_ms: float) -> None:
        """How long prompts and steps waited in the cloud lately for those of others, as it says itself."""
        self.queue_ms, self.step_wait_ms = queue_ms, step_wait_ms
