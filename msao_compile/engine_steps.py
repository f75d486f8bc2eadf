"""The second half of the walk: graphs in every precision that targets ask for, and their engines."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msao_compile import asks, engine_asks
from msao_compile.chosen import ahead_of_time
from msao_compile.errors import RecipeError
from msao_compile.manifest.schema import (
    BuildOrder,
    Deployment,
    Dialect,
    Engine,
    FileRef,
    Graph,
    Module,
    Precision,
    ShapeProfile,
)
from msao_compile.manifest.variants import HERE, RANGED, Kinds
from msao_compile.outlook import Costs, Holding, Outlook, holdings, outlooks, refuse
from msao_compile.recipe.room import lack
from msao_compile.recipe.schema import TargetChoice
from msao_compile.recipe.targets import find
from msao_compile.runner import Ask, Runner
from msao_compile.stages import build, compose, grids
from msao_compile.stages.compose import Made
from msao_compile.stages.profiles import profiles
from msao_compile.steps import OF_ALL_MODULES, Steps
from msao_compile.stock import result
from msao_compile.store.record import Record

logger = logging.getLogger(__name__)
GROWING = 0.5
"""Share of the ranges that may have grown last in the last quarter of the runs. A quarter do by chance, of samples that
are all alike; many more say that later samples are of another kind than earlier ones."""
OPEN_COPIES = 2.0
"""Of a module's weights, in memory while it is opened: the mapped file and those that ONNX Runtime packs."""


