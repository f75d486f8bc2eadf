"""How one answer is drafted and verified, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msao_compile.manifest.offload import Speculation
from msao_compile.runtime.remote import Patience
from msao_compile.runtime.speculate.gates import Pace


class Alone(Protocol):
    """Whether a drafter may answer without the cloud, by how sure it was of each token."""

    @property
    def first(self) -> bool:
        """Whether the cloud is asked only when this is in doubt, rather than at once."""

    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether a whole answer stands."""

    def hopeless(self, confidences: Sequence[float]) -> bool:
        """Whether no answer that begins so can stand."""


@dataclass(frozen=True)
class Plan:
    """How one answer is drafted: what was fitted, what is known of time, and what is allowed.

    `rounds`: so many may be under way at once; 1 is stop-and-wait. `burst`: so many tokens the cloud adds where the
    drafter is unsure. `rest`: so many it decodes by itself, until it is asked again, where a draft was refused, and
    behind the prompt; there as many as it can, unless the drafter may answer alone. `unverified`: the drafter may
    finish alone where the cloud stays away. `alone` judges whether its whole answer stands without the cloud,
    unverified; never in `strict`. `stream`: the cloud decodes by itself, and drafts serve `alone` only. `goes_on`:
    whether drafting pays where so many drafts were kept of those judged.
    """

    settings: Speculation
    pace: Pace
    limit: int | None
    stops: frozenset[int]
    rounds: int = 4
    burst: int = 0
    rest: int = 0
    unverified: bool = False
    alone: Alone | None = None
    stream: bool = False
    goes_on: Callable[[int, int], bool] | None = None
    patience: Patience = field(default_factory=Patience)


@dataclass
class Account:
    """What drafting came to. Drafts behind a `rejected` one were made in vain, and do not tell how good drafts are.
    `alone` is 1 where the drafter's whole answer stood without the cloud. After `given_up` judged drafts, where that is
    not 0, the cloud wrote the rest by itself: too few were kept.
    """

    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    rounds: int = 0
    unverified: int = 0
    alone: int = 0
    given_up: int = 0
