"""Stored inputs and expected outputs of each module: its fp32 graph through ONNX Runtime's CPU, here."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.errors import DeploymentError, InputError, StageError
from msao_compile.manifest.schema import Deployment, Engine, Graph, Model, Module, ShapeProfile
from msao_compile.runtime.backends.base import EngineFile, open_decoder, open_engine
from msao_compile.runtime.loader import locate
from msao_compile.stages.kit import contract
from msao_compile.stages.kit.seeds import Arrays, Facts, decoder_steps, seeded, shapes_of

STEPS = 5
"""Runs of a decoder after its prefill."""
WHICH = ("opt", "min")


@dataclass(frozen=True)
class Stored:
    """One case as a file of the kit; `steps` is 0 for a module without state."""

    name: str
    steps: int
    content: bytes


@dataclass(frozen=True)
class Checks:
    """The cases of a module and what made them, or why it has none."""

    cases: tuple[Stored, ...]
    reference: str | None
    left_out: str | None


def checks(folder: Path, deployment: Deployment, engine: Engine) -> Checks:
    """What an engine is held against on its device.

    Raises:
        DeploymentError: a file is missing or damaged. MissingTool: ONNX Runtime is not installed.
    """
    module, order = deployment.module(engine.module), engine.order
    graph = _reference(module)
    if graph is None or order is None:
        return Checks((), None, "the deployment has no fp32 graph of it for ONNX Runtime to say what is right")
    for reference in (graph.file, *graph.data):
        locate(folder, reference)
    model = next(contract.owners(deployment, module), None)
    profiles = [profile for profile in order.profiles if profile.name != "decode"]
    try:
        made = _Made(folder, deployment, module, graph, model)
        cases = [made.case(profile, which) for profile in profiles for which in WHICH]
    except (StageError, InputError, DeploymentError) as error:
        return Checks((), None, " ".join(str(error).split()))
    known: dict[bytes, Stored] = {case.content: case for case in reversed(cases)}  # min may be opt
    return Checks(tuple(reversed(known.values())), f"{graph.file.path} (fp32, {graph.dialect}) by ONNX Runtime", None)


def _reference(module: Module) -> Graph | None:
    """The fp32 graph that this machine runs: portable, because its inputs are those of the engine's."""
    every = [graph for graph in module.graphs if graph.precision == "fp32" and graph.dialect != "scatter"]
    return min(every, key=lambda graph: graph.dialect != "portable", default=None)


class _Made:
    """Makes the cases of one module."""

    def __init__(self, folder: Path, deployment: Deployment, module: Module, graph: Graph, model: Model | None) -> None:
        self.folder, self.deployment, self.module, self.graph, self.model = folder, deployment, module, graph, model
        opened = open_decoder if graph.states else open_engine
        self.engine: Any = opened("ort", self._file(graph))
        decoder = None if model is None else model.decoder
        self.capacity = 0 if decoder is None else decoder.kv_capacity
        vocabulary = 1 if decoder is None else decoder.vocab_size
        self.facts = Facts(vocabulary, {} if model is None else model.placeholders)

    def case(self, profile: ShapeProfile, which: str) -> Stored:
        """One case in the shapes of a profile."""
        name = f"{profile.name}-{which}"
        arrays = seeded(
            self.graph, shapes_of(self.graph, profile, which), self.facts, f"{self.module.component}.{name}"
        )
        if self.graph.states:
            return self._decoded(name, arrays)
        found = self.engine.run(arrays)
        self._check(found)
        return Stored(name, 0, packed({**_named("in.", arrays), **_named("out.", found)}))

    def _decoded(self, name: str, first: Arrays) -> Stored:
        batch = first["inputs_embeds"].shape[0]
        embeds = [first["inputs_embeds"], *(self._embedded(name, number, batch) for number in range(1, STEPS + 1))]
        embeds[0] = self._embedded(name, 0, batch, first["inputs_embeds"].shape[1])
        feeds = decoder_steps(self.graph, first, embeds, self.capacity)
        cache = self.engine.new_cache(self.capacity, batch)
        kept: Arrays = {}
        for number, feed in enumerate(feeds):
            logits = self.engine.step(feed, cache)
            self._check({"logits": logits})
            kept |= {**_named(f"{number}.in.", feed), f"{number}.out.logits": logits}
        return Stored(name, len(feeds), packed(kept))

    def _embedded(self, name: str, number: int, batch: int, count: int = 1) -> np.ndarray:
        """Embeddings as the decoder gets them: the model's own of seeded tokens, where it has a graph that makes them.

        Numbers of another spread than the model's would say little of what half precision does to it.
        """
        key = f"{self.module.component}.{name}.{number}"
        width = next(spec.shape[-1] for spec in self.graph.inputs if spec.name == "inputs_embeds")
        embedder = self._embedder()
        if embedder is None:
            spec = [entry for entry in self.graph.inputs if entry.name == "inputs_embeds"]
            lone = self.graph.model_copy(update={"inputs": tuple(spec), "states": ()})
            return seeded(lone, {"inputs_embeds": (batch, count, int(width))}, self.facts, key)["inputs_embeds"]
        graph, engine = embedder
        shapes = {spec.name: _text_only(spec.shape, batch, count) for spec in graph.inputs}
        found: Arrays = engine.run(seeded(graph, shapes, self.facts, key))
        return found["inputs_embeds"].astype(np.float32)

    def _embedder(self) -> tuple[Graph, Any] | None:
        if self.model is None or "embed_tokens" not in self.model.components:
            return None
        graph = _reference(self.deployment.module(self.model.components["embed_tokens"]))
        if graph is None:
            return None
        if not hasattr(self, "_open"):
            self._open = open_engine("ort", self._file(graph))
        return graph, self._open

    def _file(self, graph: Graph) -> EngineFile:
        return EngineFile(self.folder / graph.file.path, graph.dialect, self.deployment.runtime, graph.states)

    def _check(self, found: Arrays) -> None:
        strange = next((name for name, value in found.items() if not np.isfinite(value).all()), None)
        if strange is not None:
            raise StageError(f"the fp32 graph's own {strange} is not finite for seeded inputs")


def _text_only(shape: tuple[int | str, ...], batch: int, count: int) -> tuple[int, ...]:
    """A shape of the embedder's for text without features."""
    known = {"batch_size": batch, "sequence_length": count, "total_sequence_length": count}
    return tuple(size if isinstance(size, int) else known.get(size, 0) for size in shape)


def _named(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}{name}": value for name, value in arrays.items()}


def packed(arrays: Arrays) -> bytes:
    """An `.npz` whose bytes depend on the arrays alone: zip entries that NumPy writes carry no time."""
    stream = io.BytesIO()
    np.savez(stream, **dict(sorted(arrays.items())))  # type: ignore[arg-type]
    return stream.getvalue()
