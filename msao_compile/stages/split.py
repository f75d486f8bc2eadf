"""Take a checkpoint apart: which modules it has, what each one's weights are, and what identifies it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.families.checkpoint import Source, locate, read_tensor, refuse_not_finite
from msao_compile.families.registry import open_model
from msao_compile.manifest.digest import canonical_json, sha256_bytes

if TYPE_CHECKING:
    from msao_compile.families.base import Piece

ALIGNMENT_BYTES = 64
# What differs between two saves of one model, or says how to compute and not what.
_UNSTABLE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "_attn_implementation")


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Split the checkpoint in `arguments["checkpoint"]`.

    Gives the family, host-side facts and, per component, its identity, tensors and data-file layout. A tensor that an
    earlier component already holds is borrowed: it is written once, into that component's data file.
    """
    folder = Path(arguments["checkpoint"])
    family, model = open_model(folder)
    sources = locate(folder, model)
    names = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}
    config = model.config
    owners: dict[Source, tuple[str, str]] = {}
    components = []
    for piece in family.pieces(model):
        on_progress({"component": piece.component})
        components.append(_component(folder, piece, names, sources, owners))
    return {
        "family": family.name,
        "model_type": config.model_type,
        "architecture": type(model).__name__,
        "decoder": family.decoder_facts(config, kv_capacity=1).model_dump(mode="json"),
        "host": family.host_facts(config),
        "components": components,
    }


def _component(
    folder: Path,
    piece: Piece,
    names: dict[int, str],
    sources: dict[str, Source],
    owners: dict[Source, tuple[str, str]],
) -> dict[str, Any]:
    tensors: list[dict[str, Any]] = []
    offset = 0
    # Matrices first: without the biases between them, neighbouring products can be joined over one run of bytes.
    named = sorted(piece.module.named_parameters(remove_duplicate=False), key=lambda item: item[1].ndim != 2)
    for name, parameter in named:
        source = sources[names[id(parameter)]]
        values = read_tensor(folder, vars(source))
        refuse_not_finite(folder, source, values)
        digest = hashlib.sha256(values.data).hexdigest()
        entry: dict[str, Any] = {"name": name, "shape": list(parameter.shape), "digest": digest, "source": vars(source)}
        size = int(np.prod(parameter.shape, dtype=np.int64)) * 4
        if source in owners:
            entry["borrowed"] = list(owners[source])
        else:
            owners[source] = (piece.component, name)
            entry |= {"offset": offset, "size_bytes": size}
            offset += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        tensors.append(entry)
    config = {} if piece.config is None else piece.config.to_diff_dict()
    identity = {
        "component": piece.component,
        "config": _stable({name: value for name, value in config.items() if name not in piece.unread}),
        "inputs": [spec.model_dump(mode="json") for spec in piece.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in piece.outputs],
        "weights": sorted((entry["name"], entry["digest"]) for entry in tensors),
    }
    return {
        "component": piece.component,
        "id": sha256_bytes(canonical_json(identity)),
        "params": sum(int(np.prod(entry["shape"], dtype=np.int64)) for entry in tensors),
        "weight_bytes": offset,
        "kv": piece.kv is not None,
        "inputs": identity["inputs"],
        "outputs": identity["outputs"],
        "tensors": tensors,
    }


def _stable(value: Any) -> Any:
    """A config without what differs between two saves of the same model."""
    if isinstance(value, dict):
        return {str(key): _stable(item) for key, item in value.items() if key not in _UNSTABLE}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
