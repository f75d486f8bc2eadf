"""What a run on examples tells of a model before anything is traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msao_compile.errors import MissingTool
from msao_compile.families import light, registry
from msao_compile.families.checkpoint import locate
from msao_compile.families.registry import open_checked
from msao_compile.families.trial import Trial, tried
from msao_compile.stages import propose as proposing
from msao_compile.stages.propose import propose

Checkpoint = Callable[..., Path]


def opened(folder: Path, **more: nn.Module) -> tuple[Any, Path, Any]:
    model = open_checked(folder)
    sources = locate(folder, model).sources
    for name, part in more.items():
        setattr(model.model, name, part)
    return model, folder, sources


@pytest.mark.parametrize("large", [False, True])
def test_a_part_that_no_example_reaches_is_unread(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(light, "LARGE", 0)
    with torch.device("meta"):
        more = {"protein_encoder": nn.Linear(3, 4), "unused": nn.Embedding(2, 5)}
    found = tried(*opened(checkpoint("llava"), **more))
    assert (found.fault, found.unread) == (None, {"model.protein_encoder": 16, "model.unused": 10})
    assert found.tokens > 10


def test_a_parameter_that_no_module_calls_is_read_by_the_function_that_takes_it(checkpoint: Checkpoint) -> None:
    assert tried(*opened(checkpoint("clip"))) == Trial()  # class_embedding and logit_scale are of no module's forward


def test_why_a_model_cannot_be_built_is_told_by_init(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this kind of picture is\nunknown")

    model = open_checked(checkpoint("llava"))
    monkeypatch.setattr(type(model.model.vision_tower), "forward", broken)
    said = propose(checkpoint("llava"))["unsupported"]
    assert "as it is it cannot be built: No example image input of LlavaForCond" in said[0]
    assert "this kind of picture is" in said[0] and "\n" not in said[0]


def test_a_proposed_cache_holds_what_a_build_compares(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kv_capacity = 256\n" in propose(checkpoint("llava"))["recipe_toml"]  # as many as it was trained for
    monkeypatch.setattr(proposing, "tried", lambda *_: Trial(tokens=500))
    assert "kv_capacity = 1024\n" in propose(checkpoint("llava"))["recipe_toml"]


def test_a_library_that_a_model_is_made_with_is_named(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> Any:
        raise ImportError("TimmWrapperModel requires\nthe timm library")

    monkeypatch.setattr(registry, "skeleton", absent)
    with pytest.raises(MissingTool, match="needs more than is installed: TimmWrapperModel requires the timm library"):
        open_checked(checkpoint("llava"))
