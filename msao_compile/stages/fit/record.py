"""What both models say to a sample: with its picture, without it, and with less of it; and what the drafter would say
at each place of the cloud's answer. All by the code that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from msao_compile.made_up import picture
from msao_compile.manifest.mas import ProbeName
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.mas.classical import CELLS
from msao_compile.runtime.mas.payload import Form, pack, safe_fill, seen
from msao_compile.runtime.mas.probes import Look, Probe, Readings, Settings, open_probe
from msao_compile.runtime.mas.reading import FULL_SHARE, Fitted, Limits
from msao_compile.runtime.mas.sure import log_odds
from msao_compile.runtime.mas.temporal import TemporalLimits
from msao_compile.runtime.preprocess import decode
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession, Request
from msao_compile.runtime.speculate.drafter import Drafter
from msao_compile.stages.fit.samples import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_TOKENS = 64
"""Of an answer."""
TOLD_EVERY = 20
SHRINK, QUALITY = 4, 85
"""How pictures are reduced where they are: see `runtime.mas.payload`."""
RHOS, KAPPAS = (0.5, 0.8), (0.1, 0.3)
"""Kept shares of importance and least shares of cells that are tried: each pair is one more answer of the cloud."""
COSINE = 0.9
"""Of duplicate frames; samples hold pictures, so nothing here says anything of it."""
WeightsBy = Mapping[ProbeName, tuple[float, float, float]]
WEIGHTS: WeightsBy = {
    "early": (1 / 3, 1 / 3, 1 / 3), "classical": (0.5, 0.5, 0.0), "words": (1.0, 0.0, 0.0),
}  # fmt: skip
"""Of activation, novelty and relevance where nothing was fitted; `classical` has no third, and `words` none at all."""

Level = tuple[float, float] | None
"""A kept share of importance and the least share of cells, or a thumbnail."""
LEVELS: tuple[Level, ...] = (None, *((rho, kappa) for rho in RHOS for kappa in KAPPAS))


@dataclass(frozen=True)
class Said:
    """A whole answer: its text, its tokens without the end, and how sure the model was of each, the end too."""

    text: str
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    ended: bool


@dataclass(frozen=True)
class Reduced:
    """What the cloud says when less of the picture crosses; `share` of its cells are kept."""

    text: str
    size_bytes: int
    share: float


@dataclass(frozen=True)
class Record:
    """A sample and all that was said. `edge_text` and `cloud_text` are without the picture, and the same answers where
    there is none. `told` and `kept`: at each token of the cloud's answer, its end too, how sure the drafter was, and
    whether it would have said the same. `read`: of each probe that looks at pictures, similarity and sparsity; `cut_by`
    is the one whose regions were kept where pictures were reduced.
    """

    sample: Sample
    words: frozenset[int]
    edge_tokens: int
    cloud_tokens: int
    text_tokens: int
    edge: Said
    edge_text: Said
    cloud: Said
    cloud_text: Said
    told: tuple[float, ...]
    kept: tuple[bool, ...]
    reduced: Mapping[Level, Reduced] = field(default_factory=dict)
    read: Mapping[ProbeName, tuple[float, float]] = field(default_factory=dict)
    cut_by: ProbeName | None = None

    @property
    def pictures(self) -> int:
        """How many there are."""
        return len(self.sample.pictures)

    @property
    def picture_bytes(self) -> int:
        """What they weigh as they came."""
        return sum(map(len, self.sample.pictures))

    def right(self, said: Said | Reduced) -> bool:
        """Whether an answer is the label."""
        return said.text == self.sample.answer


class Recorder:
    """Asks both models of a task."""

    def __init__(self, drafter: ModelSession, verifier: ModelSession, form: Form, weights: WeightsBy) -> None:
        self.drafter, self.verifier = drafter, verifier
        self.form, self.weights = form, weights
        self.probes = looking(drafter, weights)
        self.cutting = cutting(drafter) if self.probes else None
        self.cutters = {
            level: _probe(self.cutting, level, drafter, weights) for level in LEVELS if level and self.cutting
        }

    def records(self, samples: Sequence[Sample], tell: Callable[[int], None]) -> list[Record]:
        """One of each sample, in order."""
        found = []
        for number, sample in enumerate(samples):
            if number % TOLD_EVERY == 0:
                tell(number)
            found.append(self.record(sample))
        return found

    def record(self, sample: Sample) -> Record:
        """All answers to one.

        Raises:
            PictureError: its picture cannot be used. CapacityExceeded: its prompt is too long.
        """
        pictures = tuple(decode(data) for data in sample.pictures)
        request, text = (self.drafter.prepare(sample.question, shown) for shown in (pictures, ()))
        whole = self.verifier.prepare(sample.question, pictures)
        look = Look(sample.question, pictures, request)
        readings = {name: probe.read(look, self.drafter, Clock()) for name, probe in self.probes.items()}
        encoded = readings["early"].encoded if "early" in readings else {}
        edge, drafting = _said(self.drafter, request, encoded or self.drafter.encode(request.tensors, Clock()))
        cloud, _ = _said(self.verifier, whole, self.verifier.encode(whole.tensors, Clock()))
        told, kept = self._forced(drafting, cloud)
        return Record(
            sample, frozenset(text.ids.tolist()), len(request.ids), len(whole.ids), len(text.ids), edge,
            _said(self.drafter, text, {})[0] if pictures else edge, cloud,
            _said(self.verifier, self.verifier.prepare(sample.question, ()), {})[0] if pictures else cloud, told, kept,
            self._reduced(look, sample, cloud), {name: _read(found) for name, found in readings.items() if found.of},
            self.cutting,
        )  # fmt: skip

    def _forced(self, drafting: Drafter, cloud: Said) -> tuple[tuple[float, ...], tuple[bool, ...]]:
        stops = frozenset(self.verifier.tokenizer.eos_token_ids)
        told, kept = [], []
        for place in range(len(cloud.confidences)):
            draft = drafting.draft(cloud.tokens[:place])
            told.append(draft.confidence)
            kept.append(draft.token == cloud.tokens[place] if place < len(cloud.tokens) else draft.token in stops)
        return tuple(told), tuple(kept)

    def _reduced(self, look: Look, sample: Sample, cloud: Said) -> dict[Level, Reduced]:
        """Answers to less of the picture; where less weighs as much, the whole crosses and is answered already."""
        if not look.pictures or not self.cutters:
            return {}
        found: dict[Level, Reduced] = {}
        known: dict[tuple[bytes, ...], str] = {}
        for level in LEVELS:
            reading = self.cutters[level].read(look, self.drafter, Clock()) if level is not None else None
            share = 1.0 if reading is None else reading.of["image"].kappa_spatial
            pairs = list(zip(look.pictures, sample.pictures, strict=True))
            rung = "thumbnail" if level is None else "regions"
            boxes = [[] if reading is None else reading.kept_boxes(place) for place in range(len(pairs))]
            sent = [pack(*pair, kept, rung, self.form) for pair, kept in zip(pairs, boxes, strict=True)]  # type: ignore[arg-type]
            size = sum(one.size_bytes for one in sent)
            if all(one.rung == "full" for one in sent):
                found[level] = Reduced(cloud.text, size, 1.0)
                if level is None:  # what is no smaller as a thumbnail is none with sharp regions either
                    return dict.fromkeys(LEVELS, found[level])
                continue
            if level is not None and share > FULL_SHARE:
                found[level] = Reduced(cloud.text, sum(map(len, sample.pictures)), 1.0)
                continue
            data = tuple(one.data for one in sent)
            if data not in known:
                known[data] = self._asked(sample.question, [seen(one, self.form) for one in sent])
            found[level] = Reduced(known[data], size, share)
        return found

    def _asked(self, question: str, pictures: Sequence[Image]) -> str:
        request = self.verifier.prepare(question, pictures)
        return _said(self.verifier, request, self.verifier.encode(request.tensors, Clock()))[0].text


def looking(drafter: ModelSession, weights: WeightsBy) -> dict[ProbeName, Probe]:
    """The probes that can look at pictures for a drafter; none where it sees none."""
    sees = "vision_encoder" in drafter.model.components
    names: tuple[ProbeName, ...] = ("early", "classical") if sees else ()
    return {name: _probe(name, None, drafter, weights) for name in names}


def cutting(drafter: ModelSession) -> ProbeName:
    """The probe that says which regions are kept: the drafter's own features, unless they are coarser than pixels'."""
    request = drafter.prepare("a", (picture(),))
    features = drafter.encode(request.tensors, Clock()).get("image_features")
    units = 0 if features is None else features.size // drafter.facts.hidden_size
    return "early" if units >= CELLS * CELLS else "classical"


def mean_fill(samples: Iterable[Sample]) -> tuple[int, int, int]:
    """The mean colour of all pictures, as a fill that is none's padding."""
    means = [
        np.asarray(decode(data).resize((8, 8)), np.float64).mean((0, 1))
        for sample in samples
        for data in sample.pictures
    ]
    return safe_fill(np.mean(means, 0).tolist() if means else [96.0, 96.0, 96.0])


