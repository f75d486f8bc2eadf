"""What each stage is asked for: keys, arguments and outputs, from the recipe and from what earlier stages gave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msao_compile.errors import InputError, RecipeError
from msao_compile.families.checkpoint import read_config, side_files, weight_files
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.evidence import BuildEvidence, MeasureEvidence, ParityEvidence, ParityRow
from msao_compile.manifest.schema import (
    MANIFEST_NAME,
    SCHEMA_MAJOR,
    SCHEMA_MINOR,
    Compatibility,
    Deployment,
    Dialect,
    Engine,
    FileRef,
    Model,
    RuntimeSettings,
    Task,
)
from msao_compile.recipe.schema import Bounds, TargetChoice
from msao_compile.recipe.targets import find
from msao_compile.runner import Ask, Runner
from msao_compile.stages import build, compose, emit
from msao_compile.stages.compose import Exported, ModelParts, Object, data_name, graph_name
from msao_compile.stages.gate import refuse_failures
from msao_compile.store.record import Blob, Record

STAGE_VERSIONS = {"split": 1, "load": 1, "export": 1, "parity": 1, "build": 1, "measure": 1}
EXPORT_TOOLS = ("torch", "transformers", "onnx-ir", "onnxscript", "onnxruntime", "optimum")
RUN_TOOLS = ("onnxruntime", "numpy")
KV_CAPACITY = 2048


class Steps:
    """One walk through the stages. Each method returns False in a plan when the next ones cannot be known yet."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.recipe = runner, runner.recipe
        self.targets = self._targets()
        self.dialects: tuple[Dialect, ...] = tuple(sorted({choice.graph_dialect for choice in self.targets.values()}))
        self.checkpoints = {name: Path(model.checkpoint) for name, model in self.recipe.models.items()}
        self.parts: list[ModelParts] = []
        self.exported: dict[str, Exported] = {}
        self.rows: list[ParityRow] = []
        self.measured: MeasureEvidence | None = None
        self.engine_entries: list[Engine] = []
        self._blobs: dict[str, Blob] = {}

    # ------------------------------------------------------------------------------------------------------------- split

    def split(self) -> bool:
        """Which modules each model has."""
        asks = []
        for name, folder in self.checkpoints.items():
            read_config(folder)
            fields = {"config": self.runner.inputs.digest(folder / "config.json"), "weights": self._weights(folder),
                      "tools": _versions(EXPORT_TOOLS), "families": _source_digest("families")}
            asks.append(Ask("split", name, STAGE_VERSIONS["split"], fields, lambda _, folder=folder: {"checkpoint": str(folder)}))  # type: ignore[misc]
        records = self.runner.ask(asks)
        if not all(records):
            for stage in ("load", "export", "parity", "build", "measure"):
                self.runner.wait_for(stage, "every module" if stage in ("load", "export") else "every model", "split")
            return False
        for (name, folder), record in zip(self.checkpoints.items(), records, strict=True):
            assert record is not None  # all(records) above
            files = {path.name: self._put(path) for path in side_files(folder)}
            self.parts.append(ModelParts(name, self.recipe.models[name].role, _result(record), self._capacity(), files))
        return True

    def _weights(self, folder: Path) -> str:
        return sha256_bytes(canonical_json([[path.name, self.runner.inputs.digest(path)] for path in weight_files(folder)]))

    def _capacity(self) -> int:
        decoder = self.recipe.shapes.decoder
        return decoder.kv_capacity if decoder is not None else KV_CAPACITY

    # ---------------------------------------------------------------------------------------------------- load and export

    def export(self) -> bool:
        """Weights and graphs of every distinct module, each once however many models have it."""
        distinct = [(model, component) for model in self.parts for component in model.split["components"]
                    if compose.owners(self.parts)[component["id"]] == model.name]
        self._check_selected({component["component"] for _, component in distinct})
        loads = self.runner.ask([self._load(model, component) for model, component in distinct])
        for (_, component), record in zip(distinct, loads, strict=True):
            self.exported[component["id"]] = Exported(self._output(record, "data"))
        if not all(loads):
            for model, component in distinct:
                for dialect in self.dialects:
                    self.runner.wait_for("export", f"{model.name}/{component['component']} ({dialect})", "load")
        else:
            self._export_graphs(distinct)
        if all(len(exported.graphs) == len(self.dialects) for exported in self.exported.values()):
            return True
        for stage in ("parity", "build", "measure"):
            self.runner.wait_for(stage, "every model", "export")
        return False

    def _export_graphs(self, distinct: list[tuple[ModelParts, Mapping[str, Any]]]) -> None:
        wanted = [(model, component, dialect) for model, component in distinct for dialect in self.dialects]
        records = self.runner.ask([self._graph(*item) for item in wanted])
        for (_, component, dialect), record in zip(wanted, records, strict=True):
            blob = self._output(record, "graph")
            if blob is not None and record is not None:
                self.exported[component["id"]].graphs[dialect] = (blob, _result(record))

    def _load(self, model: ModelParts, component: Mapping[str, Any]) -> Ask:
        tensors = [{key: value for key, value in entry.items() if key != "digest"} for entry in component["tensors"]]
        layout = [[entry["name"], entry["digest"], entry.get("offset"), entry.get("borrowed")] for entry in component["tensors"]]
        fields = {"module": component["id"], "layout": sha256_bytes(canonical_json(layout))}

        def arguments(folder: Path) -> dict[str, Any]:
            return {"checkpoint": str(self.checkpoints[model.name]), "tensors": tensors,
                    "size_bytes": component["weight_bytes"], "output": str(folder / "data")}

        return self._selected(Ask("load", f"{model.name}/{component['component']}", STAGE_VERSIONS["load"], fields,
                                  arguments, {"data": "data"}, disk_bytes=component["weight_bytes"]), component)

    def _graph(self, model: ModelParts, component: Mapping[str, Any], dialect: Dialect) -> Ask:
        by_name = {other["component"]: other for other in model.split["components"]}
        layout = {entry["name"]: _place(entry, component, by_name) for entry in component["tensors"]}
        needed = {place["file"]: by_name[place["file"].removesuffix(".onnx.data")]["id"] for place in layout.values()}
        name = component["component"]
        fields = {"module": component["id"], "dialect": dialect, "layout": sha256_bytes(canonical_json(layout)),
                  "tools": _versions(EXPORT_TOOLS), "code": _source_digest("graph") + _source_digest("families")}

        def prepare(folder: Path) -> None:
            for file, module in needed.items():
                blob = self.exported[module].data
                if blob is not None:
                    self.runner.store.materialise(self._blobs[blob.sha256], folder / file)

        def arguments(folder: Path) -> dict[str, Any]:
            return {"checkpoint": str(self.checkpoints[model.name]), "component": name, "dialect": dialect,
                    "layout": layout, "threads": self.recipe.runtime.threads or 0,
                    "output": str(folder / graph_name(name, dialect))}

        return self._selected(Ask("export", f"{model.name}/{name} ({dialect})", STAGE_VERSIONS["export"], fields,
                                  arguments, {"graph": graph_name(name, dialect)}, prepare), component)

    def _check_selected(self, known: set[str]) -> None:
        for name in self.runner.options.modules:
            if name not in known:
                raise InputError(f"--module {name}: no such module; this recipe has {', '.join(sorted(known))}")

    def _selected(self, ask: Ask, component: Mapping[str, Any]) -> Ask:
        wanted = self.runner.options.modules
        if wanted and component["component"] not in wanted and not isinstance(self.runner.store.peek(ask.key), Record):
            raise InputError(f"{ask.subject}: not in the store yet and not among --module; build once without --module")
        return ask

    # ------------------------------------------------------------------------------------------------------------- parity

    def parity(self) -> bool:
        """Every model against its torch original; a FAIL ends the build.

        Raises:
            GateError: a comparison is outside the recipe's bounds.
        """
        bounds = self.recipe.parity.fp32 or Bounds(min_cosine=0.9999, max_abs=1e-3)
        asks = [self._parity(model, bounds.model_dump(mode="json")) for model in self.parts]
        records = self.runner.ask(asks)
        for record in records:
            if record is not None:
                self.rows += ParityEvidence.model_validate(_result(record)).rows
        if all(records):
            refuse_failures(ParityEvidence(rows=tuple(self.rows)))
            return True
        for stage in ("build", "measure"):
            self.runner.wait_for(stage, "every model", "parity")
        return False

    def _parity(self, model: ModelParts, bounds: Mapping[str, Any]) -> Ask:
        fields = {"graphs": self._graph_digests(model), "weights": self._weights(self.checkpoints[model.name]),
                  "bounds": dict(bounds), "steps": self.recipe.parity.steps, "kv_capacity": model.kv_capacity,
                  "tools": _versions(EXPORT_TOOLS), "runtime": _source_digest("runtime")}

        def arguments(folder: Path) -> dict[str, Any]:
            return {"folder": str(folder / "draft"), "model": model.name, "bounds": dict(bounds),
                    "steps": self.recipe.parity.steps, "checkpoint": str(self.checkpoints[model.name])}

        return Ask("parity", model.name, STAGE_VERSIONS["parity"], fields, arguments, {}, self._draft)

    def _graph_digests(self, model: ModelParts) -> dict[str, Any]:
        return {component["component"]: {dialect: blob.sha256 for dialect, (blob, _) in self.exported[component["id"]].graphs.items()}
                for component in model.split["components"]}

    def _draft(self, folder: Path) -> None:
        """A deployment that nothing vouches for yet: every dialect through ONNX Runtime, status `built`."""
        draft = self._manifest(tuple(self._draft_engines()), {})
        emit.write(folder / "draft", draft, self.runner.store, self._blobs.values())

    def _draft_engines(self) -> Iterator[Engine]:
        here = Compatibility(target_id="local-cpu", platform_kind="cpu")
        for module in compose.modules(self.parts, self.exported):
            for graph in module.graphs:
                yield Engine(module=module.id, target="draft", backend="ort", precision="fp32", dialect=graph.dialect,
                             status="built", file=None, compatibility=here)

    # ------------------------------------------------------------------------------------------------ engines and measures

    def engines(self) -> None:
        """One entry per module and target; those for this machine are opened with the recipe's settings."""
        modules = compose.modules(self.parts, self.exported)
        local = {name: choice for name, choice in self.targets.items() if find(choice.device).platform_kind == "cpu"}
        if local:
            self.runner.ask([self._engine(module, dialect) for module in modules
                             for dialect in sorted({choice.graph_dialect for choice in local.values()})])
        for name, choice in self.targets.items():
            for module in modules:
                entry = build.describe(module.id, module.component, name, choice, passed=True)  # type: ignore[arg-type]
                self.engine_entries.append(entry)
                if entry.status == "deferred":
                    self.runner.defer(f"{module.component} for {name}", entry.reason or "")

    def _engine(self, module: Any, dialect: Dialect) -> Ask:
        graph = next(graph for graph in module.graphs if graph.dialect == dialect)
        settings = self._settings().model_dump(mode="json")
        fields = {"graph": graph.file.sha256, "data": [ref.sha256 for ref in graph.data], "settings": settings,
                  "tools": _versions(RUN_TOOLS)}
        place = Path(graph.file.path)

        def prepare(folder: Path) -> None:
            for reference in (graph.file, *graph.data):
                self.runner.store.materialise(self._blobs[reference.sha256], folder / Path(reference.path).name)

        return Ask("build", f"{place.parent.name}/{module.component} ({dialect})", STAGE_VERSIONS["build"], fields,
                   lambda folder: {"path": str(folder / place.name), "dialect": dialect, "settings": settings}, {}, prepare)

    def measure(self) -> None:
        """Time the routes, where this machine can run them and the checkpoints have tokenizers."""
        runnable = any(entry.status == "parity" for entry in self.engine_entries)
        if not runnable or not all("tokenizer.json" in model.side_files for model in self.parts):
            return
        manifest = self._manifest(tuple(self.engine_entries), {})
        fields = {"manifest": sha256_bytes(manifest.model_dump_json().encode()), "tools": _versions(RUN_TOOLS),
                  "runtime": _source_digest("runtime")}

        def prepare(folder: Path) -> None:
            emit.write(folder / "draft", manifest, self.runner.store, self._blobs.values())

        [record] = self.runner.ask([Ask("measure", "routes", STAGE_VERSIONS["measure"], fields,
                                        lambda folder: {"folder": str(folder / "draft")}, {}, prepare)])
        if record is not None:
            self.measured = MeasureEvidence.model_validate(_result(record))

    # --------------------------------------------------------------------------------------------------------------- emit

    def deployment(self) -> Deployment:
        """The manifest of what was built and proven."""
        evidence = {"parity": self._evidence(ParityEvidence(rows=tuple(self.rows))),
                    "build": self._evidence(BuildEvidence(stages=tuple(sorted(self.runner.stages, key=lambda run: (run.stage, run.subject))),
                                                          tools=_versions(EXPORT_TOOLS)))}
        if self.measured is not None:
            evidence["measure"] = self._evidence(self.measured)
        return self._manifest(tuple(self.engine_entries), evidence)

    def blobs(self) -> list[Blob]:
        """Every object that the deployment may name."""
        return list(self._blobs.values())

    def _evidence(self, content: ParityEvidence | BuildEvidence | MeasureEvidence) -> Object:
        text = json.dumps(content.model_dump(mode="json"), indent=1) + "\n"
        with self.runner.store.workspace() as folder:
            path = folder / "evidence.json"
            path.write_text(text, encoding="utf-8")
            return self._keep(self.runner.store.put_file(path))

    def _manifest(self, engines: tuple[Engine, ...], evidence: Mapping[str, Object]) -> Deployment:
        models = [compose.model(parts) for parts in self.parts]
        modules = compose.modules(self.parts, self.exported)
        tasks = {name: task.models for name, task in self.recipe.tasks.items()}
        return Deployment(
            schema_version=f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}", name=self.recipe.name,
            created_by=f"msao-compile {_versions(('msao-compile',))['msao-compile']}", models=tuple(models), modules=modules,
            engines=engines, tasks=tuple(Task(name=name, models=tuple(names)) for name, names in tasks.items()),
            routes=compose.routes(tasks, {model.name: model for model in models}),
            partition_points=compose.partition_points(models, modules, self.rows), runtime=self._settings(),
            evidence={name: FileRef(path=f"evidence/{name}.json", sha256=blob.sha256, size_bytes=blob.size_bytes)
                      for name, blob in evidence.items()},
        )

    def _settings(self) -> RuntimeSettings:
        chosen = self.recipe.runtime
        return RuntimeSettings(threads=chosen.threads or 0, arena=chosen.arena, warm_up=chosen.warm_up)

    def _targets(self) -> dict[str, TargetChoice]:
        wanted = self.runner.options.targets or tuple(self.recipe.targets)
        for name in wanted:
            if name not in self.recipe.targets:
                raise InputError(f"--target {name}: no such target; the recipe has {', '.join(self.recipe.targets)}")
        for name in wanted:
            choice = self.recipe.targets[name]
            if find(choice.device).platform_kind == "cpu" and _precisions(choice) != {"fp32"}:
                raise RecipeError(f"targets.{name}.precision: only fp32 is built for local-cpu so far; set precision = \"fp32\"")
        if self.recipe.export.exclude:
            raise RecipeError("export.exclude: every module of these families is needed; remove it")
        return {name: self.recipe.targets[name] for name in wanted}

    def _put(self, path: Path) -> Object:
        digest = self.runner.inputs.digest(path)
        blob = Blob(sha256=digest, size_bytes=path.stat().st_size)
        if not self.runner.planning and not self.runner.store.path(blob).is_file():
            blob = self.runner.store.put_file(path, move=False)
        return self._keep(blob)

    def _output(self, record: Record | None, name: str) -> Object | None:
        return None if record is None else self._keep(record.outputs[name])

    def _keep(self, blob: Blob) -> Object:
        self._blobs[blob.sha256] = blob
        return Object(blob.sha256, blob.size_bytes)


def _place(entry: Mapping[str, Any], component: Mapping[str, Any], by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Where a tensor's bytes lie: in the module's own data file, or in that of the module it borrows from."""
    if "borrowed" not in entry:
        return {"file": data_name(component["component"]), "offset": entry["offset"], "shape": entry["shape"]}
    owner, name = entry["borrowed"]
    held = next(other for other in by_name[owner]["tensors"] if other["name"] == name)
    return _place(held, by_name[owner], by_name) | {"shape": entry["shape"]}


def _precisions(choice: TargetChoice) -> set[str]:
    return {choice.precision} if isinstance(choice.precision, str) else set(choice.precision.values())


def _result(record: Record) -> dict[str, Any]:
    value = record.payload["result"]
    assert isinstance(value, dict)  # every stage returns a JSON object
    return dict(value)


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _source_digest(room: str) -> str:
    """The code of a room is an input like any other: a changed line rebuilds what it made."""
    folder = Path(__file__).parent / room
    files = sorted(folder.rglob("*.py"))
    return sha256_bytes(b"".join(path.relative_to(folder).as_posix().encode() + path.read_bytes() for path in files))
