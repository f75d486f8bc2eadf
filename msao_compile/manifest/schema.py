"""`deployment.json`: what a build leaves and a device reads, as frozen models with exact errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.engine import (
    Backend,
    BuildOrder,
    Compatibility,
    Dialect,
    Engine,
    Precision,
    ShapeProfile,
    ShapeRange,
    Status,
)
from msao_compile.manifest.frozen import NEWER_MINOR, FileRef, Frozen, RelativePath, Sha256, Size
from msao_compile.manifest.mas import Mas
from msao_compile.manifest.offload import Primitives, Speculation
from msao_compile.manifest.placement import Placement

__all__ = [
    "NEWER_MINOR", "Backend", "BuildOrder", "Compatibility", "Deployment", "Dialect", "Engine", "FileRef", "Frozen",
    "Precision", "Sha256", "ShapeProfile", "ShapeRange", "Status",
]  # fmt: skip

SCHEMA_MAJOR = 2
SCHEMA_MINOR = 5
MANIFEST_NAME = "deployment.json"
KV_LAYOUT = "bhsd/v1"
GROWS = "past_sequence_length"  # the dimension along which a state grows

RouteName = Literal["edge", "cloud", "split", "speculate", "text"]
Verdict = Literal["PASS", "FAIL", "AMBIGUOUS"]
StateUpdate = Literal["in_place", "concat", "replace"]
ENCODERS = {"image": "vision_encoder", "video": "video_encoder", "audio": "audio_encoder"}
"""The component that encodes each modality."""


class TensorSpec(Frozen):
    """A named tensor; symbolic dimensions carry the names of the naming document."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class StateSpec(Frozen):
    """One tensor of a decoder's state: what goes in, what comes out, and whether it can be put back.

    `update` says how the two relate: the same buffer (`in_place`), one that grew (`concat`), another of the same size
    (`replace`). A state that is replaced holds nothing of the positions before: it cannot be rolled back.
    """

    name: str
    output: str
    dtype: str
    shape: tuple[int | str, ...]
    update: StateUpdate

    @property
    def rollback(self) -> bool:
        """Whether positions can be forgotten."""
        return self.update != "replace"


class HostCall(Frozen):
    """Index arithmetic that the host does for an encoder: a function of `runtime.host`, its settings, where its arrays
    come from, and the graph inputs that it gives.
    """

    function: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: tuple[str, ...]


class Encoder(Frozen):
    """How one modality of a request reaches its module.

    `inputs` are named as the family's processor names them. `each` says that pictures, clips or sounds are encoded one
    at a time. `placeholder` is the token that stands for features, None where none does. `outputs` are the tensors that
    the module gives, with the shape that stands for nothing given.
    """

    component: str
    modality: Literal["image", "video", "audio"]
    inputs: tuple[str, ...]
    each: bool
    host: tuple[HostCall, ...] = ()
    placeholder: int | None = None


