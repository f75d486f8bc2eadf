"""Many answers on one decoder: each session's state is a row, and one step takes new tokens of several rows.

Where the graph takes a mask over all positions and is told where to write (dialect `scatter`), rows of different
lengths go through side by side: all of them write at the same place, beyond what any row between the first and the
last of them holds, and the mask of each row leaves out what is not its own. Position ids tell the graph how far each
answer is, so holes change nothing; a row is moved to its front when its buffer is full. Whether a decoder really
computes the same so is tried when the rows are made. Otherwise each row has a cache of its own, and steps run one
after another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from msao_compile.errors import StageError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, KVCache, Slab
from msao_compile.runtime.feed import feed
from msao_compile.runtime.session import TYPES, Conversation, ModelSession, Request

logger = logging.getLogger(__name__)
SHARED = frozenset(("inputs_embeds", "attention_mask", "position_ids", "logits_positions", "input_ids"))
"""What rows side by side may differ in; a decoder that takes more is run one row at a time."""
TOLERANCE = 1e-3
"""Logits of one token, side by side and alone, differ by no more than this share of their spread."""


@dataclass
class Row:
    """One session's state: `length` positions are held, counted as the answer counts them."""

    length: int = 0
    talk: Conversation | None = None
    index: int = -1
    own: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def frontier(self) -> int:
        """The first place of the buffer behind everything this row holds."""
        held = np.flatnonzero(self.own)
        return int(held[-1]) + 1 if held.size else 0


class Rows(Protocol):
    """Where sessions have their state."""

    side_by_side: bool

    def open(self) -> Row | None:
        """An empty row; None where all are taken."""

    def close(self, row: Row) -> None:
        """Give a row back."""

    def prefill(self, row: Row, request: Request, encoded: Arrays, clock: Clock) -> np.ndarray:
        """Run a prompt into an empty row; logits [V] after it."""

    def prefill_embeds(
        self, row: Row, known: Arrays, positions: tuple[np.ndarray, tuple[float, ...]], clock: Clock
    ) -> np.ndarray:
        """As `prefill`, from merged embeddings."""

    def step(self, work: Sequence[tuple[Row, np.ndarray]]) -> list[np.ndarray]:
        """Append tokens [n] to each row; logits [n, V] of each."""

    def rollback(self, row: Row, length: int) -> None:
        """Forget what a row holds beyond `length` positions."""


class Apart:
    """Each row with a cache of its own."""

    side_by_side = False

    def __init__(self, session: ModelSession, rows: int) -> None:
        self.session, self._free = session, rows

    def open(self) -> Row | None:
        """An empty row; None where all are taken."""
        if not self._free:
            return None
        self._free -= 1
        return Row()

    def close(self, row: Row) -> None:
        """Give a row back."""
        row.talk = None
        self._free += 1

    def prefill(self, row: Row, request: Request, encoded: Arrays, clock: Clock) -> np.ndarray:
        """Run a prompt into an empty row; logits [V] after it."""
        logits, row.talk = self.session.prefill(request, encoded, clock)
        row.length = row.talk.cache.length
        return np.asarray(logits[-1])

    def prefill_embeds(
        self, row: Row, known: Arrays, positions: tuple[np.ndarray, tuple[float, ...]], clock: Clock
    ) -> np.ndarray:
        """As `prefill`, from merged embeddings."""
        logits, row.talk = self.session.prefill_embeds(known, positions, clock)
        row.length = row.talk.cache.length
        return np.asarray(logits[-1])

    def step(self, work: Sequence[tuple[Row, np.ndarray]]) -> list[np.ndarray]:
        """Append tokens [n] to each row; logits [n, V] of each."""
        return [self._extended(row, ids) for row, ids in work]

    def _extended(self, row: Row, ids: np.ndarray) -> np.ndarray:
        assert row.talk is not None  # prefilled
        logits = self.session.extend(ids, row.talk, Clock())
        row.length = row.talk.cache.length
        return logits

    def rollback(self, row: Row, length: int) -> None:
        """Forget what a row holds beyond `length` positions."""
        assert row.talk is not None  # prefilled
        row.talk.cache.rollback(length)
        row.length = length


