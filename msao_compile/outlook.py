"""What is to be expected of every engine of a recipe: where it is built, what that takes, what stands against it.

Before graphs exist, weights of less than fp32 are told from their number: about.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

from msao_compile.chosen import ahead_of_time
from msao_compile.engine_asks import gpu, weights
from msao_compile.errors import GateError, RecipeError
from msao_compile.graph.opsets import traced
from msao_compile.manifest.schema import GROWS, Backend, Dialect, Engine, Graph, Module, Precision
from msao_compile.recipe import ledger
from msao_compile.recipe.ledger import BuildRun, Need
from msao_compile.recipe.room import GIB, KV_ITEM_BYTES, Room, memory_here, room
from msao_compile.recipe.schema import TargetChoice
from msao_compile.recipe.targets import Target, find
from msao_compile.runner import Ask
from msao_compile.runtime.backends.trt_build import supported
from msao_compile.stages import build, compose
from msao_compile.stages.compose import ModelParts
from msao_compile.steps import Steps
from msao_compile.store.record import Record
from msao_compile.store.store import Store

logger = logging.getLogger(__name__)
Place = Literal["here", "ahead of time", "device"]
SHARES: Mapping[Precision, float] = {"fp32": 1.0, "fp16": 0.5, "bf16": 0.5, "int8": 0.25, "fp8": 0.25, "int4": 0.15}
"""Of the bytes of fp32 weights, scales included, where no graph says it."""
CHANGE = "take a smaller model, a lower precision or kv_capacity, or a device with more memory"


@dataclass(frozen=True)
class Outlook:
    """One engine to be. `subject` is `model/component`, or `every module` where the modules are not known yet; then,
    and where nothing like it ran, a figure is None.
    """

    target: str
    device: str
    subject: str
    precision: Precision
    dialect: Dialect
    backend: Backend
    place: Place
    """Opened here, built here for other machines, or left to the device."""
    weight_bytes: int | None
    peak_bytes: int | None
    """Memory of the build, predicted: at most."""
    file_bytes: int | None
    seconds: float | None
    note: str
    """Why it is left to the device, and how that builds it."""
    type_lacking: str | None
    """That a GPU it is for does not compute in the precision."""
    memory_lacking: str | None
    """That who builds it has less memory than the build needs, with both numbers."""


@dataclass(frozen=True)
class Holding:
    """Whether a target can hold a model while it runs."""

    model: str
    room: Room


class Costs:
    """What builds of engines take, by those that a store remembers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def runs(self) -> dict[Backend, list[BuildRun]]:
        """Every measured build by backend."""
        found: dict[Backend, list[BuildRun]] = {"ort": [], "trt": [], "trt_rtx": []}
        for record in self._store.records("engine"):
            measured = build_run(record)
            if measured is not None:
                found[measured[0]].append(measured[1])
        return found

    def need(self, backend: Backend, weight_bytes: int) -> Need:
        """What a build of so many bytes of weights is expected to take."""
        return ledger.predict(backend, weight_bytes, self.runs[backend])

    def sized(self, ask: Ask, backend: Backend, weight_bytes: int) -> Ask:
        """A request for an engine with all that it is expected to take."""
        need = self.need(backend, weight_bytes)
        return dataclasses.replace(ask, disk_bytes=need.file_bytes, peak_bytes=need.peak_bytes, seconds=need.seconds)

    def told(self, entry: Engine, module: Module, graph: Graph) -> Engine:
        """An entry that is left to its device, with the reason why that cannot build it where its memory is small."""
        short = ledger.short_there(
            self.need(entry.backend, weights(module, graph)).peak_bytes, find(entry.compatibility.target_id)
        )
        return entry if short is None else entry.model_copy(update={"reason": f"{entry.reason}; {short}"})


def build_run(record: Record) -> tuple[Backend, BuildRun] | None:
    """What a record of the stage `engine` says its build took; None where it does not say it."""
    order, result = record.key.fields.get("order"), record.payload.get("result")
    if not (isinstance(order, Mapping) and isinstance(result, Mapping)):
        return None
    backend = next((known for known in ledger.PEAKS if known == order.get("backend")), None)
    weight_bytes, file_bytes = result.get("weight_bytes"), result.get("plan_bytes")
    peak_bytes, seconds = record.payload.get("peak_rss_bytes"), record.payload.get("seconds")
    if not (isinstance(weight_bytes, int) and isinstance(file_bytes, int) and isinstance(peak_bytes, int)):
        return None
    if backend is None or not isinstance(seconds, int | float):
        return None
    return backend, BuildRun(weight_bytes, peak_bytes, file_bytes, float(seconds))


def outlooks(walk: Steps, costs: Costs) -> tuple[Outlook, ...]:
    """Every engine of the targets asked for, in their order."""
    here = gpu()
    modules = {module.id: module for module in compose.modules(walk.parts, walk.exported)} if walk.exported else {}
    found = []
    for name, choice in walk.targets.items():
        for subject, part in _parts(walk.parts):
            kind = walk.kind(name, part["id"], part["component"])
            size = _weight_bytes(part, modules.get(part["id"]), choice.graph_dialect, kind)
            found.append(_outlook(name, choice, (subject, kind, size), costs, here))
        if not walk.parts:
            asked = choice.precision if isinstance(choice.precision, Mapping) else {"": choice.precision}
            kinds = dict.fromkeys(asked.values())
            found += [_outlook(name, choice, ("every module", kind, None), costs, here) for kind in kinds]
    return tuple(found)


