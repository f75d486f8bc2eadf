"""Compose the manifest from what the stages gave: pure functions from records to `Deployment`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from msao_compile.manifest.evidence import ParityRow
from msao_compile.manifest.offload import Acceptance, Speculation
from msao_compile.manifest.schema import (
    KV_LAYOUT,
    DecoderFacts,
    Deployment,
    Dialect,
    Encoder,
    FileRef,
    Graph,
    Model,
    Module,
    PartitionPoint,
    Precision,
    Proof,
    Route,
    StateSpec,
    TensorSpec,
)


@dataclass(frozen=True)
class Object:
    """An object of the store: digest and size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class ModelParts:
    """One model of the recipe and what splitting it gave."""

    name: str
    role: Any
    split: Mapping[str, Any]
    kv_capacity: int
    side_files: Mapping[str, Object]
    archives: Mapping[str, Object] = field(default_factory=dict)


Variant = tuple[Dialect, Precision]


@dataclass(frozen=True)
class Made:
    """One graph, what it takes and gives, and the data file of its own where it does not read the module's."""

    graph: Object
    facts: Mapping[str, Any]
    data: Object | None = None


@dataclass
class Exported:
    """Objects of one module: its data files by name, and its graphs."""

    data: dict[str, Object] = field(default_factory=dict)
    graphs: dict[Variant, Made] = field(default_factory=dict)


SUFFIXES: dict[Precision, str] = {
    "fp32": "", "fp16": "_fp16", "bf16": "_bf16", "int8": "_int8", "fp8": "_fp8", "int4": "_q4",
}  # fmt: skip
DATA = ".onnx.data"
"""Ends the name of a file that was written for a module; a checkpoint's file keeps its own."""
TEXT_TOKENS = 32
"""Of the question in every class of requests."""


def graph_name(component: str, dialect: Dialect, precision: Precision = "fp32") -> str:
    """`<component>.onnx`, with dialect and precision named where they are not `portable` and fp32."""
    kind = "" if dialect == "portable" else f".{dialect}"
    return f"{component}{kind}{SUFFIXES[precision]}.onnx"


def data_name(component: str) -> str:
    """`<component>.onnx.data`: both dialects read the same weights."""
    return f"{component}{DATA}"


def owners(models: Sequence[ModelParts]) -> dict[str, str]:
    """Which model's folder holds each module: the first that has it."""
    found: dict[str, str] = {}
    for model in models:
        for component in model.split["components"]:
            found.setdefault(component["id"], model.name)
    return found


def modules(models: Sequence[ModelParts], exported: Mapping[str, Exported]) -> tuple[Module, ...]:
    """Every distinct module once, with the files that its graphs need."""
    homes, found = owners(models), {}
    for model in models:
        for component in model.split["components"]:
            if homes[component["id"]] != model.name or component["id"] in found:
                continue
            found[component["id"]] = _module(model.name, component, exported[component["id"]])
    return tuple(found.values())


def _module(home: str, component: Mapping[str, Any], parts: Exported) -> Module:
    def reference(name: str, blob: Object) -> FileRef:
        return FileRef(path=f"modules/{home}/{name}", sha256=blob.sha256, size_bytes=blob.size_bytes)

    shared = tuple(reference(name, blob) for name, blob in sorted(parts.data.items()))
    graphs = []
    for (dialect, precision), made in sorted(parts.graphs.items()):
        name, facts = graph_name(component["component"], dialect, precision), made.facts
        data = shared if made.data is None else (reference(f"{name}.data", made.data),)
        inputs, outputs = (
            tuple(TensorSpec.model_validate(spec) for spec in facts[side]) for side in ("inputs", "outputs")
        )
        states = tuple(StateSpec.model_validate(state) for state in facts["states"])
        graphs.append(
            Graph(
                dialect=dialect, precision=precision, opset=facts["opset"], file=reference(name, made.graph),
                data=data, states=states, inputs=inputs, outputs=outputs,
            )
        )  # fmt: skip
    return Module(
        id=component["id"],
        component=component["component"],
        params=component["params"],
        weight_bytes=component["weight_bytes"],
        kv_layout=KV_LAYOUT if component["kv"] else None,
        graphs=tuple(graphs),
    )


