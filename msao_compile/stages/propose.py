"""Look into a checkpoint and propose a recipe that builds unchanged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msao_compile.families.checkpoint import locate
from msao_compile.families.registry import open_model

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CAPACITY = 2048


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """`propose` as a job; `arguments`: checkpoint, recipe (where the text will be written)."""
    return propose(Path(arguments["checkpoint"]), Path(arguments["recipe"]))


def propose(checkpoint: Path, recipe: Path | None = None) -> dict[str, Any]:
    """Family, modules with parameters and bytes, and the text of a recipe for this machine.

    Raises:
        CheckpointError: the folder is incomplete. UnsupportedFamily: no family knows it.
    """
    family, model = open_model(checkpoint)
    sources = locate(checkpoint, model)
    names = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}
    facts = family.decoder_facts(model.config, CAPACITY)
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", CAPACITY))
    modules, seen = [], set()
    for piece in family.pieces(model):
        own = [sources[names[id(value)]] for _, value in piece.module.named_parameters(remove_duplicate=False)]
        fresh = [source for source in own if source not in seen]
        seen.update(own)
        size = sum(source.size_bytes for source in fresh)
        modules.append(
            {
                "component": piece.component,
                "bytes": size,
                "params": sum(source.size_bytes // _ITEM_BYTES.get(source.dtype, 1) for source in own),
            }
        )
    return {
        "family": family.name,
        "architecture": type(model).__name__,
        "layers": facts.num_layers,
        "modules": modules,
        "recipe_toml": _recipe(checkpoint, recipe, {"capacity": min(CAPACITY, longest), "family": family.name}),
    }


def _recipe(checkpoint: Path, recipe: Path | None, known: Mapping[str, Any]) -> str:
    beside = (recipe.parent if recipe is not None else Path.cwd()).resolve()
    place = os.path.relpath(checkpoint.resolve(), beside)
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in checkpoint.resolve().name)
    return f"""# A {known["family"]} checkpoint on this machine's CPU; see `msao-compile schema recipe` for every field.
recipe = 1
name = "{name.strip("-") or "model"}"

[models.model]
checkpoint = "{place}"
role = "target"

[tasks.answer]
models = ["model"]

[targets.local]
device = "local-cpu"
precision = "fp32"

[shapes.decoder]
batch = [1, 1, 1]
sequence = [1, {min(64, known["capacity"])}, {known["capacity"]}]
kv_capacity = {known["capacity"]}

[parity]
fp32 = {{ min_cosine = 0.9999, max_abs = 1e-3 }}
steps = 8

[runtime]
threads = {os.cpu_count() or 1}
"""
