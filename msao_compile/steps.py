"""One walk through the stages: each method asks for a stage's runs and keeps what the next one needs."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from msao_compile import asks
from msao_compile.chosen import chosen
from msao_compile.errors import InputError, RecipeError
from msao_compile.families.checkpoint import read_config, weight_files
from msao_compile.families.conversion import CONVERTED
from msao_compile.families.refusals import refuse_unusable
from msao_compile.families.side_files import lacks, side_files
from msao_compile.foreseen import after_split
from msao_compile.graph.opsets import traced
from msao_compile.manifest.evidence import BuildEvidence, MeasureEvidence, ParityEvidence, ParityRow
from msao_compile.manifest.fit_evidence import MasEvidence
from msao_compile.manifest.schema import (
    SCHEMA_MAJOR,
    SCHEMA_MINOR,
    Deployment,
    Dialect,
    Engine,
    FileRef,
    Module,
    Precision,
    RuntimeSettings,
    Task,
)
from msao_compile.manifest.variants import HERE, NOT_ON_CPUS
from msao_compile.places import DataFile, Places
from msao_compile.recipe.asked import refuse_unknown
from msao_compile.recipe.room import lack
from msao_compile.recipe.schema import DEFAULT_BOUNDS, Component
from msao_compile.runner import Ask, Runner
from msao_compile.runtime.compare import refuse_failures
from msao_compile.stages import compose
from msao_compile.stages.compose import Exported, Made, ModelParts, Object
from msao_compile.stages.fit import applied
from msao_compile.stock import Stock, result
from msao_compile.store.record import Record

logger = logging.getLogger(__name__)
PARITY_COPIES = 3.6
"""Of a model's fp32 weights, in memory while it is compared: torch's, the mapped file, packed ones, activations."""
OPEN_COPIES = 2.0
"""Of a module's weights, in memory while it is opened: the mapped file and those that ONNX Runtime packs."""
AFTER_SPLIT = "after the split"
OF_ALL_MODULES = ("whole", "steps", "batch")
"""How subjects of parity rows begin that are about every module of a model."""


