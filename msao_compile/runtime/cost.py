"""What each route would take: the cost model, in milliseconds, from measured primitives and both sides' state.

Letters: L tokens of the answer as expected, g draft tokens a round, a the chance that a draft is kept.
Queueing: a host that is busy a share r of its time answers 1 / (1 - r) times slower (M/M/1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from msao_compile.manifest.offload import Primitives
from msao_compile.runtime.link_state import LinkEstimate

Payload = Literal["drop", "thumbnail", "regions", "full"]
MOST_BUSY = 0.95
TINY_MS = 1e-6


@dataclass(frozen=True)
class Host:
    """One side: what its work costs, how long it is busy with earlier work, and the share of time it is busy at all.

    `step_wait_ms`: so long a step waits for those of others, where that was measured; it says more of a host that takes
    the steps of many answers together than its load does, part of which is one's own.
    """

    times: Primitives
    queue_ms: float = 0.0
    load: float = 0.0
    step_wait_ms: float = 0.0

    @property
    def slower(self) -> float:
        """How many times longer work takes than on an idle host."""
        return 1 / (1 - min(max(self.load, 0.0), MOST_BUSY))

    @property
    def decode_ms(self) -> float:
        """Until the next token."""
        return self.slower * self.times.decode.at(1) + self.step_wait_ms

    def verify_ms(self, tokens: int) -> float:
        """Until a round of so many tokens is judged."""
        return self.slower * self.times.verify.at(tokens) + self.step_wait_ms

    def begin_ms(self, prompt_tokens: int, pictures: int) -> float:
        """Until the first token: queue, pictures prepared and encoded, prompt."""
        times = self.times
        picture_ms = (times.prepare.at(pictures) + times.encode.at(pictures)) if pictures else 0.0
        return self.queue_ms + self.slower * (picture_ms + times.prefill.at(prompt_tokens))


@dataclass(frozen=True)
class Work:
    """One request: its prompt, pictures, what each payload would send, and the answer's length as expected.

    `pack_ms`: so long it takes to make a payload, where it does. `features_bytes` is what the split route sends.
    """

    prompt_tokens: int
    pictures: int
    payload_bytes: Mapping[Payload, int]
    answer_tokens: float
    features_bytes: int = 0
    pack_ms: Mapping[Payload, float] = field(default_factory=dict)

    def shown(self, payload: Payload) -> int:
        """How many pictures are seen of a payload: a reduced one has the size of the picture that was given."""
        return 0 if payload == "drop" else self.pictures

    def there_ms(self, link: LinkEstimate, payload: Payload) -> float:
        """Until a payload is in the cloud."""
        return self.pack_ms.get(payload, 0.0) + link.up_ms(self.payload_bytes[payload])


@dataclass(frozen=True)
class Drafting:
    """How drafts fare: at most `tokens` a round, each kept with `chance`; `rounds` under way at once.

    `slower`: so many times the time per token as reckoned, by what answers took before. `rest`: so many tokens the
    verifier decodes by itself where a draft was refused.
    """

    tokens: int
    chance: float
    rounds: int = 1
    slower: float = 1.0
    rest: int = 0


def edge_ms(edge: Host, work: Work, payload: Payload = "full") -> float:
    """T_EDGE: everything here. A probe has looked before anything is weighed, whatever is taken then."""
    return edge.begin_ms(work.prompt_tokens, work.shown(payload)) + work.answer_tokens * edge.decode_ms


def cloud_ms(cloud: Host, link: LinkEstimate, work: Work, payload: Payload = "full") -> float:
    """T_CLOUD: everything there, tokens streamed."""
    begin_ms = cloud.begin_ms(work.prompt_tokens, work.shown(payload))
    decode_ms = work.answer_tokens * cloud.decode_ms
    return work.there_ms(link, payload) + begin_ms + decode_ms + link.rtt_ms / 2


def split_ms(here: Host, cloud: Host, link: LinkEstimate, work: Work) -> float:
    """T_SPLIT: one model, its encoder here (`here` has its encode time on this host)."""
    picture_ms = here.times.prepare.at(work.pictures) + here.times.encode.at(work.pictures)
    begin_ms = here.queue_ms + here.slower * picture_ms + link.up_ms(work.features_bytes)
    decode_ms = work.answer_tokens * cloud.decode_ms
    return begin_ms + cloud.begin_ms(work.prompt_tokens, 0) + decode_ms + link.rtt_ms / 2


def kept_tokens(drafting: Drafting) -> float:
    """E_g = (1 - a^(g+1)) / (1 - a): tokens that a round adds (Leviathan et al. 2023, equation 1)."""
    chance, tokens = min(drafting.chance, 1.0), drafting.tokens
    return tokens + 1.0 if chance > 1 - 1e-9 else (1 - chance ** (tokens + 1)) / (1 - chance)


def token_ms(edge: Host, cloud: Host, link: LinkEstimate, drafting: Drafting) -> float:
    """Time per token while speculating.

    Stop-and-wait: a round's drafts, round trip and verification over the tokens it adds. With rounds under way at once
    the drafter does not wait: a token takes as long as the slower side needs for it, and a rejection, one in
    1 / (1 - a) tokens, costs a round trip and a verification after the drafts that filled the rejected one's round,
    half a round's on average, in which nothing is gained but what the verifier decodes by itself.
    """
    draft_ms = edge.decode_ms
    verify_ms = cloud.verify_ms(drafting.tokens + 1)
    if drafting.rounds == 1:
        return drafting.slower * (drafting.tokens * draft_ms + link.rtt_ms + verify_ms) / kept_tokens(drafting)
    window_ms = (link.rtt_ms + verify_ms) / drafting.rounds / max(drafting.tokens, 1)
    pace_ms = max(draft_ms, verify_ms / max(drafting.tokens, 1), window_ms)
    away_ms = (drafting.tokens - 1) / 2 * draft_ms + link.rtt_ms + verify_ms
    gained = min(drafting.rest, away_ms / max(cloud.decode_ms, TINY_MS))
    return drafting.slower * (pace_ms + (1 - drafting.chance) * max(away_ms - gained * pace_ms, 0.0))


def speculate_ms(
    edge: Host, cloud: Host, link: LinkEstimate, work: Work, drafting: Drafting, payload: Payload = "full"
) -> float:
    """T_SPEC: both sides begin at once, then rounds.

    With rounds under way at once the first token comes with the news that the prompt is known, as on the cloud's own
    route; the cloud decodes by itself until drafts come, and from there on tokens come at the pace of rounds.
    Stop-and-wait verifies its first round before any.
    """
    here_ms = edge.begin_ms(work.prompt_tokens, work.shown(payload))
    there_ms = work.there_ms(link, payload) + cloud.begin_ms(work.prompt_tokens, work.shown(payload))
    if drafting.rounds > 1:
        pace_ms = token_ms(edge, cloud, link, drafting)
        late_ms = max(here_ms - there_ms, 0.0)
        decode_ms = max(cloud.decode_ms, TINY_MS)
        own = min(late_ms / decode_ms, work.answer_tokens) if drafting.rest else 0.0
        late_ms = own * decode_ms if drafting.rest else late_ms
        return there_ms + late_ms + link.rtt_ms / 2 + (work.answer_tokens - own) * pace_ms
    here_ms += drafting.tokens * edge.decode_ms
    first_ms = max(here_ms, there_ms) + cloud.verify_ms(drafting.tokens + 1) + link.rtt_ms / 2
    left = max(work.answer_tokens - kept_tokens(drafting), 0.0)
    return first_ms + left * token_ms(edge, cloud, link, drafting)
