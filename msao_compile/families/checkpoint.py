"""A Hugging Face checkpoint on disk: its config, an empty skeleton of its model, and its tensors one at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from msao_compile.errors import CheckpointError
from msao_compile.families.conversion import CONVERTED, Group

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_HEADER_LIMIT_BYTES = 100_000_000  # the safetensors format's own limit
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
              "I8": 1, "U8": 1, "BOOL": 1}  # fmt: skip

_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "|b1"}
PIECE_BYTES = 16 * 2**20
"""Of a file, read at a time: a multiple of every item's size."""


@dataclass(frozen=True)
class Source:
    """Where one parameter's bytes lie: a range of a safetensors file, C order."""

    file: str
    key: str
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]


class _Entry(BaseModel):
    """One tensor as a safetensors header tells of it."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]

    def fits(self) -> bool:
        """Whether the bytes are as many as the shape needs; an unknown type is refused only when it is read."""
        start, stop = self.data_offsets
        needed = math.prod(self.shape) * ITEM_BYTES.get(self.dtype, 0)
        return start <= stop and (self.dtype not in ITEM_BYTES or stop - start == needed)


SINGLE = "model.safetensors"
_HEADER = TypeAdapter(dict[str, _Entry])


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json as a dict.

    Raises:
        CheckpointError: the folder or its config.json is missing or not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; point at a folder written by `save_pretrained`")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download the checkpoint again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{path}: no model_type; this is not a transformers checkpoint")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in name order.

    Raises:
        CheckpointError: there is none, or the index names a file that is missing or lies elsewhere.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of weight files ({error}); download it again") from error
    else:
        names = [path.name for path in folder.glob("*.safetensors")]
        if SINGLE in names:
            names = [SINGLE]  # what lies beside it is the same in another layout
        elif names:
            raise CheckpointError(
                f"{folder}: holds {', '.join(sorted(names))} where transformers looks for {SINGLE} or {index.name}, "
                "which tells what lies in which; copy it from the original"
            )
    if not names:
        raise CheckpointError(
            f"{folder}: no *.safetensors file; save the model with `safe_serialization`. `plan` needs a recipe and the "
            "config.json alone"
        )
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: names {name!r}, no file beside it; download the checkpoint again")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: no such file; download the checkpoint again")
    return [folder / name for name in names]


def read_sources(path: Path) -> dict[str, Source]:
    """Every tensor of one safetensors file by key, its byte range checked against its shape and the file's size.

    Raises:
        CheckpointError: the header is damaged, contradicts itself, or the file is shorter than it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 < length <= min(_HEADER_LIMIT_BYTES, max(size - 8, 0)):
            raise CheckpointError(f"{path}: truncated or damaged safetensors header; copy the file again")
        entries = _entries(path, file.read(length))
    found = {}
    for key, entry in entries.items():
        start, stop = entry.data_offsets
        found[key] = Source(path.name, key, 8 + length + start, stop - start, entry.dtype, tuple(entry.shape))
    end = 8 + length
    for source in sorted(found.values(), key=lambda source: (source.offset, source.size_bytes)):
        if source.offset != end:
            raise CheckpointError(
                f"{path}: damaged safetensors header, tensor {source.key!r} begins at byte {source.offset} where the "
                f"one before it ends at {end}; copy the file again"
            )
        end += source.size_bytes
    if end != size:
        raise CheckpointError(
            f"{path}: truncated or damaged, {size} bytes where its header says {end}; copy the file again"
        )
    return found


def _entries(path: Path, header: bytes) -> dict[str, _Entry]:
    try:
        told = json.loads(header)
        if isinstance(told, dict):
            told.pop("__metadata__", None)
        entries = _HEADER.validate_python(told)
        odd = next((key for key, entry in entries.items() if not entry.fits()), None)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "header"
        said = f"{place}: {first['msg'].lower()}"
        raise CheckpointError(f"{path}: damaged safetensors header ({said}); copy the file again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged safetensors header ({error}); copy the file again") from error
    if odd is not None:
        raise CheckpointError(f"{path}: tensor {odd!r} has a shape that disagrees with its bytes; copy the file again")
    return entries


def read_tensor(folder: Path, source: Mapping[str, Any]) -> np.ndarray:
    """One whole tensor; as `read_pieces`."""
    pieces = list(read_pieces(folder, source))
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return np.asarray(whole).reshape(source["shape"])


