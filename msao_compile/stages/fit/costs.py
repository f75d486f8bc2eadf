"""What each sample would take each way, by the cost model and each side's primitives: arithmetic on records alone.

The picture is on its way at once, while the edge drafts; where the edge's answer stands, it is the answer, else the
cloud decodes or verifies, whichever is quicker. Shape suffix: N records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from msao_compile.manifest.mas import ProbeName
from msao_compile.runtime.adviser import MOST_BURST, OVERHEAD_BYTES, UNDER_WAY
from msao_compile.runtime.cost import TINY_MS, Host, Work, cloud_ms, edge_ms
from msao_compile.runtime.link_state import LinkEstimate
from msao_compile.runtime.mas.reading import FULL_SHARE
from msao_compile.stages.fit.record import Level, Record
from msao_compile.stages.fit.regression import Floats

Bools = np.ndarray


@dataclass(frozen=True)
class Sides:
    """Both hosts and what lies between them; `picture_bytes` is what pictures weigh there, if not what they do here."""

    edge: Host
    cloud: Host
    link: LinkEstimate
    picture_bytes: int | None = None


@dataclass(frozen=True)
class Drafts:
    """How drafts are made: `most` a round, and below which confidence they are flushed."""

    most: int
    confidence: float


@dataclass
class Costs:
    """Times of every record [N], each worked out once."""

    records: Sequence[Record]
    sides: Sides
    _known: dict[object, Floats] = field(default_factory=dict)

    def edge(self, text: bool) -> Floats:
        """The edge's whole answer; with `text` without the picture."""
        return self._once(("edge", text), lambda record: self._edge(record, text))

    def cloud(self, sent: Level | str) -> Floats:
        """The cloud's answer to what is sent: `full`, `drop` or a level of reduction."""
        return self._once(("cloud", sent), lambda record: self._cloud(record, sent))

    def speculated(self, sent: Level | str, drafts: Drafts) -> Floats:
        """The cloud's answer with drafts of the edge."""
        return self._once(("speculate", sent, drafts), lambda record: self._speculated(record, sent, drafts))

    def looking(self, probe: ProbeName) -> Floats:
        """How long what is sent waits for a probe to look at it: at pictures, or at what the drafter's encoder makes of
        them.
        """
        return self._once(("look", probe), lambda record: self._looking(record, probe))

    @property
    def cutter(self) -> ProbeName | None:
        """The probe by which pictures were cut."""
        return next((record.cut_by for record in self.records if record.cut_by is not None and record.reduced), None)

    def best(self, sent: Level | str, drafts: Drafts) -> Floats:
        """The cloud's answer the quicker way."""
        return np.minimum(self.cloud(sent), self.speculated(sent, drafts))

    def _once(self, key: object, of: object) -> Floats:
        if key not in self._known:
            self._known[key] = np.array([of(record) for record in self.records])  # type: ignore[operator]
        return self._known[key]

    def _looking(self, record: Record, probe: ProbeName) -> float:
        times, pictures = self.sides.edge.times, record.pictures
        if not pictures or probe == "words":
            return 0.0
        return times.prepare.at(pictures) + (times.encode.at(pictures) if probe == "early" else 0.0)

    def _edge(self, record: Record, text: bool) -> float:
        said = record.edge_text if text else record.edge
        prompt, pictures = (record.text_tokens, 0) if text else (record.edge_tokens, record.pictures)
        return edge_ms(self.sides.edge, Work(prompt, pictures, {}, len(said.confidences)))

    def _work(self, record: Record, sent: Level | str) -> Work:
        tokens, size = len(record.cloud.confidences), record.picture_bytes
        if sent == "drop":
            said = record.cloud_text
            return Work(record.text_tokens, 0, {"full": OVERHEAD_BYTES}, len(said.confidences))
        if sent != "full":
            size = record.reduced[sent].size_bytes if sent in record.reduced else size  # type: ignore[index]
        if self.sides.picture_bytes is not None and record.pictures:
            size = round(size / record.picture_bytes * self.sides.picture_bytes * record.pictures)
        return Work(record.cloud_tokens, record.pictures, {"full": size + OVERHEAD_BYTES}, tokens)

    def _cloud(self, record: Record, sent: Level | str) -> float:
        return cloud_ms(self.sides.cloud, self.sides.link, self._work(record, sent))

    def _speculated(self, record: Record, sent: Level | str, drafts: Drafts) -> float:
        """Both sides begin at once; the first round rides on the prompt's way up."""
        sides, work = self.sides, self._work(record, sent)
        text = sent == "drop"
        prompt, pictures = (record.text_tokens, 0) if text else (record.edge_tokens, record.pictures)
        here_ms = sides.edge.begin_ms(prompt, pictures)
        up_ms = sides.link.up_ms(work.payload_bytes["full"])
        there_ms = up_ms + sides.cloud.begin_ms(work.prompt_tokens, work.pictures)
        return max(here_ms, there_ms) + rounds_ms(record.told, record.kept, drafts, sides) - sides.link.rtt_ms / 2


def rounds_ms(told: Sequence[float], kept: Sequence[bool], drafts: Drafts, sides: Sides) -> float:
    """Until a cloud's answer is committed whole, from the first draft on.

    Drafting goes on while rounds are under way, so a run of kept drafts takes the slower side's pace; where the drafter
    is unsure, or said another token, a round trip and a verification pass before it goes on behind the cloud's token
    and those that the cloud decodes meanwhile.
    """
    draft_ms = sides.edge.slower * sides.edge.times.decode.at(1)
    window_ms = (sides.link.rtt_ms + _verify_ms(sides, drafts.most)) / UNDER_WAY / drafts.most
    pace_ms = max(draft_ms, _verify_ms(sides, drafts.most) / drafts.most, window_ms)
    gained = int(sides.link.rtt_ms / max(sides.cloud.decode_ms, TINY_MS))
    total, place = 0.0, 0
    while place < len(told):
        end = place
        while end < len(told) and kept[end] and told[end] >= drafts.confidence:
            end += 1
        drafted = end - place
        if end < len(told) and told[end] >= drafts.confidence:  # the round of a draft that is refused is filled up
            drafted = math.ceil((drafted + 1) / drafts.most) * drafts.most
        total += drafted * pace_ms + sides.link.rtt_ms + _verify_ms(sides, min(drafted, drafts.most))
        place = end + 1 + min(gained, MOST_BURST)
    return total


def _verify_ms(sides: Sides, drafted: int) -> float:
    return sides.cloud.slower * sides.cloud.times.verify.at(drafted + 1)


def reduces(record: Record, level: Level) -> bool:
    """Whether a reading would have less of a record's picture cross."""
    found = record.reduced.get(level)
    return (
        found is not None and found.size_bytes < record.picture_bytes and (level is None or found.share <= FULL_SHARE)
    )