class SideBySide:
    """Rows of one slab, run together whatever their lengths."""

    side_by_side = True

    def __init__(self, session: ModelSession, slab: Slab) -> None:
        self.session, self.slab = session, slab
        self._free = list(range(slab.rows))
        self._held: dict[int, Row] = {}

    def open(self) -> Row | None:
        """The lowest empty row, so that those in use lie close together; None where all are taken."""
        if not self._free:
            return None
        index = min(self._free)
        self._free.remove(index)
        self._held[index] = Row(index=index, own=np.zeros(self.slab.capacity, bool))
        return self._held[index]

    def close(self, row: Row) -> None:
        """Give a row back."""
        row.own[:] = False
        del self._held[row.index]
        self._free.append(row.index)

    def _cache(self, row: Row) -> KVCache:
        self.slab.clear(row.index)
        cache = self.slab.view(row.index, row.index + 1)
        cache.length = 0
        return cache

    def prefill(self, row: Row, request: Request, encoded: Arrays, clock: Clock) -> np.ndarray:
        """Run a prompt into an empty row; logits [V] after it."""
        logits, row.talk = self.session.prefill(request, encoded, clock, cache=self._cache(row))
        return self._began(row, logits)

    def prefill_embeds(
        self, row: Row, known: Arrays, positions: tuple[np.ndarray, tuple[float, ...]], clock: Clock
    ) -> np.ndarray:
        """As `prefill`, from merged embeddings."""
        logits, row.talk = self.session.prefill_embeds(known, positions, clock, cache=self._cache(row))
        return self._began(row, logits)

    @staticmethod
    def _began(row: Row, logits: np.ndarray) -> np.ndarray:
        assert row.talk is not None  # set by the caller
        row.length = row.talk.cache.length
        row.own[: row.length] = True
        return np.asarray(logits[-1])

    def step(self, work: Sequence[tuple[Row, np.ndarray]]) -> list[np.ndarray]:
        """Append tokens [n] to each row; logits [n, V] of each.

        Rows of very different numbers of tokens, and those whose buffer is nearly full, go in steps of their own.
        """
        found: dict[int, np.ndarray] = {}
        for group in self._groups(work):
            for span in self._spans(group):
                found |= self._together(span)
        return [found[row.index] for row, _ in work]

    def _groups(self, work: Sequence[tuple[Row, np.ndarray]]) -> list[list[tuple[Row, np.ndarray]]]:
        """Work that fits one step: the longest first, each with those that pad to less than twice their own."""
        groups: list[list[tuple[Row, np.ndarray]]] = []
        for row, ids in sorted(work, key=lambda item: -len(item[1])):
            width = len(groups[-1][0][1]) if groups else 0
            fits = width and width <= max(2 * len(ids), 8) and row.length + width <= self.slab.capacity
            if fits:
                groups[-1].append((row, ids))
            else:
                groups.append([(row, ids)])
        return groups

    def _spans(self, group: Sequence[tuple[Row, np.ndarray]]) -> list[list[tuple[Row, np.ndarray]]]:
        """A group cut where a row lies between that has no place left: whatever lies between is written to as well."""
        width, capacity = max(len(ids) for _, ids in group), self.slab.capacity
        taken = {row.index for row, _ in group}
        full = {index for index, row in self._held.items() if index not in taken and row.length + width > capacity}
        spans: list[list[tuple[Row, np.ndarray]]] = []
        for row, ids in sorted(group, key=lambda item: item[0].index):
            if spans and not full & set(range(spans[-1][-1][0].index, row.index)):
                spans[-1].append((row, ids))
            else:
                spans.append([(row, ids)])
        return spans

    def _together(self, group: Sequence[tuple[Row, np.ndarray]]) -> dict[int, np.ndarray]:
        width = max(len(ids) for _, ids in group)
        first, end = min(row.index for row, _ in group), max(row.index for row, _ in group) + 1
        place = self._place(first, end, width)
        count, total = end - first, place + width
        ids_BS = np.full((count, width), _plain(self.session), np.int64)
        mask_BT = np.zeros((count, total), np.int64)
        mask_BT[:, place:] = 1  # a row that has nothing to do looks at its own padding, so that no sum is empty
        ahead = [np.zeros(1)] * count
        for row, ids in group:
            at = row.index - first
            ids_BS[at, : len(ids)] = ids
            mask_BT[at, :place] = row.own[:place]
            assert row.talk is not None  # prefilled
            ahead[at] = np.asarray(row.talk.offset, float) + row.length
        logits = self._run(ids_BS, mask_BT, ahead, (first, end, place))
        for row, ids in group:
            row.own[place : place + len(ids)] = True
            row.length += len(ids)
        return {row.index: logits[row.index - first, : len(ids)] for row, ids in group}

    def _place(self, first: int, end: int, width: int) -> int:
        """Where rows from `first` up to `end` are written to; those that reach too far are moved to their front."""
        rows = [self._held[index] for index in range(first, end) if index in self._held]
        for row in rows:
            if row.frontier + width > self.slab.capacity:
                kept = np.flatnonzero(row.own)
                self.slab.gather(row.index, kept)
                row.own[:] = False
                row.own[: len(kept)] = True
        return max(row.frontier for row in rows)

    def _run(
        self, ids_BS: np.ndarray, mask_BT: np.ndarray, ahead: Sequence[np.ndarray], place: tuple[int, int, int]
    ) -> np.ndarray:
        session, decoder = self.session, self.session.decoder
        count, width = ids_BS.shape
        axes = max(len(one) for one in ahead)
        starts_AB = np.stack([np.resize(one, axes) for one in ahead], axis=1)
        positions = starts_AB[..., None] + np.arange(width)
        if session.facts.position in (None, "rope"):
            positions = positions[0]
        cache = self.slab.view(place[0], place[1])
        cache.length = place[2]
        known = {
            **session.embed(ids_BS, {}, Clock()),
            "attention_mask": mask_BT,
            "position_ids": positions,
            "logits_positions": np.arange(width, dtype=np.int64),
            "input_ids": ids_BS,
        }
        fed = feed(decoder, known, (count, width))
        return decoder.step({**fed, "inputs_embeds": known["inputs_embeds"]}, cache)

    def rollback(self, row: Row, length: int) -> None:
        """Forget what a row holds beyond `length` positions."""
        assert row.talk is not None  # prefilled
        held = np.flatnonzero(row.own)
        row.own[held[length:]] = False
        row.length = length


