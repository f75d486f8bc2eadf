"""What a deployment tells of work shared by edge and cloud: measured times, and how drafts are made and taken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from msao_compile.manifest.frozen import FileRef, Frozen

Rule = Literal["greedy", "gumbel", "reject"]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=1, le=64)]


class Line(Frozen):
    """A time that grows with what is done: `fixed_ms` + `each_ms` x count."""

    fixed_ms: Milliseconds
    each_ms: Milliseconds

    def at(self, count: float) -> float:
        """Milliseconds for so many."""
        return self.fixed_ms + self.each_ms * count


class Primitives(Frozen):
    """Times of one model on the machine that serves it, medians; `decode` counts rows side by side.

    `prefill` counts prompt tokens, `verify` counts tokens of a round (drafts and the one before them), `encode` counts
    pictures, `prepare` counts pictures as well.
    """

    model: str
    prepare: Line
    encode: Line
    prefill: Line
    decode: Line
    verify: Line


class Acceptance(Frozen):
    """The chance that the verifier keeps a draft, by the drafter's confidence: rising steps (isotonic regression).

    `from_confidence[i]` is where step i begins; `chance[i]` is its height.
    """

    from_confidence: tuple[Share, ...]
    chance: tuple[Share, ...]

    def at(self, confidence: float) -> float:
        """The chance at a confidence."""
        below = [chance for start, chance in zip(self.from_confidence, self.chance, strict=True) if start <= confidence]
        return below[-1] if below else self.chance[0]


class Speculation(Frozen):
    """How a task's drafter drafts: `draft_tokens` at most a round, `confidence` is where it flushes.

    `rule` is for temperatures above 0; at 0 it is always `greedy`. `kept` is the share of drafts that is expected to be
    kept. The threshold moves between `confidence_min` and `confidence_max` by `decay` as rounds are accepted or not.
    Without `evidence` nothing was fitted.
    """

    task: str
    drafter: str
    verifier: str
    rule: Rule
    draft_tokens: Tokens
    confidence: Share
    confidence_min: Share
    confidence_max: Share
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.95
    acceptance: Acceptance
    kept: Share = 0.9
    evidence: FileRef | None = None
