"""Whose each weight is: components of both dialects, tied weights, buffers, and what identifies a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from msao_compile.families.checkpoint import read_sources
from msao_compile.stages import split


class Held:
    """Stands for a model whose state is all that is asked for."""

    def __init__(self, **values: torch.Tensor) -> None:
        self.values = values

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.values

    def named_parameters(self, remove_duplicate: bool) -> list[tuple[str, torch.Tensor]]:
        return [(name, value) for name, value in self.values.items() if value.is_floating_point()]


def borrowed(folder: Path, traced: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, Any]]:
    """Components of a model with a tied head and an integer buffer; `traced`: weights by component by dialect."""
    table = torch.arange(20, dtype=torch.float32).reshape(10, 2)
    values = {"norm": torch.ones(2), "embed": table, "places": torch.arange(5), "head": table, "gate": torch.ones(3, 2)}
    save_file({name: value for name, value in values.items() if name != "head"}, folder / "model.safetensors")
    sources = dict(read_sources(folder / "model.safetensors"))
    sources["head"] = sources["embed"]
    graphs = {
        dialect: {
            component: {"graph": f"{component} {dialect}", "weights": names, "inputs": [], "outputs": []}
            for component, names in parts.items()
        }
        for dialect, parts in traced.items()
    }
    found = split._components((folder, folder), Held(**values), sources, graphs)  # type: ignore[arg-type]
    return {part["component"]: part for part in found}


def test_a_tied_weight_is_borrowed_from_the_first_component_that_has_it(tmp_path: Path) -> None:
    parts = borrowed(tmp_path, {"portable": {"embed_tokens": ["embed"], "decoder": ["norm", "head", "gate"]}})
    entries = {entry["name"]: entry for entry in parts["decoder"]["tensors"]}
    assert entries["head"]["borrowed"] == ["embed_tokens", "embed"]
    assert "borrowed" not in parts["embed_tokens"]["tensors"][0]
    assert [entry["name"] for entry in parts["decoder"]["tensors"]] == ["head", "gate", "norm"]  # matrices first
    assert (parts["embed_tokens"]["weight_bytes"], parts["decoder"]["weight_bytes"]) == (80, 24 + 8)
    assert parts["decoder"]["params"] == 2 + 20 + 6


def test_a_component_has_the_weights_that_either_dialect_needs(tmp_path: Path) -> None:
    one, other = {"decoder": ["norm", "gate"]}, {"decoder": ["gate", "embed"]}
    part = borrowed(tmp_path, {"portable": one, "fused": other})["decoder"]
    assert sorted(entry["name"] for entry in part["tensors"]) == ["embed", "gate", "norm"]
    alone = borrowed(tmp_path, {"portable": one})["decoder"]
    assert part["id"] != alone["id"]


def test_a_buffer_of_whole_numbers_stays_one(tmp_path: Path) -> None:
    [entry] = borrowed(tmp_path, {"portable": {"decoder": ["places"]}})["decoder"]["tensors"]
    assert (entry["dtype"], entry["size_bytes"], entry["source"]["dtype"]) == ("int64", 40, "I64")


def test_the_order_of_weights_in_a_graph_is_part_of_the_identity(tmp_path: Path) -> None:
    ids = {borrowed(tmp_path, {"portable": {"decoder": list(names)}})["decoder"]["id"]
           for names in (("norm", "gate"), ("gate", "norm"))}  # fmt: skip
    assert len(ids) == 2
