"""From a torch piece to ONNX IR: each distinct layer of a repeated stack is traced once and instantiated by name.

Parameters are inputs of every trace, so no weight is read, folded or copied here; they become named initialisers whose
bytes are written by another stage. Exporting 30 equal layers costs two traces: the frame around them and one layer.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from msao_compile.errors import StageError
from msao_compile.graph.attention import OPSETS, LayerKV, installed
from msao_compile.manifest.schema import Dialect

logger = logging.getLogger(__name__)
LAYER_DOMAIN = "msao.layer"
Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class KVExample:
    """Example past of one layer, [batch, kv_heads, past, head_dim]."""

    key: torch.Tensor
    value: torch.Tensor


class _Stub(nn.Module):
    """Stands for one layer while the frame is traced, and remembers what it was called with."""

    def __init__(self, layer: nn.Module, stack: str, index: int) -> None:
        super().__init__()
        self.held = (layer,)
        self.stack, self.index = stack, index
        self.calls: list[Any] = []

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls.append((hidden, args, kwargs))
        tensors, _ = flatten_call(hidden, args, kwargs)
        attributes: dict[str, Any] = {"stack": self.stack, "index": self.index}
        return torch.onnx.ops.symbolic(
            f"{LAYER_DOMAIN}::Layer", tensors, attributes, dtype=hidden.dtype, shape=hidden.shape, version=1
        )


def flatten_call(hidden: torch.Tensor, args: Any, kwargs: Any) -> tuple[list[torch.Tensor], Any]:
    """The tensors of a layer call in order, and how to put others in their places."""
    leaves, tree = pytree.tree_flatten((hidden, args, kwargs))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def rebuild(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, Any, Any]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        rebuilt: tuple[torch.Tensor, Any, Any] = pytree.tree_unflatten(filled, tree)
        return rebuilt

    return [leaves[place] for place in places], rebuild


class _Functional(nn.Module):
    """Calls `body(parameters, inputs)` where both are plain inputs of the trace."""

    def __init__(self, body: Callable[[Tensors, Tensors], Any]) -> None:
        super().__init__()
        self.body = body

    def forward(self, parameters: Tensors, inputs: Tensors) -> Any:
        return self.body(parameters, inputs)


def trace(
    body: Callable[[Tensors, Tensors], Any], parameters: Tensors, inputs: Tensors, shapes: Shapes, dialect: Dialect
) -> ir.Model:
    """Run torch.onnx over `body`. Inputs of the result are the parameters and then the inputs, by name.

    Raises:
        StageError: torch could not export it, or gave another opset than asked for.
    """
    dynamic = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if isinstance(size, str)} or None
        for name, shape in shapes.items()
    }
    opset = OPSETS[dialect]
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet):
            program = torch.onnx.export(
                _Functional(body).eval(),
                kwargs={"parameters": parameters, "inputs": inputs},
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=[*parameters, *inputs],
                dynamic_shapes={
                    "parameters": dict.fromkeys(parameters),
                    "inputs": {key: dynamic[key] for key in inputs},
                },
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise StageError(f"torch.onnx could not export: {str(cause).strip().splitlines()[0]}") from error
    if program is None or program.model.opset_imports.get("") != opset:
        got = None if program is None else program.model.opset_imports.get("")
        raise StageError(f"torch.onnx gave opset {got} where {opset} was asked for")
    return program.model


def trace_frame(
    module: nn.Module, stacks: tuple[str, ...], examples: Sequence[Tensors], shapes: Shapes, dialect: Dialect
) -> tuple[ir.Model, dict[str, list[_Stub]]]:
    """Trace `module` with every layer of `stacks` replaced by one stub node."""
    stubs = {
        stack: [_Stub(layer, stack, index) for index, layer in enumerate(_layers(module, stack))] for stack in stacks
    }
    with _replaced(module, stubs), installed(dialect, lambda: None, module):

        def body(parameters: Tensors, values: Tensors) -> Any:
            return torch.func.functional_call(module, parameters, kwargs=values, tie_weights=False)

        own = {name: empty_like(value) for name, value in module.named_parameters(remove_duplicate=False)}
        graph = trace(body, own, examples[0], shapes, dialect)
        for stub in [stub for layers in stubs.values() for stub in layers]:
            stub.calls.clear()  # those of the trace held symbolic tensors; the next ones are concrete
        with torch.no_grad():
            for example in examples:
                body(own, example)
    return graph, stubs


def _layers(module: nn.Module, stack: str) -> list[nn.Module]:
    return list(module.get_submodule(stack).children())


@contextlib.contextmanager
def _replaced(module: nn.Module, stubs: Mapping[str, list[_Stub]]) -> Iterator[None]:
    for stack, layers in stubs.items():
        _set(module, stack, nn.ModuleList(layers))
    try:
        yield
    finally:
        for stack, layers in stubs.items():
            _set(module, stack, nn.ModuleList(stub.held[0] for stub in layers))


def _set(module: nn.Module, path: str, value: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, value)


def empty_like(parameter: torch.Tensor) -> torch.Tensor:
    """Untouched memory of the same shape: virtual address space, no resident bytes."""
    return torch.empty(parameter.shape, dtype=torch.float32)


def trace_layer(stub: _Stub, kv: KVExample | None, dialect: Dialect) -> tuple[ir.Model, list[str]]:
    """Trace one layer with the calls its stub remembered: an axis that differs between them is dynamic.

    Graph inputs: the layer's parameters, then its tensors in call order, then past key and value. Outputs: hidden
    states, then present key and value. Returns the graph and the parameters' names.
    """
    layer = stub.held[0]
    tensors, rebuild = flatten_call(*stub.calls[0])
    others, _ = flatten_call(*stub.calls[1])
    held: list[LayerKV | None] = [None]

    def body(parameters: Tensors, values: Tensors) -> Any:
        hidden, args, kwargs = rebuild([values[f"t{index}"] for index in range(len(tensors))])
        if kv is not None:
            held[0] = LayerKV(dialect, values["past_key"], values["past_value"])
            kwargs = kwargs | {"past_key_values": held[0], "use_cache": True}
        output = torch.func.functional_call(layer, parameters, (hidden, *args), kwargs, tie_weights=False)
        output = output[0] if isinstance(output, tuple) else output
        if held[0] is None:
            return output
        if held[0].present is None:
            raise StageError(f"layer {type(layer).__name__} never used its KV cache")
        return (output, *held[0].present)

    inputs = {f"t{index}": tensor for index, tensor in enumerate(tensors)}
    shapes: Shapes = {
        name: _compare(tensor, other) for (name, tensor), other in zip(inputs.items(), others, strict=True)
    }
    if kv is not None:
        inputs |= {"past_key": kv.key, "past_value": kv.value}
        shapes |= dict.fromkeys(("past_key", "past_value"), ("b", kv.key.shape[1], "p", kv.key.shape[3]))
    parameters = {name: empty_like(value) for name, value in layer.named_parameters()}
    with installed(dialect, lambda: held[0], layer):
        return trace(body, parameters, inputs, shapes, dialect), list(parameters)


def _compare(tensor: torch.Tensor, other: torch.Tensor) -> tuple[int | str, ...]:
    pairs = enumerate(zip(tensor.shape, other.shape, strict=True))
    return tuple(size if size == changed else f"axis{axis}" for axis, (size, changed) in pairs)