class Walk(Steps):
    """All stages, in the order in which `pipeline` asks for them."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.costs = Costs(runner.store)
        self.told: dict[tuple[str, str], str] = {}
        """By target and module, how fast quantised modules were beside their fp32 siblings."""

    def split(self) -> bool:
        """Which modules each model has; a build that no device of a target can run ends here.

        Raises:
            RecipeError: as `outlook.refuse`. GateError: as there.
        """
        known = super().split()
        if known and not self.runner.planning:
            refuse(self, self.costs)
        return known

    def outlook(self) -> tuple[tuple[Outlook, ...], tuple[Holding, ...]]:
        """What is to be expected of every engine, and of every model on a target, by what is known so far."""
        return outlooks(self, self.costs), holdings(self)

    def precisions(self) -> bool:
        """Every graph of less than fp32 that a target asks for; targets share what they agree on.

        Raises:
            RecipeError: an island names no block of any model.
        """
        lower = {name: list(self._lower(name)) for name in self.targets}
        ranges = self._ranges(
            [(module, graph) for one in lower.values() for module, graph, kind in one if kind in RANGED]
        )
        if ranges is None:
            return self._later(("quantize", "parity", "build", "measure"), "ranges")
        homes = compose.owners(self.parts)
        asked = {
            (module, graph, kind): engine_asks.quantize(
                homes[module.id], module, graph, kind, ranges.get(module.id, {}) if kind in RANGED else {}, self.stock
            )
            for one in lower.values() for module, graph, kind in one
        }  # fmt: skip
        self._keep({name: [asked[item] for item in one] for name, one in lower.items()})
        wanted = list(dict.fromkeys(item for name, one in lower.items() if name in self.targets for item in one))
        records = self.runner.ask([asked[item] for item in wanted])
        for (module, graph, kind), record in zip(wanted, records, strict=True):
            blob, data = self.stock.output(record, "graph"), self.stock.output(record, "data")
            if record is not None and blob is not None:
                self.exported[module.id].graphs[graph.dialect, kind] = Made(blob, result(record), data)
        self._check_islands(
            [
                (module.component, result(record)["blocks"])
                for (module, _, _), record in zip(wanted, records, strict=True)
                if record is not None
            ]
        )
        if not all(records):
            return self._later(("weigh", "parity", "build", "measure"), "quantize")
        return self._weigh() or self._later(("parity", "build", "measure"), "weigh")

    def _check_islands(self, seen: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Every block that stays fp32 is one of a module that would not be fp32 anyway.

        Raises:
            RecipeError: it is none; names those that there are.
        """
        for component, names in self.recipe.islands.items():
            if self.runner.planning and component not in dict(seen):
                continue  # not converted yet
            known = [block for name, found in seen if name == component for block in found]
            for island in names:
                if seen and not any(block == island or block.startswith(f"{island}.") for block in known):
                    near = difflib.get_close_matches(island, known, n=1, cutoff=0)
                    offer = f"did you mean '{near[0]}'?" if near else "no target has it in less than fp32"
                    raise RecipeError(f"islands.{component}: '{island}' is no block of it; {offer}")

    def _weigh(self) -> bool:
        """On CPUs: what is quantised is kept where it is faster than fp32 here, or where size is preferred."""
        homes, settings, wanted = compose.owners(self.parts), self._settings(), {}
        for name, choice in self.targets.items():
            for module in self._modules() if find(choice.device).platform_kind == "cpu" else ():
                kind = self.kind(name, module.id, module.component)
                if kind != "fp32":
                    variant, shapes = (choice.graph_dialect, kind), self._best_shapes(module, choice)
                    wanted[name, module.id] = engine_asks.weigh(
                        homes[module.id], module, variant, shapes, settings, self.stock
                    )
        for (name, module_id), ask in wanted.items():
            [record] = self.runner.ask([ask])  # alone: two timings at once measure each other
            if record is None:
                return False
            times, component = result(record)["median_ms"], self._module(module_id).component
            asked = self.kind(name, module_id, component)
            told = (
                f"{result(record)['what']} took {times[asked]:.3g} ms in {asked}, {times['fp32']:.3g} ms in fp32 here"
            )
            self.told[name, module_id] = told
            if self.targets[name].prefer == "speed" and times["fp32"] <= times[asked]:
                self.kept[name, module_id] = "fp32"
                logger.warning("%s/%s for %s stays fp32: %s", homes[module_id], component, name, told)
        return True

    def _best_shapes(self, module: Module, choice: TargetChoice) -> dict[str, list[int]]:
        graph = graph_of(module, choice.graph_dialect, "fp32")
        [profile, *_] = self._profiles(module, graph) or (None,)
        return {} if profile is None else {one.name: list(one.opt) for one in profile.inputs}

    def _lower(self, target: str) -> Iterator[tuple[Module, Graph, Precision]]:
        for module in self._modules():
            kind = self.kind(target, module.id, module.component)
            if kind != "fp32":
                yield module, graph_of(module, self.targets[target].graph_dialect, "fp32"), kind

    def _keep(self, needed: Mapping[str, Sequence[Ask]]) -> None:
        """With --target: others stay where the store has all that they need, and leave the deployment else."""
        for name, asked in needed.items():
            missing = (ask for ask in asked if not isinstance(self.runner.store.peek(ask.key), Record))
            lacking = None if name in self.asked_for else next(missing, None)
            if lacking is not None:
                del self.targets[name]
                logger.warning(
                    "target %s is left out: the store lacks %s %s; build without --target",
                    name, lacking.stage, lacking.subject,
                )  # fmt: skip

    def _ranges(self, wanted: Sequence[tuple[Module, Graph]]) -> dict[str, Mapping[str, float]] | None:
        """The largest activations of each module that wants them, over the recipe's samples; None in a plan."""
        quantised = [(module, graph) for module, graph in wanted if graph.dialect != "fused"]  # CPUs need no ranges
        if not quantised:
            return {}
        dialect = quantised[0][1].dialect
        draft = self._manifest(tuple(self._draft_engines()), {})
        ids = {module.id for module, _ in quantised}
        having = [parts for parts in self.parts if ids & {part["id"] for part in parts.split["components"]}]
        records = self.runner.ask([engine_asks.ranges(parts.name, dialect, draft, ids, self.stock) for parts in having])
        found: dict[str, Mapping[str, float]] = {}
        for parts, record in zip(having, records, strict=True):
            if record is None:
                return None
            self._tell_coverage(parts.name, result(record))
            if (apart := self.stock.output(record, "apart")) is not None:
                self.samples[parts.name] = apart
            components = {part["component"]: part["id"] for part in parts.split["components"]}
            found |= {components[name]: ranges for name, ranges in result(record)["maximum"].items()}
        return found

    @staticmethod
    def _tell_coverage(model: str, found: Mapping[str, Any]) -> None:
        """Warn of ranges that more samples would change."""
        if found["synthetic"]:
            logger.warning("%s: ranges of synthetic samples; use them to try a build only", model)
        for component, told in found["coverage"].items():
            if told["still_growing"] > GROWING or told["never"]:
                logger.warning(
                    "%s/%s: in the last quarter of %d runs %.0f %% of the ranges grew, and %d were never reached; give "
                    "more samples in [ranges]",
                    model, component, told["samples"], 100 * told["still_growing"], len(told["never"]),
                )  # fmt: skip

    def graphs(self) -> Deployment:
        """What the targets ask for as graphs that nothing vouches for yet, with the bounds that parity would have."""
        engines = [
            Engine(
                module=module.id, target=name, backend="ort", precision=self.kind(name, module.id, module.component),
                dialect=choice.graph_dialect, status="built", compatibility=HERE,
            )
            for name, choice in self.targets.items()
            for module in self._modules()
        ]  # fmt: skip
        return self._manifest(tuple(engines), {"parity": self.stock.evidence("parity", self._evidence())})

    def engines(self) -> None:
        """One entry per module and target: opened here, built here, or left to the device with all that it needs.

        Raises:
            GateError: a build here needs more memory than there is.
        """
        modules = self._modules()
        large = {module.id: lack(OPEN_COPIES * module.weight_bytes) for module in modules}
        homes = compose.owners(self.parts)
        planned = {
            (name, module.id): self._planned(name, choice, module)
            for name, choice in self.targets.items()
            for module in modules
        }
        asked: dict[tuple[str, str], Ask] = {}
        for (name, owner), entry in planned.items():
            on_cpu = entry.compatibility.platform_kind == "cpu"
            module, here = self._module(owner), on_cpu and large[owner] is None
            graph = graph_of(module, entry.dialect, entry.precision)
            if here:
                asked[name, owner] = asks.engine(module, graph, self._settings(), self.stock)
            elif entry.order is not None and entry.order.compute_capabilities:
                ask = engine_asks.engine(homes[owner], module, graph, name, entry.order, self.stock)
                asked[name, owner] = self.costs.sized(ask, entry.backend, engine_asks.weights(module, graph))
            elif entry.backend != "ort":
                planned[name, owner] = self.costs.told(entry, module, graph)
        self._keep({name: [ask for (target, _), ask in asked.items() if target == name] for name in self.targets})
        planned = {(name, owner): entry for (name, owner), entry in planned.items() if name in self.targets}
        asked = {(name, owner): ask for (name, owner), ask in asked.items() if name in self.targets}
        distinct = {ask.key.digest: ask for ask in asked.values()}
        records = dict(zip(distinct, self.runner.ask(list(distinct.values())), strict=True))
        for (name, owner), entry in planned.items():
            made = asked.get((name, owner))
            record = None if made is None else records[made.key.digest]
            settled = self._settled(entry, self._module(owner), large[owner], record)
            if settled.status == "deferred" and made is None:  # in a plan an engine that will be made is none yet
                self.runner.defer(f"{homes[owner]}/{self._module(owner).component} for {name}", settled.reason or "")
            self.entries.append(settled)

    def _module(self, module_id: str) -> Module:
        return next(module for module in self._modules() if module.id == module_id)

    def _planned(self, name: str, choice: TargetChoice, module: Module) -> Engine:
        """What is to be made of a module for a target; nothing is yet."""
        device, kind = find(choice.device), self.kind(name, module.id, module.component)
        graph = graph_of(module, choice.graph_dialect, kind)
        order = None
        if build.library(device) != "ort":
            others = [find(other).sm for other in choice.also_for]
            capabilities = sorted({sm for sm in (device.sm, *others) if sm is not None})
            order = BuildOrder(
                backend=build.library(device),
                profiles=self._profiles(module, graph),
                level=choice.level,
                compute_capabilities=tuple(capabilities) if ahead_of_time(device) else (),
                timing_cache=None if choice.timing_cache is None else self.stock.digest(Path(choice.timing_cache)),
            )
        return build.planned(module, name, choice, kind, order)

    def _profiles(self, module: Module, graph: Graph) -> tuple[ShapeProfile, ...]:
        tokens = self._tokens(module)
        known: dict[str, tuple[int, int, int]] = {}
        for model in map(compose.model, self.parts):
            for encoder in model.encoders:
                if model.components[encoder.component] == module.id:
                    known |= grids.lengths(encoder, graph, tokens)
        return profiles(module.component, graph, self.recipe.shapes, tokens, known)

    def _tokens(self, module: Module) -> int | None:
        """Tokens that stand for a typical medium in front of, or behind, a module: the least of its models' classes."""
        counts = [
            count
            for parts in self.parts
            if any(part["id"] == module.id for part in parts.split["components"])
            for label, count in parts.split["classes"].items()
            if count and (module.component == "embed_tokens" or build.MEDIA.get(module.component, "") in label)
        ]
        return min(counts, default=None)

    def _settled(self, entry: Engine, module: Module, too_large: str | None, record: Record | None) -> Engine:
        if entry.backend == "ort" and entry.compatibility.platform_kind != "cpu":
            return build.unseen(entry, self._unproven(module, entry))
        if entry.backend == "ort":
            told = self.told.get((entry.target, module.id))
            return build.opened(entry, too_large, self._unproven(module, entry), told)
        blob = self.stock.output(record, "engine")
        if record is None or blob is None:
            return entry
        home = compose.owners(self.parts)[module.id]
        path = f"engines/{home}/{build.file_name(module.component, entry, result(record))}"
        file = FileRef(path=path, sha256=blob.sha256, size_bytes=blob.size_bytes)
        return build.built(entry, file, result(record), self._unproven(module, entry))

    def _unproven(self, module: Module, entry: Engine) -> str | None:
        """None where all rows about the module, and about the whole of each model that has it, PASS in its kinds."""
        having = {parts.name for parts in self.parts for part in parts.split["components"] if part["id"] == module.id}
        labels = {self._kinds_in_words(name, entry.target) for name in having}
        rows = [row for row in self.rows if row.dialect == entry.dialect and row.model in having]
        whole = {row.model for row in rows if row.subject.startswith("whole") and row.precision in labels}
        about = [
            row for row in rows
            if (row.subject == module.component and row.precision == entry.precision)
            or (row.subject.startswith(OF_ALL_MODULES) and row.precision in labels)
        ]  # fmt: skip
        if whole == having and all(row.verdict == "PASS" for row in about):
            return None
        reasons = (self.left_out[name] for name in sorted(having) if name in self.left_out)
        return next(reasons, "a parity row of it or of a whole model that has it is not PASS")

    def _kinds_in_words(self, model: str, target: str) -> str:
        """The precisions that a target runs a model in, as the rows of parity say them."""
        choice = self.targets[target]
        parts = next(parts for parts in self.parts if parts.name == model).split["components"]
        ids = sorted((part["component"], part["id"]) for part in parts)
        kinds = tuple((name, self.kind(target, module, name)) for name, module in ids)
        return Kinds(choice.graph_dialect, kinds).of("")


def graph_of(module: Module, dialect: Dialect, precision: Precision) -> Graph:
    """A module's graph of one kind; the walk made every one that a target names."""
    return next(graph for graph in module.graphs if (graph.dialect, graph.precision) == (dialect, precision))
