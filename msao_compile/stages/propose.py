"""Look into a checkpoint and propose a recipe that builds unchanged."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.checkpoint import locate, read_config
from msao_compile.families.examples import modalities
from msao_compile.families.kv_cost import trained_positions
from msao_compile.families.left_out import ignored, listed, refuse_surplus, surplus, unanswered
from msao_compile.families.outline import outline
from msao_compile.families.refusals import names_remote_code
from msao_compile.families.registry import open_checked
from msao_compile.families.structure import structure
from msao_compile.families.trial import tried
from msao_compile.recipe.schema import KV_CAPACITY

STEPS = 8
"""Decode steps that a proposed recipe compares."""
PAGE = 64
"""A KV cache's capacity is a multiple of this."""


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """`propose` as a job; `arguments`: checkpoint, recipe (where the text will be written)."""
    return propose(Path(arguments["checkpoint"]), Path(arguments["recipe"]))


def propose(checkpoint: Path, recipe: Path | None = None) -> dict[str, Any]:
    """Family, modules with parameters and bytes, and the text of a recipe for this machine.

    Of a family that cannot be opened, `refused` says why, the modules are what the names of its tensors tell, and the
    recipe is the one that would make it work.

    Raises:
        CheckpointError: the folder is incomplete or holds what cannot be used.
    """
    try:
        model = open_checked(checkpoint)
    except UnsupportedFamily as error:
        return _unopened(checkpoint, recipe, str(error))
    located = locate(checkpoint, model)
    extra = surplus(model, located)
    refuse_surplus(checkpoint, extra, ignored(model, extra))
    longest = trained_positions(model.config) or KV_CAPACITY
    modules = [
        {
            "component": part.component,
            "bytes": sum(located.sources[name].size_bytes for name in part.parameters),
            "params": part.params,
            "found_by": part.found_by,
        }
        for part in outline(model)
    ]
    family = str(read_config(checkpoint)["model_type"])
    said, found = unsupported(checkpoint, model), tried(model, checkpoint, located.sources)
    if found.fault is not None:
        said.insert(0, f"{checkpoint}: as it is it cannot be built: {found.fault}")
    left = {**(found.unread if found.fault is None else unanswered(model)), **extra}
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    known = {"family": family, "capacity": max(min(KV_CAPACITY, longest), _room(found.tokens))}
    return {
        "family": family,
        "architecture": type(model).__name__,
        "layers": layers if isinstance(layers, int) else 0,
        "modules": modules,
        "unsupported": [*left_out(checkpoint, left), *said],
        "recipe_toml": _recipe(checkpoint, recipe, known, [*left]),
    }


def _room(tokens: int) -> int:
    """Positions for what a build compares: two media where an example has one, and the steps after them."""
    return -(-(2 * tokens + STEPS) // PAGE) * PAGE


def _unopened(checkpoint: Path, recipe: Path | None, reason: str) -> dict[str, Any]:
    config = read_config(checkpoint)
    family, names = str(config["model_type"]), config.get("architectures")
    if names_remote_code(config):
        needed = "once you have read the code that config.json names in auto_map"
    else:
        needed = "once the family's own modeling file lies beside config.json, is named in its auto_map, and is read"
    lines = _recipe(checkpoint, recipe, {"capacity": KV_CAPACITY, "family": family})
    allowed = f'role = "target"\ntrust_remote_code = true  # {needed}'
    return {
        "family": family,
        "architecture": names[0] if isinstance(names, list) and names else None,
        "modules": [
            {"component": one.component, "bytes": one.size_bytes, "params": one.params, "found_by": one.found_by}
            for one in structure(checkpoint)
        ],
        "unsupported": [reason],
        "refused": reason,
        "recipe_toml": lines.replace('role = "target"', allowed),
    }


def left_out(checkpoint: Path, left: Mapping[str, int]) -> list[str]:
    """What the proposed recipe leaves out by name, if anything."""
    if not left:
        return []
    return [
        f"{checkpoint}: {listed(left)} answer no request that is known here; the recipe leaves them out by name "
        "([export] exclude)"
    ]


def unsupported(checkpoint: Path, model: Any) -> list[str]:
    """What of a checkpoint no route answers, in sentences that say what to do about it."""
    found = []
    kinds = [name for name in modalities(model) if name != "image"]
    if kinds:
        found.append(
            f"{checkpoint}: {' and '.join(kinds)} inputs are built and proven, and `forward` takes them as arrays; "
            "`run` takes text and pictures only"
        )
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        found.append(f"{checkpoint}: `run` answers for decoders only; use `forward`, which this model's parity uses")
    return found


def _recipe(checkpoint: Path, recipe: Path | None, known: Mapping[str, Any], left: Sequence[str] = ()) -> str:
    beside = (recipe.parent if recipe is not None else Path.cwd()).resolve()
    place = os.path.relpath(checkpoint.resolve(), beside)
    export = f"\n[export]\nexclude = {json.dumps(list(left))}\n" if left else ""
    return f"""# A {known["family"]} checkpoint on this machine's CPU; see `msao-compile schema recipe` for every field.
recipe = 1
name = "{_name(checkpoint.resolve().name)}"

[models.model]
checkpoint = {_quoted(place)}
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
steps = {STEPS}

[runtime]
threads = {os.cpu_count() or 1}
{export}"""


def _name(folder: str) -> str:
    """A recipe's name after a folder: letters without their accents, a dash for whatever a name may not hold."""
    plain = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]", "-", plain).strip("-_")[:64] or "model"


def _quoted(text: str) -> str:
    """A TOML string: as in JSON, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
