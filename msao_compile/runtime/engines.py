"""Which engine runs each module here, opened once however many models share it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from msao_compile.errors import DeploymentError
from msao_compile.manifest.schema import Backend, Deployment, Dialect, Engine, Graph, Model, Status
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends import base
from msao_compile.runtime.host import FUNCTIONS
from msao_compile.runtime.host.rope import ROPES, VARIANTS
from msao_compile.runtime.loader import locate
from msao_compile.runtime.session import ModelSession, Request

logger = logging.getLogger(__name__)
LADDER: tuple[Status, ...] = ("deferred", "built", "ran", "parity", "qualified")
"""How far an engine was proven, each step only after the ones before it."""
LEAST: dict[Backend, Status] = {"ort": "parity", "trt": "built", "trt_rtx": "built"}
"""What is asked of an engine where nothing else is said: one for a GPU is often built where there is none."""


class Engines:
    """Opens modules of a deployment with the backends that are installed."""

    def __init__(
        self,
        folder: Path,
        deployment: Deployment,
        verify: bool,
        demand: Status | None = None,
        dialect: Dialect | None = None,
        target: str | None = None,
    ) -> None:
        self.folder, self.deployment, self.verify = folder, deployment, verify
        self.demand, self.dialect, self.target = demand, dialect, target
        self._open: dict[str, base.Engine] = {}
        self._decoders: dict[str, base.DecoderEngine] = {}

    def session(self, model: Model) -> ModelSession:
        """Open every module of a model and warm it up as the manifest asks.

        Raises:
            DeploymentError: a module has no engine that runs here, or the model needs what this runtime does not know.
        """
        for reference in model.files:
            locate(self.folder, reference, self.verify)
        engines = {
            component: self._engine(module) for component, module in model.components.items() if component != "decoder"
        }
        decoder = self._decoder(model.components["decoder"]) if model.decoder is not None else None
        _check_known(model)
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
        return next(graph for graph in graphs if (graph.dialect, graph.precision) == (engine.dialect, engine.precision))

    def _choose(self, module: str) -> Engine:
        """The first engine that was proven as far as is demanded; fused before others, fp32 before less."""
        all_engines = [engine for engine in self.deployment.engines if engine.module == module]
        known = [
            engine
            for engine in all_engines
            if engine.backend in base.BACKENDS
            and LADDER.index(engine.status) >= LADDER.index(self.demand or LEAST[engine.backend])
            and self.dialect in (None, engine.dialect)
            and self.target in (None, engine.target)
        ]
        if not known:
            states = ", ".join(f"{engine.target}: {engine.backend} {engine.status}" for engine in all_engines) or "none"
            component = self.deployment.module(module).component
            raise DeploymentError(
                f"{component}: no engine here that passed parity (found {states}); add a target with "
                'device = "local-cpu" to the recipe and build again'
            )
        return sorted(known, key=lambda engine: (engine.dialect != "fused", engine.precision != "fp32"))[0]


def _check_known(model: Model) -> None:
    """Refuse a model whose host-side code is not in this runtime, or whose facts do not fit it."""
    where = f"models.{model.name}"
    for encoder in model.encoders:
        for call in encoder.host:
            if call.function not in FUNCTIONS:
                raise DeploymentError(
                    f"{where}.encoders: {encoder.component} needs the function {call.function!r}, which this runtime "
                    "does not have; install a matching msao-compile"
                )
    if model.decoder is None:
        return
    if "embed_tokens" not in model.components:
        raise DeploymentError(f"{where}.components has no embed_tokens; build the deployment again")
    rule, facts = model.decoder.position, model.decoder.facts
    if rule in (None, "rope"):
        return
    if rule not in ROPES:
        known = ", ".join(["rope", *ROPES])
        raise DeploymentError(f"{where}.decoder.position: {rule!r} is not one this runtime knows ({known})")
    needed = set.intersection(*(set(paths) for variant, paths in VARIANTS.values() if variant == rule))
    for name in sorted(needed):
        sound = name in facts and (not name.endswith("_size") or (type(facts[name]) is int and facts[name] > 0))
        if not sound:
            raise DeploymentError(
                f"{where}.decoder.facts.{name} is {facts.get(name, 'missing')} where positions of {rule} need it; "
                "build the deployment again"
            )
