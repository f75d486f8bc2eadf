"""In which dialect and precisions a target runs a model, and what to call it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from msao_compile.manifest.engine import Compatibility, Dialect, Engine, Precision
from msao_compile.manifest.schema import Deployment, Model

DESCENDING: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
"""From the precision that is held to the tightest bounds to the one with the widest."""

NOT_ON_CPUS: tuple[Precision, ...] = ("bf16",)
"""Precisions in which ONNX Runtime's CPU kernels multiply nothing."""
RANGED: tuple[Precision, ...] = ("int8", "fp8")
"""Precisions of activations as well, which need to know how large those get."""
HERE = Compatibility(target_id="local-cpu", platform_kind="cpu")


@dataclass(frozen=True)
class Kinds:
    """The dialect of a model's graphs, and each component's precision."""

    dialect: Dialect
    precisions: tuple[tuple[str, Precision], ...]

    def of(self, subject: str) -> str:
        """The precision of a component, or of all of them in words."""
        by_component = dict(self.precisions)
        if subject in by_component:
            return by_component[subject]
        several = sorted(set(by_component.values()))
        return several[0] if len(several) == 1 else ", ".join(f"{name} {kind}" for name, kind in self.precisions)

    def lowest(self, subject: str) -> Precision:
        """Whose bounds a comparison is held against."""
        by_component = dict(self.precisions)
        taking_part = [by_component[subject]] if subject in by_component else list(by_component.values())
        return max(taking_part, key=DESCENDING.index)

    @property
    def has_ranges(self) -> bool:
        """Whether some activation is clipped to what samples reached; CPUs measure theirs while they run."""
        return self.dialect != "fused" and any(kind in RANGED for _, kind in self.precisions)


def kinds_of(engines: Iterable[Engine], model: Model) -> Kinds:
    """The kinds of the engines of one target."""
    held = {engine.module: engine for engine in engines}
    chosen = {component: held[module] for component, module in sorted(model.components.items())}
    dialect, *_ = (engine.dialect for engine in chosen.values())
    return Kinds(dialect, tuple((component, engine.precision) for component, engine in chosen.items()))


def unconverted(dialect: Dialect) -> str:
    """The target of `as_graphs` that runs a dialect's graphs in fp32; no recipe can call one so."""
    return f"{dialect} fp32"


def as_graphs(deployment: Deployment) -> Deployment:
    """The deployment in which ONNX Runtime runs the very graphs that a target's engines are made of.

    Each dialect is there once more in fp32, as the target `unconverted`. What these engines are is `built`: whoever
    opens them judges them.
    """
    wanted = [(engine.target, engine.module, engine.dialect, engine.precision) for engine in deployment.engines]
    wanted += [
        (unconverted(dialect), module.id, dialect, "fp32")
        for dialect in dict.fromkeys(engine.dialect for engine in deployment.engines)
        for module in deployment.modules
        if any((graph.dialect, graph.precision) == (dialect, "fp32") for graph in module.graphs)
    ]
    engines = {
        (target, module): Engine(
            module=module, target=target, backend="ort", precision=precision, dialect=dialect, status="built",
            compatibility=HERE,
        )
        for target, module, dialect, precision in reversed(wanted)
    }  # fmt: skip
    return deployment.model_copy(update={"engines": tuple(reversed(engines.values()))})
