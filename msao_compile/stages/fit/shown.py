"""What is told of a fit: how sets were answered, how far each chance was off, what answers are reckoned to take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from msao_compile.manifest.fit_evidence import Answered, Reliability, SetSummary
from msao_compile.manifest.mas import ProbeFit
from msao_compile.runtime.mas.sure import prior
from msao_compile.stages.fit.calibrate import Side
from msao_compile.stages.fit.learned import Learned, alike, drafts, flips, needed_by
from msao_compile.stages.fit.outcomes import Knobs, outcome
from msao_compile.stages.fit.record import Record, Reduced, Said
from msao_compile.stages.fit.regression import Floats, ece, reliability


def kept(records: Sequence[Record]) -> float:
    """The share of drafts, along the cloud's answers, that the cloud says as well."""
    return float(drafts(records)[1].mean())


def summary(name: Literal["fit", "held out"], records: Sequence[Record]) -> SetSummary:
    """How both models answered a set, with what each way leaves out of the picture."""
    ways = [("edge", [one.edge for one in records]), ("edge, text alone", [one.edge_text for one in records]),
            ("cloud", [one.cloud for one in records]),
            ("cloud, text alone", [one.cloud_text for one in records])]  # fmt: skip
    answered = [_answered(way, records, said) for way, said in ways]
    for level in {level: None for record in records for level in record.reduced}:
        way = "cloud, thumbnail" if level is None else f"cloud, regions {level[0]:g} / {level[1]:g}"
        answered.append(_answered(way, records, [one.reduced.get(level, one.cloud) for one in records]))
    return SetSummary(
        name=name, samples=len(records), pictures=sum(record.pictures > 0 for record in records),
        answered=tuple(answered), drafts_kept=kept(records),
    )  # fmt: skip


def _answered(way: str, records: Sequence[Record], said: Sequence[Said | Reduced]) -> Answered:
    right = [record.right(one) for record, one in zip(records, said, strict=True)]
    same = [record.cloud.text == one.text for record, one in zip(records, said, strict=True)]
    tokens = [len(one.tokens) if isinstance(one, Said) else len(record.cloud.tokens)
              for record, one in zip(records, said, strict=True)]  # fmt: skip
    return Answered(
        way=way, right=float(np.mean(right)), as_cloud=float(np.mean(same)), tokens=float(np.mean(tokens))
    )  # fmt: skip


def reliabilities(learned: Learned, held_out: Side, knobs: Knobs) -> tuple[Reliability, ...]:
    """Every chance against what came true, on held-out samples."""
    found = []
    for name, what, chances_N, labels_N in _said(learned, held_out, knobs):
        bins = reliability(chances_N, labels_N)
        found.append(Reliability(name=name, what=what, bins=bins, ece=ece(bins)))
    return tuple(found)


def with_errors(learned: Learned, held_out: Side, knobs: Knobs) -> Learned:
    """As `learned`, with the calibration errors that held-out samples show."""
    errors = {one.name: one.ece for one in reliabilities(learned, held_out, knobs)}
    probes: list[ProbeFit] = [
        probe.model_copy(update={"ece": errors.get(f"needed, by {probe.name}", 0.0)}) for probe in learned.probes
    ]
    sure = learned.sure.model_copy(update={"ece": errors["sureness"], "prior_ece": errors["prior"]})
    return replace(learned, sure=sure, probes=tuple(probes))


def _said(learned: Learned, held_out: Side, knobs: Knobs) -> Iterator[tuple[str, str, Floats, Floats]]:
    records, guesses = held_out.costs.records, held_out.guesses
    yield "sureness", "the edge's answer is the cloud's", guesses.sure_N, alike(records)
    stands_N = outcome(knobs, held_out.costs, held_out.marks, guesses).alone_N.astype(np.float64)
    before = np.array([prior(learned.sure, record.words) for record in records])
    yield "prior", "by the words alone, the edge's answer will stand", before, stands_N
    told, right = drafts(records)
    yield "acceptance", "a draft is kept", np.array([learned.acceptance.at(one) for one in told]), right
    shown_N = held_out.marks.shown_N
    if shown_N.any():
        for probe in learned.probes:
            chances_N = needed_by(learned, probe.name, records)[shown_N]
            what = "the cloud answers otherwise without the picture"
            yield f"needed, by {probe.name}", what, chances_N, flips(records)[shown_N]


def costs_ms(held_out: Side, knobs: Knobs) -> dict[str, float]:
    """Mean times on held-out samples, reckoned: of the cloud alone, of the edge alone, with drafts, and as chosen."""
    costs = held_out.costs
    return {
        "cloud": float(costs.cloud("full").mean()),
        "edge": float(costs.edge(False).mean()),
        "speculate": float(costs.speculated("full", knobs.drafts).mean()),
        "strict": float(costs.best("full", knobs.drafts).mean()),
        "calibrated": float(outcome(knobs, costs, held_out.marks, held_out.guesses).ms_N.mean()),
    }