def _outlook(
    name: str, choice: TargetChoice, engine: tuple[str, Precision, int | None], costs: Costs, here: Mapping[str, Any]
) -> Outlook:
    subject, kind, size = engine
    device = find(choice.device)
    backend = build.library(device)
    place: Place = "here" if backend == "ort" else "ahead of time" if ahead_of_time(device) else "device"
    need = None if size is None else costs.need(backend, size)
    short = None
    if need is not None:
        there = place == "device"
        short = (
            ledger.short_there(need.peak_bytes, device) if there else ledger.short_here(need.peak_bytes, memory_here())
        )
    return Outlook(
        target=name, device=device.target_id, subject=subject, precision=kind, dialect=choice.graph_dialect,
        backend=backend, place=place, weight_bytes=size, peak_bytes=None if need is None else need.peak_bytes,
        file_bytes=None if need is None or backend == "ort" else need.file_bytes,
        seconds=None if need is None else need.seconds,
        note=_note(name, device, here) if place == "device" else "",
        type_lacking=next(_types(kind, choice, backend), None), memory_lacking=short,
    )  # fmt: skip


def _note(name: str, device: Target, here: Mapping[str, Any]) -> str:
    own = here.get("sm") == device.sm and find_spec("tensorrt") is not None
    where = "this machine has such a GPU: run it here" if own else "not here"
    return f"built on the device with tensorrt by `msao-compile kit DEPLOYMENT --target {name}`; {where}"


def _types(kind: Precision, choice: TargetChoice, backend: Backend) -> Iterator[str]:
    """Why GPUs that an engine is for do not compute in a precision."""
    for device in map(find, (choice.device, *choice.also_for)):
        reason = None if backend == "ort" or device.sm is None else supported(kind, device.sm, backend)
        if reason is not None:
            yield f"{device.target_id}: {reason}"


def _parts(models: Sequence[ModelParts]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every distinct module once, with the model that has it first."""
    seen = set()
    for parts in models:
        for part in parts.split["components"]:
            if part["id"] not in seen:
                yield f"{parts.name}/{part['component']}", part
            seen.add(part["id"])


def _weight_bytes(part: Mapping[str, Any], module: Module | None, dialect: Dialect, kind: Precision) -> int:
    made = () if module is None else (one for one in module.graphs if (one.dialect, one.precision) == (dialect, kind))
    graph = next(iter(made), None)
    if module is not None and graph is not None:
        return weights(module, graph)
    return int(part["weight_bytes"] * SHARES[kind])


def holdings(walk: Steps) -> tuple[Holding, ...]:
    """Whether each target can hold each model while it runs: its weights, KV cache and a reserve."""
    modules = {module.id: module for module in compose.modules(walk.parts, walk.exported)} if walk.exported else {}
    here, found = memory_here(), []
    for name, choice in walk.targets.items():
        for parts in walk.parts:
            kinds = {part["component"]: walk.kind(name, part["id"], part["component"]) for part in
                     parts.split["components"]}  # fmt: skip
            held = sum(
                _weight_bytes(part, modules.get(part["id"]), choice.graph_dialect, kinds[part["component"]])
                for part in parts.split["components"]
            )
            item = KV_ITEM_BYTES.get(kinds.get("decoder", "fp16"), 2)
            one = room(name, find(choice.device), "/".join(dict.fromkeys(kinds.values())), held,
                       _kv_bytes(walk, parts, choice.graph_dialect) * item, here)  # fmt: skip
            found.append(Holding(parts.name, one))
    return tuple(found)


def _kv_bytes(walk: Steps, parts: ModelParts, dialect: Dialect) -> int:
    """Elements of a decoder's state for the largest batch of the recipe, full."""
    shapes = walk.recipe.shapes
    batch = 1 if shapes.decoder is None else shapes.decoder.batch[2]
    lengths = {
        "batch_size": batch,
        GROWS: shapes.kv_capacity,
        **{name: three[2] for name, three in shapes.dims.items()},
    }
    total = 0
    for state in parts.split["states"][traced(dialect)]:
        count = 1
        for size in state["shape"]:
            count *= size if isinstance(size, int) else lengths.get(size, shapes.kv_capacity)
        total += count
    return total


def refuse(walk: Steps, costs: Costs) -> None:
    """Before hours of work: what no device of a target can run.

    Raises:
        RecipeError: a target's GPU does not compute in a precision that it asks for.
        GateError: a target can hold none of the models while they run; has both numbers.
    """
    for one in outlooks(walk, costs):
        if one.type_lacking is not None:
            raise RecipeError(
                f"targets.{one.target}.precision: {one.subject} is to be {one.precision}, and {one.type_lacking}: "
                "choose fp16, or leave this target out"
            )
    held = holdings(walk)
    for name, choice in walk.targets.items():
        of_target = [one for one in held if one.room.target == name]
        short = [sentence for one in of_target if (sentence := shortage(one)) is not None]
        if short and len(short) == len(of_target) and find(choice.device).platform_kind != "cpu":
            raise GateError(f"{short[0]}: {CHANGE}")
        for sentence in short:
            logger.warning("%s", sentence)


def shortage(held: Holding) -> str | None:
    """That a target cannot hold a model, with what it needs and what there is; None where it can, or is not known."""
    one = held.room
    if one.fits is not False or one.memory_bytes is None:
        return None
    needed = one.weight_bytes + one.kv_bytes + one.reserve_bytes
    return (
        f"{held.model} for {one.target} needs about {needed / GIB:.1f} GiB to run ({one.weight_bytes / GIB:.1f} of "
        f"weights in {one.precision}, {one.kv_bytes / GIB:.1f} of KV cache, {one.reserve_bytes / GIB:.0f} of reserve) "
        f"where {one.device} has {one.memory_bytes / GIB:.1f}"
    )
