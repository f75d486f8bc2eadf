"""What a bisection found: which blocks of a module lose how much, and which to keep in fp32."""

from __future__ import annotations

from msao_compile.manifest.engine import Dialect, Precision
from msao_compile.manifest.frozen import Frozen

BEFORE = "(before)"
"""Stands for all that comes before the first block; no recipe can name it."""


class BlockError(Frozen):
    """What leaves a block: `min_cosine` and `max_abs` when all of the module is converted.

    `own` is 1 - cosine where the block alone is, `effect` how much nearer the output comes when this block stays fp32
    as well as all before it; None where that was not tried.
    """

    name: str
    min_cosine: float
    max_abs: float
    own: float
    effect: float | None = None


class Bisected(Frozen):
    """One module in one dialect and precision, and the targets that run it so.

    `first` is the first block below `bound`, the precision's min_cosine, and `worst` the one with the largest error of
    its own. `outputs` are what the module gives: their `own` is that of what follows the last block.
    """

    model: str
    component: str
    targets: tuple[str, ...]
    dialect: Dialect
    precision: Precision
    bound: float | None
    blocks: tuple[BlockError, ...]
    outputs: tuple[BlockError, ...]
    first: str | None
    worst: str | None
    island: tuple[str, ...] = ()
    """Blocks to keep in fp32; empty where the output is within the bound, or no blocks bring it there."""
    island_cosine: float | None = None
    """The smallest cosine of the output with that island, on the same requests."""
    remark: str

    @property
    def cosine(self) -> float:
        """The smallest of the outputs."""
        return min(one.min_cosine for one in self.outputs)


class Findings(Frozen):
    """Every module that could be compared, and why others could not, by target, model and component."""

    name: str
    asked: str
    modules: tuple[Bisected, ...]
    left_out: dict[str, str]

    @property
    def islands(self) -> dict[str, tuple[str, ...]]:
        """What a recipe's `[islands]` may take over, by component."""
        found: dict[str, tuple[str, ...]] = {}
        for entry in self.modules:
            if entry.island:
                found[entry.component] = tuple(dict.fromkeys((*found.get(entry.component, ()), *entry.island)))
        return found