def model(parts: ModelParts) -> Model:
    """The manifest's entry of one model."""
    split = parts.split
    files = []
    for name, blob in parts.side_files.items():
        files += [
            FileRef(path=f"{folder}/{parts.name}/{name}", sha256=blob.sha256, size_bytes=blob.size_bytes)
            for folder in _folders(name)
        ]
    return Model(
        name=parts.name,
        role=parts.role,
        family=split["family"],
        decoder=_decoder(split, parts.kv_capacity),
        encoders=tuple(Encoder.model_validate(entry) for entry in split["encoders"]),
        components={component["component"]: component["id"] for component in split["components"]},
        tokenizer=f"tokenizer/{parts.name}",
        preprocessor=f"preprocessor/{parts.name}",
        files=tuple(files),
    )


def _decoder(split: Mapping[str, Any], kv_capacity: int) -> DecoderFacts | None:
    if split["tokens"] is None:
        return None
    return DecoderFacts(
        hidden_size=split["hidden_size"],
        vocab_size=split["vocab_size"],
        kv_capacity=kv_capacity,
        tokens=split["tokens"],
        position=split["position"],
        facts=split["facts"],
        start_token=split["start_token"],
    )


def _folders(name: str) -> tuple[str, ...]:
    """Where a side file is read; `processor_config.json` describes pictures and may hold the chat template."""
    if name == "processor_config.json":
        return "preprocessor", "tokenizer"
    return ("preprocessor",) if "processor" in name else ("tokenizer",)


def routes(
    tasks: Mapping[str, Sequence[str]], models: Mapping[str, Model], fixed: Collection[str] = ()
) -> tuple[Route, ...]:
    """`edge` runs the draft model here, `cloud` the target model there, `split` the target's encoder here.

    `speculate` has the draft model's drafts verified there, unless a decoder is one of `fixed`: modules whose state
    cannot be rolled back. A deployment with one model answers on every route with that model.
    """
    found: list[Route] = []
    for task, names in tasks.items():
        draft = next((name for name in names if models[name].role == "draft"), names[0])
        target = next((name for name in names if models[name].role == "target"), names[0])
        parts = list(models[target].components)
        cloud: dict[str, Literal["edge", "cloud"]] = dict.fromkeys(parts, "cloud")
        found.append(Route(name="edge", task=task, model=draft, hosts=dict.fromkeys(models[draft].components, "edge")))
        found.append(Route(name="cloud", task=task, model=target, hosts=cloud, fallback=("edge",)))
        encoders = {component: "edge" for component in parts if component.endswith("encoder")}
        if encoders and models[target].decoder is not None:
            hosts: dict[str, Literal["edge", "cloud"]] = {**cloud, **dict.fromkeys(encoders, "edge")}
            found.append(Route(name="split", task=task, model=target, hosts=hosts, fallback=("cloud", "edge")))
        decoders = {models[name].components.get("decoder") for name in (draft, target)}
        if speculates(models[draft], models[target]) and not decoders & {*fixed}:
            found.append(Route(name="speculate", task=task, model=target, hosts=cloud, fallback=("cloud", "edge")))
        if encoders and "encoder" not in parts and models[draft].decoder is not None:
            spoken = {name: "edge" for name in models[draft].components if name not in encoders}
            found.append(Route(name="text", task=task, model=draft, hosts=spoken))  # type: ignore[arg-type]
    return tuple(found)


def speculates(draft: Model, target: Model) -> bool:
    """Whether one model can draft for another: both decode text, and token ids mean the same to both."""
    facts = [model.decoder for model in (draft, target)]
    decode = all(fact is not None and fact.tokens == "input_ids" for fact in facts)
    told = any(file.path.startswith(f"{draft.tokenizer}/") for file in draft.files)
    return draft.name != target.name and decode and told and draft.tokenizer_digest == target.tokenizer_digest


