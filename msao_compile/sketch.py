"""A plan where weights are still to come: what each model has and what it needs, and which targets can hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from msao_compile.errors import StageError
from msao_compile.families.agreement import refuse_strangers
from msao_compile.families.checkpoint import read_config
from msao_compile.families.kv_cost import KVCost
from msao_compile.families.refusals import refuse_unusable
from msao_compile.farm.job import Job
from msao_compile.farm.local import run as run_job
from msao_compile.recipe.room import KV_ITEM_BYTES, Room, memory_here, room
from msao_compile.recipe.schema import Component, Recipe, TargetChoice
from msao_compile.recipe.targets import catalogue, find

NOT_DEPLOYED = "other"
CATALOGUE_PRECISIONS = ("fp16", "int8", "int4")


@dataclass(frozen=True)
class ModelSketch:
    """One model of the recipe, before any of its weights are here."""

    name: str
    checkpoint: str
    has_weights: bool
    architecture: str
    model_type: str
    params: int
    components: tuple[Mapping[str, Any], ...]
    """Each with `component`, `params`, `bytes` by precision, `found_by` and the names of its `parameters`."""
    kv: Mapping[str, Any] | None
    """The figures of `KVCost`, and `bytes_per_token` and `bytes_at_capacity` of one sequence at 16 bits."""
    targets: tuple[Room, ...]
    """The recipe's targets in its own precisions."""
    devices: tuple[Room, ...]
    """Every device of the catalogue in each of `CATALOGUE_PRECISIONS`."""


@dataclass(frozen=True)
class Sketch:
    """All models of a recipe; the KV cache is that of `sequences` sequences of `kv_capacity` tokens each."""

    kv_capacity: int
    sequences: int
    models: tuple[ModelSketch, ...]


def is_wanted(recipe: Recipe) -> bool:
    """Whether a checkpoint has a config.json and none of its weights."""
    folders = [Path(model.checkpoint) for model in recipe.models.values()]
    return any((folder / "config.json").is_file() and not has_weights(folder) for folder in folders)


def has_weights(folder: Path) -> bool:
    """Whether there is any safetensors file; an index alone is none."""
    return any(folder.glob("*.safetensors"))


def sketch(recipe: Recipe) -> Sketch:
    """Open every model without weights, each in a process of its own, and hold it against the targets.

    Raises:
        CheckpointError: no model can be made of a config.
    """
    decoder = recipe.shapes.decoder
    sequences = 1 if decoder is None else decoder.batch[2]
    models = tuple(_model(recipe, name, sequences) for name in recipe.models)
    return Sketch(recipe.shapes.kv_capacity, sequences, models)


def _model(recipe: Recipe, name: str, sequences: int) -> ModelSketch:
    choice = recipe.models[name]
    folder, trusted = Path(choice.checkpoint), choice.trust_remote_code
    config = read_config(folder)
    refuse_unusable(folder, config, trusted, f"models.{name}")
    refuse_strangers(folder, config)
    job = Job(
        function="msao_compile.stages.outline:run",
        arguments={"checkpoint": str(folder), "trusted": trusted},
        phase=f"outline of {folder}",
    )
    found = run_job(job).value
    if not isinstance(found, dict):
        raise StageError(f"outlining {choice.checkpoint} gave no answer; run again with --debug")
    told = cast("dict[str, Any]", found)
    cost = None if told["kv"] is None else KVCost(**told["kv"])
    kv_bytes = {size: _kv_bytes(cost, recipe.shapes.kv_capacity, size) * sequences for size in (2, 4)}
    rooms = _Rooms(told["components"], kv_bytes, memory_here())
    return ModelSketch(
        name=name,
        checkpoint=choice.checkpoint,
        has_weights=has_weights(folder),
        architecture=told["architecture"],
        model_type=told["model_type"],
        params=told["params"],
        components=tuple(told["components"]),
        kv=None if cost is None else {**told["kv"], **_kv_facts(cost, recipe.shapes.kv_capacity)},
        targets=tuple(rooms.chosen(target, one) for target, one in recipe.targets.items()),
        devices=tuple(rooms.devices()),
    )


def _kv_bytes(cost: KVCost | None, tokens: int, item_bytes: int) -> int:
    return 0 if cost is None else cost.bytes_at(tokens, item_bytes)


def _kv_facts(cost: KVCost, capacity: int) -> dict[str, int]:
    """Of one sequence, 16 bits an element; a token adds as much until the windows are full."""
    per_token = (cost.full_elements_per_token + cost.window_elements_per_token) * 2
    return {"bytes_per_token": per_token, "bytes_at_capacity": cost.bytes_at(capacity, 2)}


@dataclass(frozen=True)
class _Rooms:
    """One model's needs, to be held against targets; `kv_bytes` by the size of an element."""

    components: Sequence[Mapping[str, Any]]
    kv_bytes: Mapping[int, int]
    here_bytes: int | None

    def chosen(self, name: str, choice: TargetChoice) -> Room:
        """A target of the recipe."""
        precision = {
            one["component"]: choice.precision_of(cast("Component", one["component"])) for one in self._deployed
        }
        weights = sum(one["bytes"][precision[one["component"]]] for one in self._deployed)
        kv_bytes = self.kv_bytes[KV_ITEM_BYTES.get(precision.get("decoder", "fp16"), 2)]
        kinds = list(dict.fromkeys(precision.values()))
        return room(name, find(choice.device), "/".join(kinds), weights, kv_bytes, self.here_bytes)

    def devices(self) -> Iterator[Room]:
        """The whole catalogue in one precision for everything."""
        for target in catalogue():
            for precision in CATALOGUE_PRECISIONS:
                weights = sum(one["bytes"][precision] for one in self._deployed)
                yield room(target.target_id, target, precision, weights, self.kv_bytes[2], self.here_bytes)

    @property
    def _deployed(self) -> list[Mapping[str, Any]]:
        return [one for one in self.components if one["component"] != NOT_DEPLOYED]