class Graph(Frozen):
    """One ONNX graph of a module in one dialect and precision; weights stand in `data`, which graphs may share."""

    dialect: Dialect
    precision: Precision = "fp32"
    opset: int
    file: FileRef
    data: tuple[FileRef, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()


class Module(Frozen):
    """A functional module; `id` hashes its architecture facts and the digests of its weights."""

    id: Sha256
    component: str
    params: int
    weight_bytes: int
    kv_layout: str | None = None
    graphs: tuple[Graph, ...]


class DecoderFacts(Frozen):
    """What the generation loop must know about a decoder.

    `tokens` is the input whose positions are decoded. `position` says where they stand: `rope` counts up, other names
    are those of `runtime.host.rope`, None leaves it to the graph. `facts` are what such a rule reads of the config.
    `start_token` opens an answer where the prompt does not.
    """

    hidden_size: Size
    vocab_size: Size
    kv_capacity: Size
    tokens: Literal["input_ids", "decoder_input_ids"]
    position: str | None = None
    facts: dict[str, Any]
    start_token: int | None = None


class Model(Frozen):
    """One checkpoint: its modules by component and how a request reaches them; `decoder` None where it decodes nothing.

    `family` is transformers' model_type.
    """

    name: str
    role: Literal["draft", "target"]
    family: str
    components: dict[str, Sha256]
    encoders: tuple[Encoder, ...]
    decoder: DecoderFacts | None = None
    tokenizer: RelativePath
    preprocessor: RelativePath
    files: tuple[FileRef, ...]

    @property
    def placeholders(self) -> dict[str, int]:
        """The token that stands for each modality's features, where one does."""
        return {entry.modality: entry.placeholder for entry in self.encoders if entry.placeholder is not None}

    @property
    def tokenizer_digest(self) -> str:
        """Alike where token ids mean the same: the SHA-256 of tokenizer.json, else of all the tokenizer's files."""
        found = {
            PurePosixPath(file.path).name: file for file in self.files if file.path.startswith(f"{self.tokenizer}/")
        }
        if "tokenizer.json" in found:
            return found["tokenizer.json"].sha256
        return sha256_bytes(canonical_json({name: file.sha256 for name, file in found.items()}))


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

    threads: Annotated[int, Field(ge=0, le=1024)]
    arena: bool
    warm_up: Annotated[int, Field(ge=0, le=1000)]
    provider: Literal["cpu", "cuda"] = "cpu"
    """Where ONNX Runtime runs; `cuda` is the NVIDIA GPU of the machine itself."""
    cuda_graphs: bool = False
    """Capture decode steps and replay them: for decoders of the dialect `scatter` on `cuda` alone, and at the price of
    another copy of their weights for every batch size."""

    @model_validator(mode="after")
    def _graphs_are_captured_on_a_gpu(self) -> RuntimeSettings:
        if self.cuda_graphs and self.provider != "cuda":
            raise ValueError(f"cuda_graphs needs provider = cuda where it is {self.provider}: set cuda_graphs = false")
        return self


def _sizes_of(graph: Graph) -> Iterator[tuple[str, object]]:
    """What a graph's tensors say of the decoder facts, by fact."""
    shapes = {spec.name: spec.shape for spec in (*graph.inputs, *graph.outputs)}
    for name, fact in (("inputs_embeds", "hidden_size"), ("logits", "vocab_size")):
        if name in shapes:
            yield fact, next(iter(shapes[name][-1:]), None)


def _check_states(graph: Graph) -> None:
    """Each state is an input of its graph, comes out again, and grows where it can be put back."""
    taken = {spec.name: (spec.dtype, spec.shape) for spec in graph.inputs}
    given = {spec.name for spec in graph.outputs}
    for state in graph.states:
        if taken.get(state.name) != (state.dtype, state.shape) or state.output not in given:
            raise ValueError(
                f"the state {state.name} {state.shape} with {state.output} is not what goes in and out of "
                f"{graph.file.path}; build it again"
            )
        if state.rollback and GROWS not in state.shape and graph.dialect != "scatter":
            raise ValueError(f"the state {state.name} of {graph.file.path} is {state.update}, but has no {GROWS}")


class Deployment(Frozen):
    """The whole manifest. Later sections are absent until the stage that proves them has run."""

    schema_version: str
    name: str
    created_by: str
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    modules: tuple[Module, ...]
    engines: tuple[Engine, ...]
    tasks: tuple[Task, ...]
    routes: tuple[Route, ...]
    partition_points: tuple[PartitionPoint, ...]
    runtime: RuntimeSettings
    evidence: dict[str, FileRef]
    placement: Placement | None = None
    mas: Mas | None = None
    primitives: tuple[Primitives, ...] = ()
    speculation: tuple[Speculation, ...] = ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Deployment:
        self._names_resolve()
        for model in self.models:
            if (model.decoder is None) != ("decoder" not in model.components):
                raise ValueError(f"models.{model.name} has a decoder or facts of one, not both; build it again")
            for encoder in model.encoders:
                if encoder.component not in model.components:
                    raise ValueError(
                        f"models.{model.name}.encoders names {encoder.component}, which is not a component"
                    )
            for component, module_id in model.components.items():
                self._check_component(model, component, self.module(module_id))
        return self

    @staticmethod
    def _check_component(model: Model, component: str, module: Module) -> None:
        """The module is what the model takes it for, and its graphs' tensors have the sizes that the model says."""
        where = f"models.{model.name}"
        if module.component != component:
            raise ValueError(f"{where}.components.{component} names module {module.id}, which is a {module.component}")
        for graph in module.graphs:
            for fact, found in _sizes_of(graph) if model.decoder is not None else ():
                said = getattr(model.decoder, fact)
                if said != found:
                    raise ValueError(
                        f"{where}.decoder.{fact} is {said!r} where the tensors of {graph.file.path} have {found!r}"
                    )
            _check_states(graph)

    def _names_resolve(self) -> None:
        ids = {module.id for module in self.modules}
        names = {model.name for model in self.models}
        for model in self.models:
            for component, module_id in model.components.items():
                if module_id not in ids:
                    raise ValueError(f"models.{model.name}.{component} names module {module_id}, which is not listed")
        for engine in self.engines:
            if engine.module not in ids:
                raise ValueError(f"an engine for {engine.target!r} names module {engine.module}, which is not listed")
        for copy in self.placement.copies if self.placement is not None else ():
            for module_id in copy.ids:
                if module_id not in ids:
                    raise ValueError(f"placement names module {module_id} as {copy.module!r}, which is not listed")
        used = [(f"task {task.name!r}", model) for task in self.tasks for model in task.models]
        used += [(f"route {route.name!r}", route.model) for route in self.routes]
        for entry in self.speculation:
            used += [(f"speculation of {entry.task!r}", name) for name in (entry.drafter, entry.verifier)]
        if self.mas is not None:
            used += [(f"mas of {self.mas.task!r}", name) for name in (self.mas.drafter, self.mas.verifier)]
        for what, model_name in used:
            if model_name not in names:
                raise ValueError(f"{what} names model {model_name!r}, which is not listed")

    def model(self, name: str) -> Model:
        """The model called `name`.

        Raises:
            KeyError: there is none.
        """
        return {model.name: model for model in self.models}[name]

    def module(self, module_id: str) -> Module:
        """The module with this id; a validated manifest has every one it names."""
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
