"""Names and types of what modules take and give, and the archive in which their graphs wait for their weights."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from msao_compile.manifest.digest import canonical_json, sha256_bytes

ENCODED = {"vision_encoder": "image_features", "video_encoder": "video_features", "audio_encoder": "audio_features",
           "encoder": "encoder_states", "text_encoder": "text_features"}  # fmt: skip
EMBEDS = "inputs_embeds"
CROSS = "cross_key_values"


def name_ends(parts: Mapping[str, ir.Model], kept: Collection[str] = ()) -> None:
    """Give what crosses between modules the names that users of other tools know.

    Features get `image_features`, `video_features` or `audio_features`; what a decoder takes straight from an encoder
    is keys and values of cross-attention; the embedding's first tensor is `inputs_embeds`. Further ones of a kind are
    numbered, and those in `kept` are called what they are. A module that takes features also runs without any: that
    axis of its input is dynamic.
    """
    takers: dict[str, set[str]] = {}
    for component, part in parts.items():
        for value in part.graph.inputs:
            takers.setdefault(str(value.name), set()).add(component)
    new: dict[str, str] = {}
    counts: dict[str, int] = {}
    for component, part in parts.items():
        crossing = [value for value in part.graph.outputs if value.name in takers and value.name not in kept]
        for value in sorted(crossing, key=lambda value: not _has_width(value)):
            stem = _stem(component, takers[str(value.name)])
            number = counts.get(stem, 0)
            counts[stem] = number + 1
            new[str(value.name)] = stem if number == 0 else f"{stem}.{number}"
    for component, part in parts.items():
        taken = {str(value.name) for value in part.graph.inputs}
        for value in [*part.graph.inputs, *part.graph.outputs]:
            value.name = new.get(str(value.name), value.name)
        if component not in ("vision_encoder", "video_encoder", "audio_encoder"):
            _loosen(part.graph, {new[name] for name in taken if name in new})
    for part in parts.values():
        _unique(part.graph)
        for value in [*part.graph.inputs, *part.graph.outputs]:
            _name_axes(value)


def _has_width(value: ir.Value) -> bool:
    """Whether a value can be embeddings or features: rows of a known width, as masks and lengths are not."""
    shape = tuple(value.shape or ())
    return value.dtype == ir.DataType.FLOAT and len(shape) > 1 and isinstance(shape[-1], int)


def _stem(component: str, takers: set[str]) -> str:
    if component == "embed_tokens":
        return EMBEDS
    if component in ENCODED and takers <= {"decoder"}:
        return CROSS
    return ENCODED.get(component, component)


def _loosen(graph: ir.Graph, names: set[str]) -> None:
    """Let the first axis of features vary where it came out as a number: with no picture there are none.

    Not where the last axis varies: those features lie across, as a dual encoder multiplies them, and the first axis is
    their width.
    """
    loose = False
    for value in graph.inputs:
        stem = str(value.name)
        is_features = value.name in names and stem.partition(".")[0] in ENCODED.values()
        if is_features and value.shape and all(isinstance(value.shape[axis], int) for axis in (0, -1)):
            value.shape = ir.Shape([f"num_{stem.replace('.', '_')}", *value.shape[1:]])
            loose = True
    if loose:
        for node in graph:
            for output in node.outputs:
                if not output.is_graph_output():
                    output.shape = None


def _unique(graph: ir.Graph) -> None:
    """Inner values whose name an end has taken get another."""
    ends = {value.name for value in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
    for node in graph:
        for output in node.outputs:
            if not output.is_graph_output() and output.name in ends:
                output.name = f"{output.name}_inner"


def _name_axes(value: ir.Value) -> None:
    """An axis of unknown length gets a name after the value."""
    if value.shape is not None:
        known = [size if isinstance(size, int) else size.value for size in value.shape]
        value.shape = ir.Shape(
            [f"{value.name}_axis{axis}" if size is None else size for axis, size in enumerate(known)]
        )


def spec(value: ir.Value) -> dict[str, Any]:
    """Name, type and shape of an input or output."""
    return {
        "name": value.name,
        "dtype": value.dtype.numpy().name if value.dtype is not None else "float32",
        "shape": [size if isinstance(size, int) else size.value for size in value.shape or ()],
    }


def digest(model: ir.Model) -> str:
    """What a graph computes, whatever its values and weights are called."""
    graph = model.graph
    numbers: dict[ir.Value, int] = {}
    for value in graph.inputs:
        numbers[value] = len(numbers)
    facts: list[Any] = [sorted(model.opset_imports.items()), [str(spec(value)["shape"]) for value in graph.inputs]]
    for node in graph:
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        facts.append([node.domain, node.op_type, attributes, [_number(value, numbers) for value in node.inputs]])
        for output in node.outputs:
            numbers[output] = len(numbers)
    facts.append([numbers.get(value) for value in graph.outputs])
    return sha256_bytes(canonical_json(facts))


def _number(value: ir.Value | None, numbers: dict[ir.Value, int]) -> Any:
    if value is None:
        return None
    if value.const_value is not None and value not in numbers:
        array = value.const_value.numpy()
        return [str(array.dtype), list(array.shape), sha256_bytes(array.tobytes())]
    return numbers.setdefault(value, len(numbers))


def weights(model: ir.Model) -> list[str]:
    """Names of the initialisers that have no values yet, in the order of their use."""
    used = [value for node in model.graph for value in node.inputs if value is not None]
    named = dict.fromkeys(str(value.name) for value in used if value.is_initializer() and value.const_value is None)
    return list(named)


def write_archive(parts: Mapping[str, ir.Model], path: Path) -> None:
    """All graphs in one file; a weight without values becomes an input until `read_archive`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for component, part in parts.items():
            graph = part.graph
            for name in weights(part):
                graph.inputs.append(graph.initializers.pop(name))
            entry = zipfile.ZipInfo(f"{component}.onnx")  # no time of day: equal graphs give equal bytes
            archive.writestr(entry, ir.to_proto(part).SerializeToString(deterministic=True))


def read_archive(path: Path, component: str, names: set[str]) -> ir.Model:
    """One module's graph; `names` are its weights, again initialisers without values."""
    import onnx

    with zipfile.ZipFile(path) as archive:
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(archive.read(f"{component}.onnx")))
    for value in [value for value in model.graph.inputs if value.name in names]:
        model.graph.inputs.remove(value)
        model.graph.initializers[str(value.name)] = value
    return model
