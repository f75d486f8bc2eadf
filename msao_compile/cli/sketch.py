"""What `plan` says of a recipe whose weights are still to come: modules, KV cache, and what can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from msao_compile.cli import draw, units

if TYPE_CHECKING:
    from pathlib import Path

    from msao_compile.recipe.room import Room
    from msao_compile.sketch import ModelSketch, Sketch

PRECISIONS = ("fp32", "fp16", "int8", "int4")
MODULE_HEADERS = ("component", "parameters", *PRECISIONS, "found by")
TARGET_HEADERS = ("target", "device", "precision", "weights", "KV cache", "reserve", "memory", "")
NOTE = "fp16 stands for bf16 too; int4 has blocks of 32 (4.5 bits a weight), and norms and biases keep 16 bits"


def facts(recipe: Path, found: Sketch) -> dict[str, Any]:
    """What a program wants to know of a sketch."""
    return {"recipe": str(recipe), "sketch": asdict(found)}


def show(found: Sketch) -> None:
    """Draw every model: its modules, its KV cache, the recipe's targets, the catalogue."""
    for model in found.models:
        draw.line(f"{model.name}: {model.architecture}, {units.count(model.params)} parameters")
        draw.table(MODULE_HEADERS, [_module_row(one) for one in model.components], frozenset(range(1, 6)))
        draw.line(kv_sentence(model.kv, found))
        draw.line("")
        draw.table(TARGET_HEADERS, [_target_row(one) for one in model.targets], frozenset(range(3, 7)))
        draw.line("")
        draw.table(*_catalogue(model))
        draw.line("")


def summary(found: Sketch) -> str:
    """What is missing, and what the figures mean."""
    missing = ", ".join(model.checkpoint for model in found.models if not model.has_weights)
    return f"{missing}: no *.safetensors yet, so this is told from config.json; {NOTE}"


def kv_sentence(kv: Mapping[str, Any] | None, found: Sketch) -> str:
    """The KV cache of a model in one line."""
    if kv is None:
        return "no KV cache: no tokens are generated"
    kinds = [f"{kv[name]} {word}" for name, word in (
        ("full_layers", "that keep every token"), ("window_layers", f"of a window of {kv['window']}"),
        ("state_layers", "with a state")) if kv[name]]  # fmt: skip
    text = (
        f"KV cache at 16 bits: {units.size(kv['bytes_per_token'])} a token in {kv['layers']} layers "
        f"({', '.join(kinds)}; {kv['num_key_value_heads']} heads of {kv['head_dim']})"
    )
    whole = units.size(kv["bytes_at_capacity"] * found.sequences)
    return f"{text}, {whole} for {units.plural(found.sequences, 'sequence')} of {found.kv_capacity} tokens"


def verdict(room: Room) -> str:
    """Whether a target can hold a model, with what is left or missing."""
    if room.free_bytes is None:
        return "memory not known"
    return f"fits, {units.size(room.free_bytes)} left" if room.fits else f"{units.size(-room.free_bytes)} short"


def _module_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = [units.size(one["bytes"][precision]) for precision in PRECISIONS]
    return (one["component"], units.count(one["params"]), *sizes, one["found_by"])


def _target_row(room: Room) -> tuple[str, ...]:
    memory = "" if room.memory_bytes is None else units.size(room.memory_bytes)
    needs = (room.weight_bytes, room.kv_bytes, room.reserve_bytes)
    return (room.target, room.device, room.precision, *map(units.size, needs), memory, verdict(room))


def _catalogue(model: ModelSketch) -> tuple[tuple[str, ...], list[tuple[str, ...]], frozenset[int]]:
    """One row a device, one column a precision."""
    precisions = tuple(dict.fromkeys(room.precision for room in model.devices))
    rows: dict[str, dict[str, Room]] = {}
    for room in model.devices:
        rows.setdefault(room.device, {})[room.precision] = room
    told = []
    for device, rooms in rows.items():
        first = rooms[precisions[0]]
        memory = "" if first.memory_bytes is None else units.size(first.memory_bytes)
        told.append((device, memory, *(verdict(rooms[precision]) for precision in precisions)))
    return ("device", "memory", *precisions), told, frozenset({1})