def speculation(
    tasks: Mapping[str, Sequence[str]], routes: Sequence[Route], role: Mapping[str, str]
) -> tuple[Speculation, ...]:
    """How each task speculates before anything was fitted: short rounds, drafts that are thought worth a try."""
    guess = Acceptance(from_confidence=(0.0,), chance=(0.9,))
    return tuple(
        Speculation(
            task=route.task, drafter=next(name for name in tasks[route.task] if role[name] == "draft"),
            verifier=route.model, rule="gumbel", draft_tokens=4, confidence=0.3, confidence_min=0.05,
            confidence_max=0.9, acceptance=guess,
        )
        for route in routes
        if route.name == "speculate"
    )  # fmt: skip


def used(deployment: Deployment) -> Deployment:
    """Without the graphs of lower precision that no engine is made of, as where fp32 was faster."""
    named = {(engine.module, engine.dialect, engine.precision) for engine in deployment.engines}
    modules = [
        module.model_copy(
            update={
                "graphs": tuple(
                    graph for graph in module.graphs
                    if graph.precision == "fp32" or (module.id, graph.dialect, graph.precision) in named
                )
            }
        )
        for module in deployment.modules
    ]  # fmt: skip
    return deployment.model_copy(update={"modules": tuple(modules)})


def partition_points(
    models: Sequence[Model],
    split_modules: Sequence[Module],
    rows: Sequence[ParityRow],
    classes: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> tuple[PartitionPoint, ...]:
    """Every cut whose proof passed, with what crosses it by class of requests; `classes[model]` has their tokens."""
    by_id = {module.id: module for module in split_modules}
    found = []
    for entry in models:
        for cut in entry.components:
            proofs = [row for row in rows if row.model == entry.name and row.subject == f"split after {cut}"]
            if not proofs or any(row.verdict != "PASS" for row in proofs):
                continue
            worst = max(proofs, key=lambda row: row.max_abs)
            proof = Proof(
                verdict=worst.verdict,
                max_abs=worst.max_abs,
                argmax_agreement=worst.argmax_agreement,
                compared=sum(row.compared for row in proofs),
            )
            tensors = _crossing({name: by_id[held] for name, held in entry.components.items()}, cut)
            sizes = {label: _bytes(tensors, count) for label, count in sorted(classes.get(entry.name, {}).items())}
            found.append(
                PartitionPoint(model=entry.name, after=cut, tensors=tensors, proof=proof, bytes_per_request=sizes)
            )
    return tuple(found)


def _crossing(modules: Mapping[str, Module], cut: str) -> tuple[TensorSpec, ...]:
    """What modules on the far side take that modules on the near side give, and the tokens where those cross too."""
    near = [name for name in modules if name.endswith("encoder") or name == cut]
    given = {spec.name: spec for name in near for spec in modules[name].graphs[0].outputs}
    far = [spec for name, module in modules.items() if name not in near for spec in module.graphs[0].inputs]
    crossing = {spec.name: given[spec.name] for spec in far if spec.name in given}
    wanted = ("position_ids",) if cut == "embed_tokens" else ("input_ids", "decoder_input_ids")
    crossing |= {spec.name: spec for spec in far if spec.name in wanted}
    return tuple(crossing.values())


def _bytes(tensors: Sequence[TensorSpec], features: int) -> int:
    """Bytes of all tensors in a request with so many tokens that stand for its medium, and a short text beside them."""
    sizes = {"float32": 4, "int64": 8, "int32": 4, "bool": 1}
    return sum(sizes.get(spec.dtype, 4) * _elements(spec, features) for spec in tensors)


def _elements(spec: TensorSpec, features: int) -> int:
    if spec.name.partition(".")[0].endswith("_features"):
        return features * next((size for size in reversed(spec.shape) if isinstance(size, int)), 1)
    lengths = {"batch_size": 1, "sequence_length": features + TEXT_TOKENS, "text_sequence_length": TEXT_TOKENS}
    return math.prod(size if isinstance(size, int) else lengths.get(size, 1) for size in spec.shape)