def read_pieces(folder: Path, source: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """One tensor, C order, flat and in pieces: float32 where it holds fractions, as it is where it holds whole numbers.

    Raises:
        CheckpointError: the file is shorter than promised, or the dtype is none that a graph can hold.
    """
    path, dtype = folder / source["file"], source["dtype"]
    if dtype not in _PLAIN and dtype != "BF16":
        raise CheckpointError(
            f"{path}: tensor {source['key']!r} has type {dtype}: quantised checkpoints cannot be "
            "compiled yet; use the floating-point one"
        )
    size = source["size_bytes"]
    with path.open("rb") as file:
        file.seek(source["offset"])
        for start in range(0, size, PIECE_BYTES) if size else (0,):
            wanted = min(PIECE_BYTES, size - start)
            raw = file.read(wanted)
            if len(raw) != wanted:
                raise CheckpointError(f"{path}: truncated inside tensor {source['key']!r}; copy the file again")
            yield _numbers(raw, dtype)


def _numbers(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    values = np.frombuffer(raw, _PLAIN[dtype])
    return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values


def refuse_not_finite(folder: Path, source: Source, values: np.ndarray) -> None:
    """Two passes without a copy, about a tenth of what hashing the same bytes costs.

    Raises:
        CheckpointError: the tensor holds NaN or infinity.
    """
    if values.dtype.kind != "f":
        return
    if not (math.isfinite(values.min(initial=0.0)) and math.isfinite(values.max(initial=0.0))):
        raise CheckpointError(
            f"{folder / source.file}: tensor {source.key!r} holds values that are not finite as float32 (NaN or "
            "infinity); download the file again or save the model with finite weights"
        )


def skeleton(config: PretrainedConfig, architecture: type[PreTrainedModel]) -> PreTrainedModel:
    """The model without its weights: parameters on the meta device, computed buffers real, weights tied."""
    import torch

    with torch.device("meta"):
        model: PreTrainedModel = architecture(config)
    model.tie_weights()
    _compute_buffers(model, model)
    model.eval().requires_grad_(False)
    return model


def _compute_buffers(module: nn.Module, owner: Any) -> None:
    """Rotary tables and position indices are not in the checkpoint: the nearest model recomputes them."""
    owner = module if hasattr(module, "_init_weights") else owner
    held = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
    computed = {name: buffer for name, buffer in held.items() if buffer is not None}
    for name, buffer in computed.items():
        module._buffers[name] = buffer.new_zeros(buffer.shape, device="cpu")
    if computed:
        owner._init_weights(module)
    for child in module.children():
        _compute_buffers(child, owner)


@dataclass(frozen=True)
class Located:
    """Where each parameter lies, the conversions that make those of which the checkpoint has another form, and by key
    the tensors that the model has no place for.
    """

    sources: dict[str, Source]
    groups: dict[str, Group]
    unexpected: dict[str, Source]

    @property
    def keys(self) -> set[str]:
        """What files call the tensors that the model has a place for."""
        made = {source.key for group in self.groups.values() for _, source in group.tensors}
        return made | {source.key for source in self.sources.values() if source.file != CONVERTED}


def locate(folder: Path, model: PreTrainedModel) -> Located:
    """Where each of the model's parameters lies, both spellings of keys understood through transformers' own renaming.

    Raises:
        CheckpointError: a parameter is missing, or a shape differs.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    expected = model.state_dict()
    found: dict[str, Source] = {}
    groups: dict[str, Group] = {}
    unexpected: dict[str, Source] = {}
    thinker = "thinker." if "thinker_config" in read_config(folder) else ""
    for path in weight_files(folder):
        for whole, source in read_sources(path).items():
            key = whole.removeprefix(thinker)
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
            if name not in expected and key in expected:
                name, pattern = key, None
            converter = next((entry for entry in converters if pattern in entry.source_patterns), None)
            if not whole.startswith(thinker):  # an Omni model's speaking half is no part of this model
                unexpected[whole] = source
            elif pattern is not None and converter is not None:
                groups.setdefault(name, Group(converter, name)).tensors.append((pattern, source))
            elif name in expected:
                found[name] = source
            else:
                unexpected[whole] = source
    _spread_tied(model, found)
    if groups:
        _place_converted(expected, found)
    _check_complete(folder, {name: tuple(value.shape) for name, value in expected.items()}, found)
    return Located(found, groups, unexpected)


def _place_converted(expected: Mapping[str, Any], found: dict[str, Source]) -> None:
    """Every parameter that is not there as it is has to come out of a conversion."""
    offset = 0
    for name, value in expected.items():
        if name not in found:
            size = value.numel() * 4
            found[name] = Source(CONVERTED, name, offset, size, "F32", tuple(value.shape))
            offset += size


def _spread_tied(model: PreTrainedModel, found: dict[str, Source]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for group in names.values():
        held = next((found[name] for name in group if name in found), None)
        if held is not None:
            found.update({name: held for name in group if name not in found})


def _check_complete(folder: Path, expected: dict[str, tuple[int, ...]], found: dict[str, Source]) -> None:
    missing = sorted(set(expected) - set(found))
    if missing:
        raise CheckpointError(
            f"{folder}: tensor {missing[0]!r} is missing ({len(missing)} in all); "
            "download the checkpoint again or use the matching config.json"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{folder}: tensor {name!r} is {found[name].shape} where config.json says {shape}; "
                "use the config.json that belongs to these weights"
            )
