"""A module's fp32 graph and its conversion side by side: each block of an answer can be taken from either."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from msao_compile.runtime.backends.base import Arrays, Engine


@dataclass
class Entered:
    """A graph of `observed_blocks`: as an engine it is the module itself, and `enter` feeds it in its middle."""

    engine: Engine
    blocks: Sequence[str]

    def __post_init__(self) -> None:
        own = {name: None for name in self.engine.inputs if not name.startswith("enters.")}
        self.inputs = {name: self.engine.inputs[name] for name in own}
        self.types = {name: self.engine.types[name] for name in own}

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """Every output, of the module and of its blocks."""
        return self.enter(feed, {})

    def enter(self, feed: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> Arrays:
        """The same where `values` (float32, by block) take the place of what leaves those blocks."""
        typed = {name: feed[name].astype(self.types[name], copy=False) for name in self.inputs}
        for block in self.blocks:
            nothing = np.zeros([1] * len(self.engine.inputs[f"enters.{block}"]), np.float32)
            typed[f"enters.{block}"] = values.get(block, nothing)
            typed[f"enters.{block}.given"] = np.array(block in values)
        return self.engine.run(typed)


@dataclass(frozen=True)
class Sides:
    """Both graphs of one module; `plain_outputs` is always what the fp32 graph gave for the same feed."""

    plain: Entered
    converted: Entered

    def alone(self, feed: Arrays, plain_outputs: Arrays) -> Arrays:
        """Each block of the conversion, and what follows the last, on what the fp32 graph has there."""
        exact = {block: plain_outputs[f"leaves.{block}"] for block in self.plain.blocks}
        return self.converted.enter(feed, exact)

    def with_island(self, feed: Arrays, plain_outputs: Arrays, island: Collection[str]) -> Arrays:
        """The conversion where these blocks stay fp32, as with `islands` in the recipe."""
        entered: Arrays = {}
        outputs, stays = plain_outputs, True
        for stays, group in groupby(self.plain.blocks, lambda block: block in island):
            run = list(group)
            if stays and entered:
                outputs = self.plain.enter(feed, entered)
            elif not stays:
                outputs = self.converted.enter(feed, entered)
            entered = {run[-1]: outputs[f"leaves.{run[-1]}"]}
        return self.converted.enter(feed, entered) if stays else outputs
