"""What the conversion of one module loses, run by run: as a whole, block by block alone, and with islands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from msao_compile.graph.precision.sides import Sides
from msao_compile.manifest.bisection import BEFORE, BlockError
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.compare import distance

Island = tuple[str, ...]
TRIES = 8
"""Sizes of islands that are tried in each order of blocks."""


@dataclass
class Losses:
    """The smallest cosine and the largest difference of arrays over all runs, by name; rows lie along the last axis."""

    min_cosine: dict[str, float] = field(default_factory=dict)
    max_abs: dict[str, float] = field(default_factory=dict)

    def add(self, ours: Mapping[str, np.ndarray], plain: Mapping[str, np.ndarray], names: Iterable[str]) -> None:
        """One run of both graphs."""
        for name in names:
            one, other = (side[name].reshape(-1, side[name].shape[-1]) for side in (ours, plain))
            if one.size:
                found = distance([(one, other)])
                self.min_cosine[name] = min(self.min_cosine.get(name, 1.0), found.min_cosine)
                self.max_abs[name] = max(self.max_abs.get(name, 0.0), found.max_abs)


@dataclass
class Trial:
    """One conversion of a module beside its fp32 graph; `outputs` are compared, state is not."""

    sides: Sides
    outputs: Sequence[str]
    whole: Losses = field(default_factory=Losses)
    alone: Losses = field(default_factory=Losses)
    islands: dict[Island, Losses] = field(default_factory=dict)
    asked: tuple[Island, ...] | None = None
    """Islands to try in the next runs; None for the conversion as it is."""

    @property
    def places(self) -> Sequence[str]:
        """Blocks in the order of their use, and before them what is not in any."""
        return self.sides.plain.blocks

    @property
    def blocks(self) -> tuple[str, ...]:
        """Those that can stay in fp32."""
        return tuple(block for block in self.places if block != BEFORE)

    def add(self, feed: Arrays, plain: Arrays) -> None:
        """One run of the fp32 graph: the same feed through the conversion."""
        if self.asked is None:
            names = (*(f"leaves.{block}" for block in self.places), *self.outputs)
            self.whole.add(self.sides.converted.run(feed), plain, names)
            self.alone.add(self.sides.alone(feed, plain), plain, names)
        for island in self.asked or ():
            losses = self.islands.setdefault(island, Losses())
            losses.add(self.sides.with_island(feed, plain, island), plain, self.outputs)

    @property
    def cosine(self) -> float:
        """The smallest of the outputs; 1 where nothing was run."""
        return min((self.whole.min_cosine[name] for name in self.outputs if name in self.whole.min_cosine), default=1.0)

    def cosine_with(self, island: Island) -> float:
        """The same with an island that was tried."""
        return min(self.islands[island].min_cosine.values())

    def prefixes(self) -> tuple[Island, ...]:
        """The first block, the first two, and so on."""
        return tuple(self.blocks[: count + 1] for count in range(len(self.blocks)))

    def effects(self) -> dict[str, float]:
        """How much nearer the output came with each block, of the prefixes that were tried."""
        tried = [self.cosine, *(self.cosine_with(prefix) for prefix in self.prefixes())]
        return {block: after - before for block, before, after in zip(self.blocks, tried, tried[1:], strict=False)}

    def smaller(self, bound: float) -> tuple[Island, ...]:
        """Islands of fewer blocks than the first prefix that keeps the bound: those with the largest effects, and those
        with the largest errors of their own.
        """
        enough = next((prefix for prefix in self.prefixes() if self.cosine_with(prefix) >= bound), ())
        effects, own = self.effects(), {block: 1.0 - self.alone.min_cosine[f"leaves.{block}"] for block in self.blocks}
        found = []
        for ranks in (effects, own):
            order = sorted(self.blocks, key=lambda block: ranks[block], reverse=True)
            for count in range(1, min(len(enough), TRIES + 1)):
                chosen = tuple(block for block in self.blocks if block in order[:count])
                found.append(chosen)
        return tuple(dict.fromkeys(island for island in found if island not in self.islands))

    def best(self, bound: float) -> Island:
        """Of the islands that were tried and keep the bound the smallest, then the nearest to fp32; none else."""
        keeping = [island for island in self.islands if self.cosine_with(island) >= bound]
        return min(keeping, key=lambda island: (len(island), -self.cosine_with(island)), default=())

    def errors(self) -> tuple[tuple[BlockError, ...], tuple[BlockError, ...]]:
        """What was found of each block and of each output."""
        effects = self.effects() if self.islands else {}

        def error(name: str, output: str) -> BlockError:
            return BlockError(
                name=name, min_cosine=self.whole.min_cosine[output], max_abs=self.whole.max_abs[output],
                own=1.0 - self.alone.min_cosine[output], effect=effects.get(name),
            )  # fmt: skip

        blocks = tuple(error(block, f"leaves.{block}") for block in self.places)
        return blocks, tuple(error(name, name) for name in self.outputs if name in self.whole.min_cosine)
