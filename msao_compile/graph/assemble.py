"""Put traced layers in the places of their stubs: one ONNX graph with named weights, KV inputs and checked names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import nn

from msao_compile.graph.trace import LAYER_DOMAIN, KVExample, Tensors, trace_frame, trace_layer
from msao_compile.manifest.schema import Dialect, TensorSpec

logger = logging.getLogger(__name__)
_IGNORED = {"layer_idx", "training", "layer_id", "idx"}


@dataclass(frozen=True)
class Request:
    """What to export: a module, its named inputs and outputs, its repeated stacks, and the KV shape of one layer."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    examples: tuple[Tensors, Tensors]  # of different sizes in every dynamic dimension
    stacks: tuple[str, ...]
    kv: tuple[int, int, int] | None  # layers, key-value heads, head size
    past: int
    dialect: Dialect


def export(request: Request) -> ir.Model:
    """One ONNX IR model whose weights are uninitialised initialisers named as in `request.module`.

    Raises:
        StageError: torch could not trace the frame or a layer.
    """
    shapes = {spec.name: spec.shape for spec in request.inputs}
    frame, stubs = trace_frame(request.module, request.stacks, request.examples, shapes, request.dialect)
    graph = frame.graph
    kv = _kv_example(request)
    functions: dict[str, tuple[ir.Function, list[str]]] = {}
    past: list[ir.Value] = []
    present: list[ir.Value] = []
    for node in [node for node in graph if node.domain == LAYER_DOMAIN]:
        stub = stubs[node.attributes["stack"].as_string()][node.attributes["index"].as_int()]
        signature = layer_signature(stub.held[0], node, stub.calls[0])
        if signature not in functions:
            model, names = trace_layer(stub, kv, request.dialect)
            functions[signature] = (_as_function(model, f"Layer{len(functions)}"), names)
            frame.functions[functions[signature][0].identifier()] = functions[signature][0]
        _instantiate(graph, node, *functions[signature], f"{stub.stack}.{stub.index}", (past, present))
    logger.debug("%d distinct layers traced for %d", len(functions), sum(map(len, stubs.values())))
    _name_kv(past, present, request)
    graph.inputs.extend(past)
    graph.outputs.extend(present)
    _weights_to_initializers(graph, {name for name, _ in request.module.named_parameters(remove_duplicate=False)})
    _clean(frame)
    _name_ends(graph, request)
    return frame


def layer_signature(layer: nn.Module, node: ir.Node, call: Any) -> str:
    """Equal for two layers exactly when the same traced graph serves both.

    Covers module types, parameter shapes, every plain attribute and function (but the layer's own index) and the call's
    structure.
    """
    facts: list[Any] = []
    for name, part in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, int | float | str | bool | tuple) and key not in _IGNORED and key[0] != "_"
        }
        functions = {key: value.__qualname__ for key, value in vars(part).items() if hasattr(value, "__qualname__")}
        facts.append((name, type(part).__qualname__, sorted(map(repr, [*plain.items(), *functions.items()]))))
    facts += [(name, tuple(value.shape)) for name, value in layer.named_parameters()]
    buffers = [(name, tuple(value.flatten().tolist())) for name, value in layer.named_buffers()]
    hidden, args, kwargs = call
    others = [(key, repr(value)) for key, value in sorted(kwargs.items()) if not _holds_tensor(value)]
    return repr((facts, buffers, len(node.inputs), hidden.ndim, len(args), others))


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(value))


def _kv_example(request: Request) -> KVExample | None:
    if request.kv is None:
        return None
    _, heads, size = request.kv
    batch = next(iter(request.examples[0].values())).shape[0]
    shape = (batch, heads, request.past, size)
    return KVExample(torch.zeros(shape), torch.zeros(shape))


def _as_function(model: ir.Model, name: str) -> ir.Function:
    """A traced layer as an ONNX function: constants inside, everything else an input."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        constant = ir.node("Constant", [], {"value": value.const_value}, name=f"const_{value.name}")
        constant.outputs[0].name = f"{value.name}_constant"
        constant.outputs[0].type, constant.outputs[0].shape = value.type, value.shape
        value.replace_all_uses_with(constant.outputs[0])
        graph.insert_before(graph[0], constant)
    graph.initializers.clear()
    return ir.Function(LAYER_DOMAIN, name, graph=graph, attributes=[])


def _instantiate(
    graph: ir.Graph,
    node: ir.Node,
    function: ir.Function,
    names: list[str],
    prefix: str,
    kv: Any,
) -> None:
    """Replace a stub by a call of the layer function with this layer's own weights and KV."""
    past_values, present_values = kv
    weights = [_weight(graph, f"{prefix}.{name}") for name in names]
    tensors = list(node.inputs)
    own = [ir.Value(name="past") for _ in range(len(function.inputs) - len(weights) - len(tensors))]
    call = ir.Node(
        LAYER_DOMAIN, function.name, [*weights, *tensors, *own], num_outputs=len(function.outputs), name=prefix
    )
    past_values.extend(own)
    present_values.extend(call.outputs[1:])
    call.outputs[0].name = f"{prefix}.output"
    for index, value in enumerate(call.outputs[1:]):
        value.name = f"{prefix}.present{index}"
    ir.convenience.replace_nodes_and_values(graph, node, [node], [call], node.outputs, call.outputs[:1])


def _weight(graph: ir.Graph, name: str) -> ir.Value:
    held = next((value for value in graph.inputs if value.name == name), None)
    if held is None:
        held = ir.Value(name=name)
        graph.inputs.append(held)
    return held


def _name_kv(past: Sequence[ir.Value], present: Sequence[ir.Value], request: Request) -> None:
    if request.kv is None:
        return
    _, heads, size = request.kv
    after = "total_sequence_length" if request.dialect == "portable" else "past_sequence_length"
    for index, (before, now) in enumerate(zip(past, present, strict=True)):
        layer, kind = index // 2, ("key", "value")[index % 2]
        for value, name, length in ((before, "past_key_values", "past_sequence_length"), (now, "present", after)):
            value.name = f"{name}.{layer}.{kind}"
            value.dtype = ir.DataType.FLOAT
            value.shape = ir.Shape(["batch_size", heads, length, size])


def _weights_to_initializers(graph: ir.Graph, names: set[str]) -> None:
    for value in [value for value in graph.inputs if value.name in names]:
        graph.inputs.remove(value)
        if value.uses():
            graph.initializers[str(value.name)] = value


def _clean(model: ir.Model) -> None:
    passes = ir.passes.Sequential(
        common.InlinePass(),
        common.RemoveUnusedFunctionsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),  # the layers' equal constants; weights have no values yet
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    )
    passes(model)


def _name_ends(graph: ir.Graph, request: Request) -> None:
    """Give inputs and outputs their promised names, types and symbolic dimensions."""
    by_name = {value.name: value for value in graph.inputs}
    for spec in request.inputs:
        by_name[spec.name].shape = ir.Shape(list(spec.shape))
    for spec, value in zip(request.outputs, graph.outputs, strict=False):
        value.name = spec.name
        value.shape = ir.Shape(list(spec.shape))
