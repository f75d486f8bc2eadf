"""Which engine runs each module here, opened once however many models share it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from msao_compile.errors import DeploymentError
from msao_compile.manifest.schema import Deployment, Dialect, Engine, Graph, Model, Status
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends import base
from msao_compile.runtime.loader import locate
from msao_compile.runtime.session import ModelSession, Request

logger = logging.getLogger(__name__)
TRUSTED: tuple[Status, ...] = ("parity", "qualified")


class Engines:
    """Opens modules of a deployment with the backends that are installed."""

    def __init__(
        self,
        folder: Path,
        deployment: Deployment,
        verify: bool,
        demand: tuple[Status, ...] = TRUSTED,
        dialect: Dialect | None = None,
    ) -> None:
        self.folder, self.deployment, self.verify = folder, deployment, verify
        self.demand, self.dialect = demand, dialect
        self._open: dict[str, base.Engine] = {}
        self._decoders: dict[str, base.DecoderEngine] = {}

    def session(self, model: Model) -> ModelSession:
        """Open every module of a model and warm it up as the manifest asks.

        Raises:
            DeploymentError: a module has no engine that runs here.
        """
        for reference in model.files:
            locate(self.folder, reference, self.verify)
        engines = {
            component: self._engine(module) for component, module in model.components.items() if component != "decoder"
        }
        decoder = self._decoder(model.components["decoder"]) if model.decoder is not None else None
        session = ModelSession(model, self.folder, engines, decoder)
        facts = model.decoder
        if facts is None or facts.tokens != "input_ids":
            return session
        if self.deployment.runtime.warm_up:
            session.warm_up()
        prompt = min(8, facts.kv_capacity - 1)
        for _ in range(self.deployment.runtime.warm_up if prompt else 0):
            _, talk = session.prefill(Request(self._plain_tokens(model, prompt), {}), {}, Clock())
            session.extend(self._plain_tokens(model, 1), talk, Clock())
        return session

    @staticmethod
    def _plain_tokens(model: Model, count: int) -> np.ndarray:
        """Tokens that stand for no picture, clip or sound."""
        taken = set(model.placeholders.values())
        free = next(token for token in range(len(taken) + 1) if token not in taken)
        return np.full(count, free, np.int64)

    def _engine(self, module: str) -> base.Engine:
        if module not in self._open:
            self._open[module] = base.open_engine(*self._file(module))
        return self._open[module]

    def _decoder(self, module: str) -> base.DecoderEngine:
        if module not in self._decoders:
            self._decoders[module] = base.open_decoder(*self._file(module))
        return self._decoders[module]

    def _file(self, module: str) -> tuple[str, base.EngineFile]:
        engine = self._choose(module)
        graph = self._graph(engine)
        for reference in (graph.file, *graph.data):
            locate(self.folder, reference, self.verify)
        path, settings = self.folder / graph.file.path, self.deployment.runtime
        return engine.backend, base.EngineFile(path, engine.dialect, settings, graph.states)

    def _graph(self, engine: Engine) -> Graph:
        graphs = self.deployment.module(engine.module).graphs
        return next(graph for graph in graphs if graph.dialect == engine.dialect)

    def _choose(self, module: str) -> Engine:
        """The first engine that passed parity and whose backend this runtime knows; fused before portable."""
        all_engines = [engine for engine in self.deployment.engines if engine.module == module]
        known = [
            engine
            for engine in all_engines
            if engine.backend in base.BACKENDS
            and engine.status in self.demand
            and self.dialect in (None, engine.dialect)
        ]
        if not known:
            states = ", ".join(f"{engine.target}: {engine.backend} {engine.status}" for engine in all_engines) or "none"
            component = self.deployment.module(module).component
            raise DeploymentError(
                f"{component}: no engine here that passed parity (found {states}); add a target with "
                'device = "local-cpu" to the recipe and build again'
            )
        return sorted(known, key=lambda engine: engine.dialect != "fused")[0]
