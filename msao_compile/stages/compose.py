"""Compose the manifest from what the stages gave: pure functions from records to `Deployment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from msao_compile.manifest.evidence import ParityRow
from msao_compile.manifest.schema import (
    KV_LAYOUT,
    DecoderFacts,
    Dialect,
    FileRef,
    Graph,
    Model,
    Module,
    PartitionPoint,
    Proof,
    Route,
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


@dataclass
class Exported:
    """Objects of one module: its own data file, and graph and tensor facts by dialect."""

    data: Object | None
    graphs: dict[Dialect, tuple[Object, Mapping[str, Any]]] = field(default_factory=dict)


def graph_name(component: str, dialect: Dialect) -> str:
    """`<component>.onnx`, with the dialect named where it is not the portable one."""
    return f"{component}.onnx" if dialect == "portable" else f"{component}.{dialect}.onnx"


def data_name(component: str) -> str:
    """`<component>.onnx.data`: both dialects read the same weights."""
    return f"{component}.onnx.data"


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
        by_name = {component["component"]: component for component in model.split["components"]}
        for component in model.split["components"]:
            if homes[component["id"]] != model.name or component["id"] in found:
                continue
            needed = {
                component["component"],
                *(entry["borrowed"][0] for entry in component["tensors"] if "borrowed" in entry),
            }
            data = [
                _reference(f"modules/{model.name}/{data_name(name)}", exported[by_name[name]["id"]].data)
                for name in sorted(needed)
            ]
            found[component["id"]] = _module(
                model.name, component, exported[component["id"]], tuple(filter(None, data))
            )
    return tuple(found.values())


def _module(home: str, component: Mapping[str, Any], parts: Exported, data: tuple[FileRef, ...]) -> Module:
    graphs = []
    for dialect, (blob, facts) in sorted(parts.graphs.items()):
        file = FileRef(
            path=f"modules/{home}/{graph_name(component['component'], dialect)}",
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
        )
        ends = {side: tuple(TensorSpec.model_validate(spec) for spec in facts[side]) for side in ("inputs", "outputs")}
        graphs.append(Graph(dialect=dialect, opset=facts["opset"], file=file, data=data, **ends))
    return Module(
        id=component["id"],
        component=component["component"],
        params=component["params"],
        weight_bytes=component["weight_bytes"],
        kv_layout=KV_LAYOUT if component["kv"] else None,
        graphs=tuple(graphs),
    )


def _reference(path: str, blob: Object | None) -> FileRef | None:
    return (
        None
        if blob is None or blob.size_bytes == 0
        else FileRef(path=path, sha256=blob.sha256, size_bytes=blob.size_bytes)
    )


def model(parts: ModelParts) -> Model:
    """The manifest's entry of one model."""
    split = parts.split
    decoder = DecoderFacts.model_validate({**split["decoder"], "kv_capacity": parts.kv_capacity})
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
        decoder=decoder,
        components={component["component"]: component["id"] for component in split["components"]},
        image_token_id=split["host"].get("image_token_id"),
        family_facts=split["host"],
        tokenizer=f"tokenizer/{parts.name}",
        preprocessor=f"preprocessor/{parts.name}",
        files=tuple(files),
    )


def _folders(name: str) -> tuple[str, ...]:
    """Where a side file is read; `processor_config.json` describes pictures and may hold the chat template."""
    if name == "processor_config.json":
        return "preprocessor", "tokenizer"
    return ("preprocessor",) if "processor" in name else ("tokenizer",)


def routes(tasks: Mapping[str, Sequence[str]], models: Mapping[str, Model]) -> tuple[Route, ...]:
    """`edge` runs the draft model here, `cloud` the target model there, `split` the target's encoder here.

    A deployment with one model answers on every route with that model.
    """
    found: list[Route] = []
    for task, names in tasks.items():
        draft = next((name for name in names if models[name].role == "draft"), names[0])
        target = next((name for name in names if models[name].role == "target"), names[0])
        parts = list(models[target].components)
        cloud: dict[str, Literal["edge", "cloud"]] = dict.fromkeys(parts, "cloud")
        found.append(Route(name="edge", task=task, model=draft, hosts=dict.fromkeys(models[draft].components, "edge")))
        found.append(Route(name="cloud", task=task, model=target, hosts=cloud, fallback=("edge",)))
        if "vision_encoder" in cloud:
            found.append(
                Route(
                    name="split",
                    task=task,
                    model=target,
                    hosts={**cloud, "vision_encoder": "edge"},
                    fallback=("cloud", "edge"),
                )
            )
    return tuple(found)


def partition_points(
    models: Sequence[Model], split_modules: Sequence[Module], rows: Sequence[ParityRow]
) -> tuple[PartitionPoint, ...]:
    """Every cut whose proof passed, with what crosses it for one picture and 32 prompt tokens."""
    by_id = {module.id: module for module in split_modules}
    found = []
    for entry in models:
        for cut in ("vision_encoder", "embed_tokens"):
            proofs = [row for row in rows if row.model == entry.name and row.subject == f"split after {cut}"]
            if not proofs or any(row.verdict != "PASS" for row in proofs):
                continue
            worst = max(proofs, key=lambda row: row.max_abs)
            tensors = _crossing(by_id[entry.components["vision_encoder"]], entry, cut)
            proof = Proof(
                verdict=worst.verdict,
                max_abs=worst.max_abs,
                argmax_agreement=worst.argmax_agreement,
                compared=sum(row.compared for row in proofs),
            )
            found.append(
                PartitionPoint(
                    model=entry.name,
                    after=cut,
                    tensors=tensors,
                    proof=proof,
                    bytes_per_request=_bytes(by_id[entry.components["vision_encoder"]], entry, cut),
                )
            )
    return tuple(found)


def _crossing(vision: Module, entry: Model, cut: str) -> tuple[TensorSpec, ...]:
    if cut == "vision_encoder":
        ids = TensorSpec(name="input_ids", dtype="int64", shape=("sequence_length",))
        grids = (TensorSpec(name="image_grid_thw", dtype="int64", shape=("num_images", 3)),)
        return (ids, *(grids if entry.decoder.position == "mrope" else ()), *vision.graphs[0].outputs)
    axes = ("batch_size", "sequence_length")
    positions = (3, *axes) if entry.decoder.position == "mrope" else axes
    return (
        TensorSpec(name="inputs_embeds", dtype="float32", shape=(*axes, entry.decoder.hidden_size)),
        TensorSpec(name="position_ids", dtype="int64", shape=positions),
    )


def _bytes(vision: Module, entry: Model, cut: str) -> dict[str, int]:
    """Bytes for one picture and 32 text tokens where the picture's token count is fixed, per image token otherwise."""
    width = entry.decoder.hidden_size * 4
    axes = [size for size in vision.graphs[0].outputs[0].shape[:-1] if isinstance(size, int)]
    features = axes[-1] if axes else 1
    label = "one picture, 32 text tokens" if axes else "per image token"
    ids = (features + (32 if axes else 0)) * 8
    if cut == "vision_encoder":
        return {label: features * width + ids}
    return {label: (features + (32 if axes else 0)) * width + ids * (3 if entry.decoder.position == "mrope" else 1)}