def rows_of(session: ModelSession, rows: int) -> Rows:
    """Rows side by side where this decoder has them and computes the same so, else apart."""
    decoder, capacity = session.decoder, session.facts.kv_capacity
    features = {f"{encoder.modality}_features" for encoder in session.model.encoders if encoder.placeholder is not None}
    taken = {*decoder.inputs, *session.engines["embed_tokens"].inputs} - SHARED - features - {*TYPES}
    strange = [name for name in taken if not name.startswith("past_key_values.")]
    suits = rows > 1 and not strange and "position_ids" in decoder.inputs
    slab = decoder.new_slab(capacity, rows) if suits else None
    if slab is None:
        return Apart(session, rows)
    together = SideBySide(session, slab)
    worst = _difference(together, session)
    if worst > TOLERANCE:
        logger.warning("model %s: side by side its logits differ by %.2g of their spread; one row at a time it is",
                       session.model.name, worst)  # fmt: skip
        return Apart(session, rows)
    return together


def _difference(rows: SideBySide, session: ModelSession) -> float:
    """How far logits of rows of different lengths, with holes, are from those of the same tokens alone."""
    plain, apart = _plain(session), Apart(session, 2)
    prompts = [np.full(3, plain, np.int64), np.full(6, plain, np.int64)]
    worst, pairs = 0.0, []
    for prompt in prompts:
        here, alone = rows.open(), apart.open()
        if here is None or alone is None:
            raise StageError("rows are to be tried before any session has one")
        rows.prefill(here, Request(prompt, {}), {}, Clock())
        apart.prefill(alone, Request(prompt, {}), {}, Clock())
        pairs.append((here, alone))
    for count in (2, 3):
        ids = np.full(count, plain, np.int64)
        found = rows.step([(here, ids) for here, _ in pairs])
        wanted = apart.step([(alone, ids) for _, alone in pairs])
        for one, other in zip(found, wanted, strict=True):
            worst = max(worst, float(np.abs(one - other).max() / max(np.ptp(other), 1e-6)))
        for here, alone in pairs[:1]:  # a hole in one of them
            rows.rollback(here, here.length - 1)
            apart.rollback(alone, alone.length - 1)
    for here, _ in pairs:
        rows.close(here)
    return worst


def _plain(session: ModelSession) -> int:
    """A token that stands for no picture, clip or sound."""
    taken = set(session.model.placeholders.values())
    return next(token for token in range(len(taken) + 1) if token not in taken)
