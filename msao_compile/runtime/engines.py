"""Which engine runs each module here, opened once however many models share it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from msao_compile.errors import DeploymentError, MissingTool
from msao_compile.manifest.schema import Backend, Deployment, Dialect, Engine, Graph, Model, Module, Status
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends import base
from msao_compile.runtime.host import FUNCTIONS
from msao_compile.runtime.host.rope import ROPES, VARIANTS
from msao_compile.runtime.ladder import LADDER
from msao_compile.runtime.loader import locate
from msao_compile.runtime.session import ModelSession, Request

logger = logging.getLogger(__name__)
LEAST: dict[Backend, Status] = {"ort": "parity", "trt": "built", "trt_rtx": "built"}
"""What is asked of an engine where nothing else is said: one for a GPU is often built where there is none."""


class Elsewhere:
    """A module that runs on another machine: what it takes is known here, and no more.

    A graph that writes its state in place is told of its past by its backend: that is no input of a request.
    """

    def __init__(self, module: Module) -> None:
        graph = next((graph for graph in module.graphs if graph.dialect == "portable"), module.graphs[0])
        self.component = module.component
        self.inputs = {spec.name: spec.shape for spec in graph.inputs}
        self.types = {spec.name: spec.dtype for spec in graph.inputs}

    def run(self, feed: Mapping[str, np.ndarray]) -> base.Arrays:
        """Raises DeploymentError: it is not here."""
        raise DeploymentError(f"{self.component} runs in the cloud on this route and is not loaded here")

    def step(self, feed: Mapping[str, np.ndarray], cache: base.KVCache) -> np.ndarray:
        """Raises as `run`."""
        raise DeploymentError(f"{self.component} runs in the cloud on this route and is not loaded here")

    def new_cache(self, capacity: int, batch: int = 1) -> base.KVCache:
        """Raises as `run`."""
        raise DeploymentError(f"{self.component} runs in the cloud on this route and is not loaded here")

    def new_slab(self, capacity: int, rows: int) -> None:
        """None: it is not here."""


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

    def shell(self, model: Model, components: Collection[str] = ()) -> ModelSession:
        """Some modules of a model whose others are elsewhere: tokens and pictures as it wants them, no answers.

        Raises:
            DeploymentError: a file is missing or damaged, or no engine of a component runs here.
        """
        for reference in model.files:
            locate(self.folder, reference, self.verify)
        modules = {name: self.deployment.module(module) for name, module in model.components.items()}
        away = {name: Elsewhere(module) for name, module in modules.items() if name not in components}
        opened = {name: self._engine(model.components[name]) for name in components if name != "decoder"}
        return ModelSession(model, self.folder, {**away, **opened}, away.get("decoder"))

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
        graph, settings = self._graph(engine), self.deployment.runtime
        if _is_ort_on_gpu(engine):
            settings = settings.model_copy(update={"provider": "cuda"})
        needed = (graph.file, *graph.data) if engine.file is None else (engine.file,)
        paths = [locate(self.folder, reference, self.verify) for reference in needed]
        if LADDER.index(engine.status) < LADDER.index("parity"):
            logger.warning(
                "%s for %s is only %s: %s; `msao-compile kit %s --target %s` makes what proves it on the device",
                self.deployment.module(module).component, engine.target, engine.status, engine.reason or "not compared",
                self.folder, engine.target,
            )  # fmt: skip
        return engine.backend, base.EngineFile(paths[0], engine.dialect, settings, graph.states)

    def _graph(self, engine: Engine) -> Graph:
        graphs = self.deployment.module(engine.module).graphs
        return next(graph for graph in graphs if (graph.dialect, graph.precision) == (engine.dialect, engine.precision))

    def _choose(self, module: str) -> Engine:
        """The first engine that was proven as far as is demanded; fused before others, fp32 before less."""
        all_engines = [
            engine
            for engine in self.deployment.engines
            if engine.module == module
            and self.dialect in (None, engine.dialect)
            and self.target in (None, engine.target)
        ]
        proven = [engine for engine in all_engines if self._is_proven(engine)]
        faults = {engine.target: self._fault(engine) for engine in proven}
        known = [engine for engine in proven if faults[engine.target] is None]
        if not known and proven:
            here = "; ".join(f"{target}: {why}" for target, why in faults.items())
            raise MissingTool(
                f"{self.deployment.module(module).component}: none of its engines runs here ({here}); run it where one "
                'does, or add a target with device = "local-cpu" to the recipe and build again'
            )
        if not known:
            raise DeploymentError(self._none(module, all_engines))
        order = ("trt", "trt_rtx", "ort")
        return min(
            known,
            key=lambda engine: (order.index(engine.backend), engine.dialect != "fused", engine.precision != "fp32"),
        )

    def _is_proven(self, engine: Engine) -> bool:
        least = self.demand or ("built" if _is_ort_on_gpu(engine) else LEAST[engine.backend])
        return engine.status != "deferred" and LADDER.index(engine.status) >= LADDER.index(least)

    def _fault(self, engine: Engine) -> str | None:
        """Why an engine does not run here; one that a target names is opened, to say so itself."""
        if self.target is not None:
            return None
        capabilities = () if engine.order is None else engine.order.compute_capabilities
        return base.fault(engine.backend, capabilities, _is_ort_on_gpu(engine))

    def _none(self, module: str, found: list[Engine]) -> str:
        states = ", ".join(f"{engine.target}: {engine.backend} {engine.status}" for engine in found) or "none"
        targets = " or ".join(dict.fromkeys(engine.target for engine in found)) or "TARGET"
        return (
            f"{self.deployment.module(module).component}: no engine here was proven as far as "
            f"{self.demand or 'parity, or built for a GPU'} (found {states}); add a target with device = "
            f'"local-cpu" to the recipe and build again, or prove one on its device with '
            f"`msao-compile kit {self.folder} --target {targets}`"
        )


def _is_ort_on_gpu(engine: Engine) -> bool:
    return engine.backend == "ort" and engine.compatibility.platform_kind != "cpu"


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
