"""Where each weight lies in a deployment: in a checkpoint's file that has its bytes already, or in its module's own.

A graph reads numbers as little-endian runs in C order, and so does a safetensors file keep them: where neither a cast
nor a conversion is needed, the graph points into the checkpoint's file, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msao_compile.families.checkpoint import ITEM_BYTES
from msao_compile.families.conversion import CONVERTED
from msao_compile.stages.compose import ModelParts, data_name, owners

AS_THEY_ARE = ("F32", "I64", "I32", "BOOL")
"""What graphs hold as it is; other fractions become float32."""
USED = 0.9
"""Of a checkpoint's file, at least, that modules read as it lies: it goes into a deployment whole or not at all."""
ALIGNMENT_BYTES = 64
Component = Mapping[str, Any]


@dataclass(frozen=True)
class DataFile:
    """A file beside a graph that holds weights: one of a checkpoint, or what the load stage wrote for a module."""

    name: str
    module: str | None = None
    checkpoint: tuple[str, str] | None = None
    """The model whose checkpoint it is of, and its name there."""


class Places:
    """Of every weight of several models; `sizes` has, by model, the bytes of the checkpoint files that may serve."""

    def __init__(self, models: Sequence[ModelParts], sizes: Mapping[str, Mapping[str, int]]) -> None:
        self.models = {model.name: model for model in models}
        self.homes = owners(models)
        self.kept = {
            (name, file) for name, held in sizes.items() for file, size in held.items()
            if self._used(name, file) >= USED * size
        }  # fmt: skip
        self._written = {part["id"]: self._laid_out(model.name, part) for model, part in self.distinct()}

    def written(self, component: Component) -> tuple[list[dict[str, Any]], int]:
        """The tensors that the load stage has to write for a module, each with its offset, and the file's length."""
        return self._written[component["id"]]

    def layout(self, model: ModelParts, component: Component) -> dict[str, dict[str, Any]]:
        """For each of a module's weights: file beside the graph, offset, shape, dtype."""
        found = {}
        for entry in component["tensors"]:
            file, offset = self._place(model, component, entry)
            found[entry["name"]] = {
                "file": file.name, "offset": offset, "shape": entry["shape"], "dtype": entry["dtype"],
            }  # fmt: skip
        return found

    def files(self, model: ModelParts, component: Component) -> list[DataFile]:
        """The data files that a module's graphs read, by name."""
        found = {self._place(model, component, entry)[0] for entry in component["tensors"]}
        return sorted(found, key=lambda file: file.name)

    def distinct(self) -> Iterator[tuple[ModelParts, Component]]:
        """Every module once, with the model in whose folder it is."""
        for model in self.models.values():
            for component in model.split["components"]:
                if self.homes[component["id"]] == model.name:
                    yield model, component

    def _used(self, name: str, file: str) -> int:
        own = (part["tensors"] for model, part in self.distinct() if model.name == name)
        entries = (entry for tensors in own for entry in tensors if "borrowed" not in entry)
        return sum(entry["size_bytes"] for entry in entries if entry["source"]["file"] == file and _as_it_lies(entry))

    def _laid_out(self, home: str, component: Component) -> tuple[list[dict[str, Any]], int]:
        found, offset = [], 0
        for entry in component["tensors"]:
            if "borrowed" not in entry and not self._serves(home, entry):
                found.append({**entry, "offset": offset})
                offset += -(-entry["size_bytes"] // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return found, offset

    def _serves(self, home: str, entry: Mapping[str, Any]) -> bool:
        return (home, entry["source"]["file"]) in self.kept and _as_it_lies(entry)

    def _place(self, model: ModelParts, component: Component, entry: Mapping[str, Any]) -> tuple[DataFile, int]:
        """The file that holds a tensor, as seen from a graph of `model`, and where in it."""
        if "borrowed" in entry:
            owner, name = entry["borrowed"]
            lender = next(other for other in model.split["components"] if other["component"] == owner)
            return self._place(model, lender, next(held for held in lender["tensors"] if held["name"] == name))
        home = self.homes[component["id"]]
        if home != model.name:  # the same module of another model, whose file is linked here as well
            same = next(part for part in self.models[home].split["components"] if part["id"] == component["id"])
            held = next(other for other in same["tensors"] if other["digest"] == entry["digest"])
            file, offset = self._place(self.models[home], same, held)
            return (file if file.module else DataFile(f"{home}.{file.name}", None, file.checkpoint)), offset
        if self._serves(home, entry):
            file_name = entry["source"]["file"]
            return DataFile(file_name, checkpoint=(home, file_name)), entry["source"]["offset"]
        own = next(held for held in self._written[component["id"]][0] if held["name"] == entry["name"])
        return DataFile(data_name(component["component"]), module=component["id"]), own["offset"]


def _as_it_lies(entry: Mapping[str, Any]) -> bool:
    source = entry["source"]
    return (
        source["file"] != CONVERTED
        and source["dtype"] in AS_THEY_ARE
        and source["offset"] % ITEM_BYTES[source["dtype"]] == 0
    )
