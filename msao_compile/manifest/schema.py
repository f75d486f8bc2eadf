"""`deployment.json`: what a build leaves and a device reads, as frozen models with exact errors."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SCHEMA_MAJOR = 1
SCHEMA_MINOR = 0
MANIFEST_NAME = "deployment.json"
KV_LAYOUT = "bhsd/v1"

Dialect = Literal["portable", "fused"]
Status = Literal["deferred", "built", "ran", "parity", "qualified"]
RouteName = Literal["edge", "cloud", "split", "speculate", "text"]
Verdict = Literal["PASS", "FAIL", "AMBIGUOUS"]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ":" in parts[0] or ".." in parts:
        raise ValueError(f"path {path!r} leaves the deployment folder: only relative paths below it are allowed")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """Data that never changes after it was read; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRef(Frozen):
    """A file below the deployment folder and what its bytes must be."""

    path: RelativePath
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class TensorSpec(Frozen):
    """A named tensor; symbolic dimensions carry the names of the naming document."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(Frozen):
    """One ONNX graph of a module in one dialect; weights stand in `data`, shared between dialects."""

    dialect: Dialect
    opset: int
    file: FileRef
    data: tuple[FileRef, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Module(Frozen):
    """A functional module; `id` hashes its architecture facts and the digests of its weights."""

    id: Sha256
    component: str
    params: int
    weight_bytes: int
    kv_layout: str | None = None
    graphs: tuple[Graph, ...]


class Compatibility(Frozen):
    """Where an engine may run; a tuple, never one number. `None` = does not matter for this backend."""

    target_id: str
    os: str | None = None
    architecture: str | None = None
    platform_kind: Literal["jetson", "discrete", "cpu"]
    gpu_architecture: str | None = None
    gpu_name: str | None = None
    gpu_memory_mib: int | None = None
    jetpack: str | None = None
    l4t: str | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None


class Engine(Frozen):
    """One module compiled for one target, with how far it was proven."""

    module: Sha256
    target: str
    backend: str
    precision: str
    dialect: Dialect
    status: Status
    file: FileRef | None = None
    reason: str | None = None
    compatibility: Compatibility


class DecoderFacts(Frozen):
    """What the generation loop must know about a decoder."""

    hidden_size: int
    vocab_size: int
    num_layers: int
    num_key_value_heads: int
    head_dim: int
    kv_capacity: int
    position: Literal["rope", "mrope"]


class Model(Frozen):
    """One checkpoint: its modules by component and the facts its host-side code needs."""

    name: str
    role: Literal["draft", "target"]
    family: str
    components: dict[str, Sha256]
    decoder: DecoderFacts
    image_token_id: int | None = None
    family_facts: dict[str, Any]
    tokenizer: RelativePath
    preprocessor: RelativePath
    files: tuple[FileRef, ...]


class Task(Frozen):
    """A named use of one or several models."""

    name: str
    models: tuple[str, ...]


class Route(Frozen):
    """A way to answer a request: which model, where each component runs, and what to do when that fails."""

    name: RouteName
    task: str
    model: str
    hosts: dict[str, Literal["edge", "cloud"]]
    fallback: tuple[RouteName, ...] = ()


class Proof(Frozen):
    """Evidence that the split computation equals the whole one."""

    verdict: Verdict
    max_abs: float
    argmax_agreement: float
    compared: int


class PartitionPoint(Frozen):
    """A place where a model may be cut, what crosses it, and the proof that the cut changes nothing."""

    model: str
    after: str
    tensors: tuple[TensorSpec, ...]
    bytes_per_request: dict[str, int]
    proof: Proof


class RuntimeSettings(Frozen):
    """How the engine library is set up on this deployment's hosts."""

    threads: int
    arena: bool
    warm_up: int


class Deployment(Frozen):
    """The whole manifest. Later sections are absent until the stage that proves them has run."""

    schema_version: str
    name: str
    created_by: str
    models: tuple[Model, ...]
    modules: tuple[Module, ...]
    engines: tuple[Engine, ...]
    tasks: tuple[Task, ...]
    routes: tuple[Route, ...]
    partition_points: tuple[PartitionPoint, ...]
    runtime: RuntimeSettings
    evidence: dict[str, FileRef]
    placement: dict[str, Any] | None = None
    mas: dict[str, Any] | None = None
    speculation: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_resolve(self) -> Deployment:
        ids = {module.id for module in self.modules}
        names = {model.name for model in self.models}
        for model in self.models:
            for component, module_id in model.components.items():
                if module_id not in ids:
                    raise ValueError(f"models.{model.name}.{component} names module {module_id}, which is not listed")
        for engine in self.engines:
            if engine.module not in ids:
                raise ValueError(f"an engine for {engine.target!r} names module {engine.module}, which is not listed")
        used = [(f"task {task.name!r}", model) for task in self.tasks for model in task.models]
        used += [(f"route {route.name!r}", route.model) for route in self.routes]
        for what, model_name in used:
            if model_name not in names:
                raise ValueError(f"{what} names model {model_name!r}, which is not listed")
        return self

    def model(self, name: str) -> Model:
        """The model called `name`; `KeyError` when there is none."""
        return next(model for model in self.models if model.name == name)

    def module(self, module_id: str) -> Module:
        """The module with this id; `StopIteration` cannot happen on a validated manifest."""
        return next(module for module in self.modules if module.id == module_id)

    def all_files(self) -> dict[str, FileRef]:
        """Every file the manifest names, by path: what a copy must hold and `inspect` verifies."""
        found: dict[str, FileRef] = {}
        for module in self.modules:
            for graph in module.graphs:
                found |= {ref.path: ref for ref in (graph.file, *graph.data)}
        found |= {engine.file.path: engine.file for engine in self.engines if engine.file is not None}
        for model in self.models:
            found |= {ref.path: ref for ref in model.files}
        return found | {ref.path: ref for ref in self.evidence.values()}