def _probe(name: ProbeName, level: Level, session: ModelSession, weights: WeightsBy) -> Probe:
    """A probe whose `needed` is the sigmoid of the similarity, so that it can be read off."""
    rho, kappa = level or (1.0, 0.0)
    limits = Limits(rho, kappa, 0.0, TemporalLimits(COSINE))
    return open_probe(name, Settings(Fitted(weights[name], (0.0, 1.0, 0.0, 0.0)), limits), session)


def _read(readings: Readings) -> tuple[float, float]:
    image = readings.of["image"]
    return log_odds(image.needed), image.sparsity


def _said(session: ModelSession, request: Request, encoded: Arrays) -> tuple[Said, Drafter]:
    """A model's greedy answer, and the drafter that gave it."""
    session.check_capacity(len(request.ids), 1)
    drafter = Drafter(session, "greedy", SamplingParameters())
    drafter.prefill(request, encoded, Clock())
    limit = min(MOST_TOKENS, session.facts.kv_capacity - len(request.ids))
    stops, tokens, confidences = frozenset(session.tokenizer.eos_token_ids), list[int](), list[float]()
    ended = False
    while len(tokens) < limit and not ended:
        draft = drafter.draft(tokens)
        confidences.append(draft.confidence)
        ended = draft.token in stops
        if not ended:
            tokens.append(draft.token)
    text = session.tokenizer.decode(tokens).strip()
    return Said(text, tuple(tokens), tuple(confidences), ended), drafter
