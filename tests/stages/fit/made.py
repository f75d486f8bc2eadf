"""Records as they would be if models had been asked: each says what it is told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.cost import Host
from msao_compile.runtime.link_state import LinkEstimate
from msao_compile.stages.fit.costs import Costs, Sides
from msao_compile.stages.fit.record import Level, Record, Reduced, Said
from msao_compile.stages.fit.samples import Sample

RIGHT = "yes"


def times(model: str, encode: float, prefill: float, decode: float, verify: tuple[float, float]) -> Primitives:
    """Times of a model's work: prepared in no time, everything else by how much of it there is."""
    return Primitives(
        model=model, prepare=Line(fixed_ms=0.0, each_ms=0.0), encode=Line(fixed_ms=0.0, each_ms=encode),
        prefill=Line(fixed_ms=0.0, each_ms=prefill), decode=Line(fixed_ms=0.0, each_ms=decode),
        verify=Line(fixed_ms=verify[0], each_ms=verify[1]),
    )  # fmt: skip


SIDES = Sides(
    Host(times("edge", 2.0, 0.1, 1.0, (1.0, 0.1))), Host(times("cloud", 10.0, 0.5, 4.0, (4.0, 1.0))),
    LinkEstimate(up_kbps=8000.0, rtt_ms=20.0),
)  # fmt: skip
"""A link on which a kilobyte takes a millisecond."""


def said(text: str, sure: float = 0.9, tokens: int = 1) -> Said:
    """An answer of so many tokens and its end, each equally sure."""
    return Said(text, tuple(range(tokens)), (sure,) * (tokens + 1), True)


def record(
    words: Sequence[int] = (),
    edge: str = RIGHT,
    sure: float = 0.9,
    text: str = RIGHT,
    picture: int | None = 100,
    reduced: Mapping[Level, Reduced] | None = None,
) -> Record:
    """A question of which the cloud says "yes", and so does the edge unless told otherwise.

    Args:
        words: of the prompt. edge: what the edge says. sure: how sure it is of each token.
        text: what both say without the picture. picture: its bytes. reduced: what the cloud says of less of it.
    """
    pictures = () if picture is None else (b"x" * picture,)
    sample = Sample("?", pictures, RIGHT, str(words))
    seen, blind = said(edge, sure), said(text, sure)
    return Record(
        sample, frozenset(words), 20, 20, 10, seen, blind if pictures else seen, said(RIGHT), blind if pictures else
        said(RIGHT), (sure, sure), (edge == RIGHT, True), reduced or {}, {"classical": (0.0, 0.5)} if pictures else {},
        "classical",
    )  # fmt: skip


def costs(records: Sequence[Record]) -> Costs:
    """On the sides above."""
    return Costs(records, SIDES)


def numbers(count: int, value: float = 1.0) -> np.ndarray:
    """So many times the same chance."""
    return np.full(count, value)