class Steps:
    """Each stage's method returns False in a plan when the next stage cannot be known yet."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.recipe, self.stock = runner, runner.recipe, Stock(runner)
        self.targets = chosen(runner)
        self.asked_for = frozenset(self.targets)
        self.checkpoints = {name: Path(model.checkpoint) for name, model in self.recipe.models.items()}
        self.parts: list[ModelParts] = []
        self.places = Places((), {})
        self.exported: dict[str, Exported] = {}
        self.rows: list[ParityRow] = []
        self.left_out: dict[str, str] = {}
        self.samples: dict[str, Object] = {}
        self.requests: dict[str, Object] = {}
        self.kept: dict[tuple[str, str], Precision] = {}
        self.bounds: dict[str, dict[str, float | None]] = {
            name: dict(bounds)
            if (given := getattr(self.recipe.parity, name)) is None
            else given.model_dump(mode="json")
            for name, bounds in DEFAULT_BOUNDS.items()
        }
        self.measured: MeasureEvidence | None = None
        self.fitted: dict[str, Any] | None = None
        self.entries: list[Engine] = []
        self.can_answer = True

    @property
    def dialects(self) -> list[Dialect]:
        """What the targets need of every module."""
        return sorted({choice.graph_dialect for choice in self.targets.values()})

    @property
    def every_dialect(self) -> list[Dialect]:
        """What all targets of the recipe are traced in, asked for or not: all at once."""
        return sorted({traced(choice.graph_dialect) for choice in self.recipe.targets.values()})

    def split(self) -> bool:
        """Which modules each model has."""
        for name, folder in self.checkpoints.items():
            refuse_unusable(folder, read_config(folder), asks.trusts(name, self.stock), f"models.{name}")
            if missing := lacks(folder):
                self.can_answer = False
                logger.warning("%s", missing)
        records = self.runner.ask([asks.split(name, folder, self.stock) for name, folder in self.checkpoints.items()])
        if not all(records):
            for stage, subject, deferred in after_split(list(self.checkpoints), self.targets):
                if deferred is None:
                    self.runner.wait_for(stage, subject, AFTER_SPLIT)
                else:
                    self.runner.defer(subject, f"{AFTER_SPLIT}; {deferred}", stage)
            return False
        capacity = self.recipe.shapes.kv_capacity
        for (name, folder), record in zip(self.checkpoints.items(), records, strict=True):
            assert record is not None  # all(records) above
            files = {path.name: self.stock.put(path) for path in side_files(folder)}
            outputs = [*map(asks.archive_name, self.every_dialect), CONVERTED]
            archives = {name: self.stock.output(record, name) for name in outputs}
            held = {name: blob for name, blob in archives.items() if blob is not None}
            check_positions(name, result(record), capacity)
            role = self.recipe.models[name].role
            self.parts.append(ModelParts(name, role, result(record), capacity, files, held))
        check_excluded(self.recipe.export.exclude, [parts.split for parts in self.parts])
        return True

    def export(self) -> bool:
        """Weights and graphs of every distinct module, each once however many models have it."""
        self.places = Places(self.parts, self._servable())
        distinct = list(self.places.distinct())
        self._check_names({component["component"] for _, component in distinct})
        if not self._weights(distinct):
            return self._later(("export", "parity", "build", "measure"), "load")
        self._keep_other_targets(distinct)
        if not self._graphs(distinct):
            return self._later(("parity", "build", "measure"), "export")
        return True

    def _servable(self) -> dict[str, dict[str, int]]:
        """The size of each checkpoint file that graphs may point into, by model."""
        if self.recipe.export.weights == "module":
            return {}
        return {
            name: {path.name: path.stat().st_size for path in weight_files(folder)}
            for name, folder in self.checkpoints.items()
        }

    def _weights(self, distinct: list[tuple[ModelParts, Mapping[str, Any]]]) -> bool:
        """The data files of every module: of its checkpoint, or written."""
        wanted = [(model, part) for model, part in distinct if self.places.written(part)[0]]
        loads = self.runner.ask(
            [
                self._chosen(asks.load(model, part, self.places, self.checkpoints[model.name], self.stock), part)
                for model, part in wanted
            ]
        )
        held = {part["id"]: self.stock.output(record, "data") for (_, part), record in zip(wanted, loads, strict=True)}
        for model, part in distinct:
            files = self.exported.setdefault(part["id"], Exported()).data
            for file in self.places.files(model, part):
                blob = self._shared(file) if file.module is None else held[file.module]
                if blob is not None:
                    files[file.name] = blob
        return all(loads)

    def _shared(self, file: DataFile) -> Object:
        assert file.checkpoint is not None  # what no module wrote is of a checkpoint
        model, name = file.checkpoint
        return self.stock.share(self.checkpoints[model] / name)

    def _keep_other_targets(self, distinct: list[tuple[ModelParts, Mapping[str, Any]]]) -> None:
        """With --target: the others stay in the deployment where the store has all their graphs, and leave it else."""
        kept = {}
        for name, choice in self.recipe.targets.items():
            graphs = (self._export(model, part, choice.graph_dialect) for model, part in distinct)
            if name in self.targets or all(isinstance(self.runner.store.peek(ask.key), Record) for ask in graphs):
                kept[name] = choice
            else:
                logger.warning("target %s is left out: the store lacks a graph of it; build without --target", name)
        self.targets = kept

    def _graphs(self, distinct: list[tuple[ModelParts, Mapping[str, Any]]]) -> bool:
        wanted = [(model, part, dialect) for model, part in distinct for dialect in self.dialects]
        records = self.runner.ask([self._chosen(self._export(*item), item[1]) for item in wanted])
        for (_, part, dialect), record in zip(wanted, records, strict=True):
            blob = self.stock.output(record, "graph")
            if blob is not None and record is not None:
                self.exported[part["id"]].graphs[dialect, "fp32"] = Made(blob, result(record))
        return all(records)

    def _export(self, model: ModelParts, part: Mapping[str, Any], dialect: Dialect) -> Ask:
        return asks.export(model, part, dialect, self.places, self.stock)

    def parity(self) -> bool:
        """Every model against its torch original; a FAIL ends the build.

        Raises:
            GateError: a comparison is outside the recipe's bounds.
        """
        if not self.compare():
            return self._later(("build", "measure"), "parity")
        refuse_failures(self._evidence(), self.runner.advice)
        return True

    def compare(self) -> bool:
        """The rows of parity, and the requests that they are of."""
        draft = self._manifest(tuple(self._draft_engines()), {})
        for model in self.parts:
            weights = sum(part["weight_bytes"] for part in model.split["components"])
            if lacks_memory := lack(PARITY_COPIES * weights):
                self.left_out[model.name] = f"to be compared with its torch original it {lacks_memory}"
                logger.warning("%s: %s; build it on a larger machine", model.name, self.left_out[model.name])
                self.runner.defer(model.name, self.left_out[model.name], "parity")
        compared = [model for model in self.parts if model.name not in self.left_out]
        records = self.runner.ask(
            [
                asks.parity(
                    model, self.checkpoints[model.name], self.bounds, draft, self.samples.get(model.name), self.stock
                )
                for model in compared
            ]
        )
        for model, record in zip(compared, records, strict=True):
            if record is not None:
                if (requests := self.stock.output(record, "requests")) is not None:
                    self.requests[model.name] = requests
                found = ParityEvidence.model_validate(result(record))
                self.rows += found.rows
                self.left_out |= found.left_out
        return all(records)

    def _draft_engines(self) -> Iterator[Engine]:
        """A deployment that nothing vouches for yet: all that the targets ask for through ONNX Runtime, `built`.

        Each dialect is also there in fp32, which tells a fault of the graph from one of its precision.
        """
        targets = [(choice.graph_dialect, name) for name, choice in self.targets.items()]
        for dialect, target in [*((dialect, None) for dialect in self.dialects), *targets]:
            kinds = [(module, self.kind(target, module.id, module.component)) for module in self._modules()]
            if any(kind in NOT_ON_CPUS for _, kind in kinds):
                continue
            label = f"{dialect} " + ", ".join(f"{module.component} {kind}" for module, kind in kinds)
            for module, kind in kinds:
                yield Engine(
                    module=module.id, target=label, backend="ort", precision=kind, dialect=dialect, status="built",
                    compatibility=HERE,
                )  # fmt: skip

    def kind(self, target: str | None, module: str, component: str) -> Precision:
        """What a target keeps of what it asks of a module; fp32 of no target."""
        if target is None:
            return "fp32"
        asked = self.targets[target].precision_of(cast("Component", component))
        return self.kept.get((target, module), asked)

    @property
    def runnable(self) -> bool:
        """Whether this machine can run every module, and the checkpoints have what `run` needs."""
        proven = {entry.module for entry in self.entries if entry.status == "parity"}
        return self.can_answer and proven == {module.id for module in self._modules()}

    def measure(self) -> None:
        """Time the routes, where this machine can run them."""
        if not self.runnable:
            return
        [record] = self.runner.ask([asks.measure(self._manifest(tuple(self.entries), {}), self.stock)])
        self.measured = None if record is None else MeasureEvidence.model_validate(result(record))

    def fit(self) -> None:
        """Fit the task that speculates, where the recipe has samples and the routes were measured.

        Raises:
            RecipeError: no task speculates.
        """
        if self.recipe.mas is None:
            return
        draft = self._manifest(tuple(self.entries), {})
        if not draft.speculation:
            raise RecipeError(
                "mas: no task has a model that drafts and one that verifies with the same tokens, so there is nothing "
                "to fit: take [mas] out, or give a task models of roles draft and target"
            )
        if self.measured is not None:
            [record] = self.runner.ask([asks.fit(draft, self.stock)])
            self.fitted = None if record is None else result(record)
        elif self.runner.planning and self.runnable:
            self.runner.wait_for("fit", draft.speculation[0].task, "follows measure")
        else:
            self.runner.defer(
                draft.speculation[0].task, "both models are asked on this machine, which cannot run them", "fit"
            )

    def deployment(self) -> Deployment:
        """The manifest of what was built and proven."""
        stages = tuple(sorted(self.runner.stages, key=lambda run: (run.stage, run.subject)))
        evidence = {
            "parity": self.stock.evidence("parity", self._evidence()),
            "build": self.stock.evidence("build", BuildEvidence(stages=stages, tools=asks.versions(asks.EXPORT_TOOLS))),
        }
        if self.measured is not None:
            evidence["measure"] = self.stock.evidence("measure", self.measured)
        deployment = self._manifest(tuple(self.entries), evidence)
        if self.fitted is not None:
            content = MasEvidence.model_validate(self.fitted["evidence"])
            deployment = applied.fitted(deployment, self.fitted, self.stock.evidence(applied.EVIDENCE, content))
        return compose.used(deployment)

    def _manifest(self, engines: tuple[Engine, ...], evidence: Mapping[str, FileRef]) -> Deployment:
        models = [compose.model(parts) for parts in self.parts]
        modules = self._modules()
        tasks = {name: task.models for name, task in self.recipe.tasks.items()}
        graphs = [(module.id, graph) for module in modules for graph in module.graphs]
        fixed = {name for name, graph in graphs if not all(state.rollback for state in graph.states)}
        routes = compose.routes(tasks, {model.name: model for model in models}, fixed)
        return Deployment(
            schema_version=f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}",
            name=self.recipe.name,
            created_by=f"msao-compile {asks.versions(('msao-compile',))['msao-compile']}",
            models=tuple(models),
            modules=modules,
            engines=engines,
            tasks=tuple(Task(name=name, models=tuple(names)) for name, names in tasks.items()),
            routes=routes,
            partition_points=compose.partition_points(
                models, modules, self.rows, {parts.name: parts.split["classes"] for parts in self.parts}
            ),
            runtime=self._settings(),
            evidence=dict(evidence),
            primitives=self.measured.primitives if self.measured is not None else (),
            speculation=compose.speculation(tasks, routes, {model.name: model.role for model in models}),
        )

    def _evidence(self) -> ParityEvidence:
        return ParityEvidence(rows=tuple(self.rows), bounds=self.bounds, left_out=self.left_out)

    def _modules(self) -> tuple[Module, ...]:
        return compose.modules(self.parts, self.exported)

    def _settings(self) -> RuntimeSettings:
        chosen = self.recipe.runtime
        return RuntimeSettings(threads=chosen.threads or 0, arena=chosen.arena, warm_up=chosen.warm_up)

    def _later(self, stages: tuple[str, ...], cause: str) -> bool:
        """In a plan: stages whose keys are not known before another one has run."""
        for stage in stages:
            subject = "every module" if stage in ("load", "export") else "every model"
            self.runner.wait_for(stage, subject, f"follows {cause}")
        return False

    def _check_names(self, known: set[str]) -> None:
        for name in self.runner.options.modules:
            refuse_unknown("module", name, sorted(known), "this recipe has")

    def _chosen(self, ask: Ask, part: Mapping[str, Any]) -> Ask:
        """With --module, every other module must be in the store already."""
        wanted = self.runner.options.modules
        known = not wanted or part["component"] in wanted or isinstance(self.runner.store.peek(ask.key), Record)
        if not known:
            raise InputError(f"{ask.subject}: not in the store yet and not among --module; build once without --module")
        return ask


def check_positions(name: str, split: Mapping[str, Any], capacity: int) -> None:
    """Warn of a KV cache longer than the model was made for.

    A model whose rotary frequencies follow the length is traced with those of short ones, up to `position_limit`.

    Raises:
        RecipeError: the KV cache would hold more.
    """
    limit, trained = split["position_limit"], split["trained_positions"]
    if limit is not None and capacity > limit:
        raise RecipeError(
            f"shapes.decoder.kv_capacity: {capacity} where the rotary frequencies of {name} are constant up to {limit} "
            f"positions only (rope_type dynamic); set at most {limit}"
        )
    if trained is not None and capacity > trained:
        logger.warning(
            "shapes.decoder.kv_capacity: %d where %s was made for %d positions; what it answers beyond them is not to "
            "be trusted, set at most %d", capacity, name, trained, trained,
        )  # fmt: skip


def check_excluded(exclude: Sequence[str], splits: Sequence[Mapping[str, Any]]) -> None:
    """Every name of a recipe's export.exclude leaves something out; one that graphs need is warned of and stays.

    Raises:
        RecipeError: no model has what a name says.
    """
    known = sorted({encoder["component"] for split in splits for encoder in split["encoders"]})
    for name in exclude:
        if any(name in split["excluded"] for split in splits):
            continue
        if not any(name in split["kept"] for split in splits):
            near = difflib.get_close_matches(name, known, n=1)
            raise RecipeError(
                f"export.exclude: {name!r} is no encoder of pictures, clips or sounds of a model here, nor a part of "
                "one that no graph reads: " + (f"did you mean '{near[0]}'?" if near else "take it from the list")
            )
        logger.warning("export.exclude: graphs read %s, so it is not left out; take it from the list", name)
