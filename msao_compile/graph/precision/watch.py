"""Modules that tell what goes in and comes out at every run, in the place of a session's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from msao_compile.errors import StageError
from msao_compile.manifest.schema import GROWS, StateSpec
from msao_compile.runtime.backends.base import Arrays, Engine, KVCache
from msao_compile.runtime.session import ModelSession

Tell = Callable[[Arrays, Arrays], None]
"""Called after each run with all that a graph was fed, state included, and every output."""


def watch(session: ModelSession, component: str, engine: Engine, states: tuple[StateSpec, ...], tell: Tell) -> None:
    """Let `engine` run a module of a session from now on; it may give more outputs than the session asks for."""
    if component == "decoder":
        session._decoder = ObservedDecoder(engine, states, tell)
    else:
        session.engines = {**session.engines, component: Observed(engine, tell)}


@dataclass
class Observed:
    """A stateless module that tells of every run."""

    engine: Engine
    tell: Tell

    @property
    def inputs(self) -> Mapping[str, tuple[int | str, ...]]:
        """Of the module itself."""
        return self.engine.inputs

    @property
    def types(self) -> Mapping[str, str]:
        """Of the module itself."""
        return self.engine.types

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """Every output, also those that nobody asks for."""
        outputs = self.engine.run(feed)
        self.tell(dict(feed), outputs)
        return outputs


@dataclass
class PlainCache:
    """State as arrays, passed through the graph at every step."""

    values: Arrays
    capacity: int
    length: int = 0

    def rollback(self, length: int) -> None:
        """Never asked of samples.

        Raises:
            StageError: always.
        """
        raise StageError(f"a decoder that is observed cannot go back to {length}")


class ObservedDecoder(Observed):
    """A decoder that tells of every step; slow, since its state is copied in and out."""

    def __init__(self, engine: Engine, states: tuple[StateSpec, ...], tell: Tell) -> None:
        super().__init__(engine, tell)
        self.states = states
        hidden = {state.name for state in states}
        self.shown = {name: shape for name, shape in engine.inputs.items() if name not in hidden | {"write_indices"}}
        if "write_indices" in engine.inputs:
            self.shown["attention_mask"] = (engine.inputs["attention_mask"][0], "total_sequence_length")

    @property
    def inputs(self) -> Mapping[str, tuple[int | str, ...]]:
        """What a session gives."""
        return self.shown

    def new_slab(self, capacity: int, rows: int) -> None:
        """None: what is observed goes alone."""

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """No positions yet."""
        values = {}
        for state in self.states:
            rows = capacity if state.update == "in_place" else 0
            shape = [rows if size == GROWS else batch if isinstance(size, str) else size for size in state.shape]
            values[state.name] = np.zeros(shape, np.dtype(state.dtype))
        return PlainCache(values, capacity)

    def step(self, feed: Mapping[str, np.ndarray], cache: KVCache) -> np.ndarray:
        """Logits of the fed positions, as every decoder gives them."""
        held = cast("PlainCache", cache)
        known = {**feed, **held.values}
        if "write_indices" in self.engine.inputs:
            mask = feed["attention_mask"]
            known["attention_mask"] = np.pad(mask, ((0, 0), (0, held.capacity - mask.shape[1])))
            known["write_indices"] = np.full(len(mask), held.length, np.int64)
        outputs = self.run(known)
        held.values = {state.name: outputs[state.output] for state in self.states}
        held.length += feed["inputs_embeds"].shape[1]
        return outputs["logits"]
