"""The edge model as drafter: what it would say after any beginning of the answer, with its state rolled back to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.device import Work
from msao_compile.runtime.mas.probes import prefill
from msao_compile.runtime.mas.reader import Seen
from msao_compile.runtime.rules import DRAFT, chance, choose
from msao_compile.runtime.sampling import SamplingParameters, mask_vocabulary, pick, probabilities
from msao_compile.runtime.session import Conversation, ModelSession, Request
from msao_compile.runtime.speculate.gates import confidence
from msao_compile.runtime.wire.contract import Rule

Piece = tuple[Work, int, Callable[[], None]]
"""A kind of work for a device, how much of it, and the work."""


@dataclass(frozen=True)
class Draft:
    """A token, how sure the drafter was before it drew it, and under rule `reject` what it drew from, [V]."""

    token: int
    confidence: float
    probs_V: np.ndarray | None = None


class Drafter:
    """One answer's drafts. Every call may begin at another token than the last one ended with.

    Raises:
        InputError: the model's state cannot be rolled back, so no draft of it can be taken back.
    """

    def __init__(self, session: ModelSession, rule: Rule, sampling: SamplingParameters) -> None:
        self.session, self.rule, self.sampling = session, rule, sampling
        self._vocabulary = session.tokenizer.vocab_size
        self._fed: list[int] = []
        self._prompt = 0
        self._logits = self._first = np.zeros(0)
        self._talk: Conversation | None = None

    def prefill(
        self, request: Request, encoded: Arrays, clock: Clock, seen: Seen | None = None, prunes: bool = False
    ) -> None:
        """Run the prompt, from what a reading of it made where there is one; `prunes` leaves out what that drops."""
        if seen is not None and seen.request is not None:
            readings = seen.readings if seen.readings.encoded else replace(seen.readings, encoded=encoded)
            logits, self._talk = prefill(self.session, request, readings, clock, prunes)
        else:
            logits, self._talk = self.session.prefill(request, encoded, clock)
        self._logits = self._first = logits[-1]
        self._prompt = self._talk.cache.length

    def anew(self) -> Drafter:
        """One that has not seen the prompt."""
        return Drafter(self.session, self.rule, self.sampling)

    @property
    def began(self) -> bool:
        """Whether its prompt was run."""
        return self._talk is not None

    @property
    def prompt_tokens(self) -> int:
        """How long its prompt is, after what it leaves out."""
        return self._prompt

    @property
    def room(self) -> int:
        """How many tokens of an answer its KV cache has room for."""
        return self.session.facts.kv_capacity - self._prompt

    def opening(
        self,
        prepare: Callable[[], Request],
        pictures: int,
        clock: Clock,
        seen: Seen | None = None,
        prunes: bool = False,
    ) -> Iterator[Piece]:
        """The work before the first draft, piece by piece; what `seen` has by then is not done again."""
        request, encoded = Request(np.zeros(0, np.int64), {}), Arrays()
        seen = seen or Seen()

        def prepared() -> None:
            nonlocal request
            with clock.module("preprocess"):
                request = prepare()
            self.session.check_capacity(len(request.ids), 1)

        if seen.request is None:
            yield "prepare", 1, prepared
        else:
            request = seen.request
            self.session.check_capacity(len(request.ids), 1)
        if pictures and not seen.readings.encoded:
            yield "encode", pictures, lambda: encoded.update(self.session.encode(request.tensors, clock))
        yield "prefill", len(request.ids), lambda: self.prefill(request, encoded, clock, seen, prunes)

    def draft(self, answer: Sequence[int]) -> Draft:
        """What comes after `answer`, of which only what is new is run."""
        logits = self._after(answer)
        sure, position = confidence(logits, self._vocabulary), len(answer)
        if self.rule == "reject" and not self.sampling.greedy:
            probs_V = probabilities(mask_vocabulary(logits, self._vocabulary), self.sampling)[: self._vocabulary]
            token = pick(probs_V, chance(self.sampling.seed, position, DRAFT))
            return Draft(token, sure, probs_V.astype(np.float32))
        return Draft(choose(logits, position, self.sampling, self._vocabulary), sure)

    def _after(self, answer: Sequence[int]) -> np.ndarray:
        if self._talk is None:
            raise InputError("a drafter drafts after its prompt: call prefill first")
        if not answer:
            return self._first
        same = next(
            (index for index, (one, other) in enumerate(zip(self._fed, answer, strict=False)) if one != other),
            min(len(self._fed), len(answer)),
        )
        if same == len(self._fed) == len(answer):
            return self._logits
        same = min(same, len(answer) - 1)  # the last token is run, again if need be, for its logits
        if self._talk.cache.length > self._prompt + same:
            self._talk.cache.rollback(self._prompt + same)
        new = np.asarray(answer[same:], np.int64)
        self._logits = self.session.extend(new, self._talk, Clock())[-1]
        self._fed = [*self._fed[:same], *new.tolist()]
        return self._logits
