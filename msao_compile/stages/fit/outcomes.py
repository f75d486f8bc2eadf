"""What a choice of thresholds comes to on records: time, who answers, and what is lost. Shape suffix: N records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from msao_compile.manifest.mas import ProbeName, Rung
from msao_compile.stages.fit.costs import Costs, Drafts, reduces
from msao_compile.stages.fit.learned import Guesses
from msao_compile.stages.fit.record import Level, Record
from msao_compile.stages.fit.regression import Floats

Bools = np.ndarray


@dataclass(frozen=True)
class Knobs:
    """All that `calibrated` goes by. `rung` is what of a needed picture may cross, at `level` of the kept regions;
    `probe` reads requests.
    """

    tau_alone: float | None
    tau_drop: float
    rung: Rung | None
    level: Level
    drafts: Drafts
    probe: ProbeName = "words"

    @property
    def reduced(self) -> tuple[Rung, ...]:
        """Payloads below the whole picture that may cross."""
        return (*(("drop",) if self.tau_drop > 0 else ()), *((self.rung,) if self.rung else ()))


@dataclass(frozen=True)
class Outcome:
    """Of each record: milliseconds, whether the edge's answer stands and whether its picture is dropped, whether an
    answer that may be given is wrong where the cloud's is right, and the chance that it differs from the cloud's.

    Which of the allowed ways is taken is a matter of the link, so a record is lost where any of them is wrong: what is
    shown of the loss then holds on every link.
    """

    ms_N: Floats
    alone_N: Bools
    dropped_N: Bools
    lost_N: Bools
    risk_N: Floats


@dataclass(frozen=True)
class Marks:
    """Which answers to the records are right, each worked out once, [N]; of the reduced pictures by level."""

    shown_N: Bools
    cloud_N: Bools
    cloud_text_N: Bools
    edge_N: Bools
    edge_text_N: Bools

    @classmethod
    def of(cls, records: Sequence[Record]) -> Marks:
        """Of records."""
        return cls(
            np.array([bool(record.pictures) for record in records]),
            *(
                np.array([record.right(getattr(record, name)) for record in records])
                for name in ("cloud", "cloud_text", "edge", "edge_text")
            ),
        )


def outcome(knobs: Knobs, costs: Costs, marks: Marks, guesses: Guesses) -> Outcome:
    """What happens to every record. Where the probe takes too long, `words` reads in its place and what is needed
    crosses whole: what either would lose is lost.
    """
    found = _read_by(knobs, costs, marks, guesses)
    if knobs.probe == "words":
        return found
    words = _read_by(replace(knobs, probe="words", rung=None), costs, marks, guesses)
    return replace(found, lost_N=found.lost_N | words.lost_N, risk_N=np.maximum(found.risk_N, words.risk_N))


def _read_by(knobs: Knobs, costs: Costs, marks: Marks, guesses: Guesses) -> Outcome:
    needed_N = guesses.needed[knobs.probe]
    dropped_N = marks.shown_N & (needed_N < knobs.tau_drop)
    sure_N = np.where(dropped_N, guesses.sure_text_N, guesses.sure_N)
    alone_N = np.zeros(len(sure_N), np.bool_) if knobs.tau_alone is None else sure_N >= knobs.tau_alone
    wrong_N = alone_N & ~np.where(dropped_N, marks.edge_text_N, marks.edge_N)
    wrong_N |= dropped_N & ~marks.cloud_text_N
    risk_N = np.where(alone_N, 1 - sure_N, 0.0)
    risk_N = np.maximum(risk_N, np.where(dropped_N, needed_N, 0.0))
    ms_N, late_N = costs.best("full", knobs.drafts), costs.looking(knobs.probe)
    ms_N = np.where(dropped_N, np.minimum(ms_N, costs.best("drop", knobs.drafts)), ms_N)
    if knobs.rung is not None:
        less_N, right_N, same_N = _reduced(costs.records, knobs.level)
        less_N = less_N & ~dropped_N
        wrong_N |= less_N & ~right_N
        differing = float((~same_N[less_N]).mean()) if less_N.any() else 0.0
        risk_N = np.maximum(risk_N, np.where(less_N, differing, 0.0))
        ms_N = np.where(less_N, np.minimum(ms_N, costs.best(knobs.level, knobs.drafts)), ms_N)
    here_N = np.where(dropped_N, costs.edge(True), costs.edge(False))
    ms_N = np.where(alone_N, np.minimum(here_N, ms_N + late_N), ms_N + late_N)
    return Outcome(ms_N, alone_N, dropped_N, marks.cloud_N & wrong_N, risk_N)


def _reduced(records: Sequence[Record], level: Level) -> tuple[Bools, Bools, Bools]:
    """Whether less of a picture crosses, and whether the cloud's answer to that is right, and the same."""
    found = [record.reduced.get(level) for record in records]
    less = [reduces(record, level) for record in records]
    right = [one is None or record.right(one) for record, one in zip(records, found, strict=True)]
    same = [one is None or one.text == record.cloud.text for record, one in zip(records, found, strict=True)]
    return np.array(less), np.array(right), np.array(same)
