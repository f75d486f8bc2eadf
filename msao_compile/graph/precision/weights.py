"""Weights that are larger than memory: read where they lie, changed one at a time, written into one data file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from msao_compile.errors import DamagedFile, DeploymentError
from msao_compile.graph.precision.plan import LARGEST

INLINE_BYTES = 256
"""Tensors up to this size stay in the graph: shapes, axes and scalars, which parsers want to see."""
ALIGNMENT = 64
CHUNK = 1 << 22
"""Numbers that are converted at once."""


def opened(path: Path) -> ir.Model:
    """A graph whose weights stay in their data files, wherever those are.

    Raises:
        DeploymentError: there is no graph at `path`.
        DamagedFile: a data file is missing or shorter than a weight's end.
    """
    if not path.is_file():
        raise DeploymentError(f"there is no graph {path}: build the deployment again")
    model: ir.Model = ir.load(path)
    sizes: dict[Path, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = _located(tensor, path.parent, sizes)
    return model


def _located(tensor: ir.ExternalTensor, folder: Path, sizes: dict[Path, int]) -> ir.ExternalTensor:
    """The same tensor by its full path: onnx_ir reads no file with several hard links from a folder it is given."""
    file = folder / tensor.location
    if file not in sizes:
        sizes[file] = file.stat().st_size if file.is_file() else -1
    length = tensor.length or tensor.nbytes
    if (tensor.offset or 0) + length > sizes[file]:
        problem = "is missing" if sizes[file] < 0 else "ends too early"
        raise DamagedFile(f"data file {file} {problem}: weight {tensor.name!r} needs it; copy or build it again")
    return ir.ExternalTensor(
        str(file.absolute()), tensor.offset, length, tensor.dtype, shape=tensor.shape, name=str(tensor.name)
    )


def merge_tied(model: ir.Model) -> None:
    """After: weights that are the same bytes in the same shape are one constant, under the first one's name."""
    first: dict[Any, ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not value.is_graph_output():
            kept = first.setdefault((_source(tensor), tensor.shape.numpy()), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del model.graph.initializers[name]


def files(model: ir.Model) -> set[Path]:
    """The data files that a graph's weights lie in."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return {Path(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def array(tensor: ir.TensorProtocol) -> np.ndarray:
    """A tensor's numbers; those of a data file are mapped, not read."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8:
        shape = tensor.shape.numpy()
        if not math.prod(shape):
            return np.empty(shape, tensor.dtype.numpy())
        return np.memmap(tensor.location, tensor.dtype.numpy(), "r", offset=tensor.offset or 0, shape=shape)
    return np.asarray(tensor.numpy())


def cast(tensor: ir.TensorProtocol, kind: ir.DataType, name: str) -> ir.LazyTensor:
    """The tensor in a half type, made when it is written; finite numbers beyond the type's range become its last."""

    def made() -> ir.TensorProtocol:
        return ir.Tensor(rounded(array(tensor), kind), dtype=kind, name=name)

    return ir.LazyTensor(made, kind, ir.Shape(tensor.shape.numpy()), name=name)


def rounded(numbers: np.ndarray, kind: ir.DataType) -> np.ndarray:
    """float32 numbers of any shape in a half type; finite stays finite."""
    most = np.float32(LARGEST[kind])
    source, target = numbers.reshape(-1), np.empty(numbers.size, kind.numpy())
    for start in range(0, source.size, CHUNK):
        part = np.asarray(source[start : start + CHUNK], np.float32)
        inside = np.where(np.isfinite(part), np.clip(part, -most, most), part)
        target[start : start + CHUNK] = inside.astype(kind.numpy())
    return target.reshape(numbers.shape)


def lazy(name: str, kind: ir.DataType, shape: tuple[int, ...], made: Callable[[], np.ndarray]) -> ir.LazyTensor:
    """A tensor whose numbers are computed when it is written."""
    return ir.LazyTensor(lambda: ir.Tensor(made(), dtype=kind, name=name), kind, ir.Shape(shape), name=name)


def write(model: ir.Model, output: Path) -> int:
    """Write graph and `<output>.data`, one weight after the other; returns the bytes of both files."""
    data = output.with_name(f"{output.name}.data")
    output.parent.mkdir(parents=True, exist_ok=True)
    for old in (output, data):
        old.unlink(missing_ok=True)  # it may be a link to a file that others still read
    places: dict[Any, ir.ExternalTensor] = {}
    with open(data, "wb") as file:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                raise DeploymentError(f"weight {name!r} of the graph has no numbers: build the deployment again")
            if tensor.nbytes <= INLINE_BYTES:
                value.const_value = ir.Tensor(np.array(array(tensor)), dtype=tensor.dtype, name=name)
                continue
            key = _source(tensor)
            if key not in places:
                file.seek(-file.tell() % ALIGNMENT, 1)
                offset = file.tell()
                _copy(tensor, file)
                places[key] = _external(data.name, offset, tensor, name)
            value.const_value = _external(data.name, places[key].offset or 0, tensor, name)
    if not places:
        data.unlink()
    ir.save(model, output)
    return output.stat().st_size + (data.stat().st_size if places else 0)


def _copy(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _source(tensor: ir.TensorProtocol) -> Any:
    """Equal for tensors that are the same bytes: tied weights are written once."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.location, tensor.offset, tensor.length
    return id(tensor)


def _external(file: str, offset: int, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(file, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
