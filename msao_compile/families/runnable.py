"""A skeleton that can be run: weights that cost nothing, and of the checkpoint's own those that it may divide by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from msao_compile.families.checkpoint import Source, read_tensor
from msao_compile.families.conversion import CONVERTED
from msao_compile.symbolic import zeros


def runnable(model: Any) -> Any:
    """The skeleton with weights that can be computed with and cost nothing: all are views of one buffer of zeros."""
    largest = max((value.numel() for value in model.state_dict().values()), default=1)
    held = zeros((largest,), torch.float32)
    for part in model.modules():
        for name, value in list(part._parameters.items()):
            if value is not None and value.is_meta:
                view = held[: value.numel()].view(value.shape)
                part._parameters[name] = torch.nn.Parameter(view, requires_grad=False)
        for name, value in list(part._buffers.items()):
            if value is not None and value.is_meta:
                kind = torch.float32 if value.is_floating_point() else value.dtype
                part._buffers[name] = torch.zeros(value.shape, dtype=kind)
    return model.eval()


def read_whole_numbers(folders: tuple[Path, Path], model: Any, sources: Mapping[str, Source]) -> None:
    """Give the model its tables of whole numbers: by zeros in their place it may divide."""
    for name, value in model.named_buffers():
        source = sources.get(name)
        if source is not None and not value.is_floating_point():
            value.copy_(torch.from_numpy(read_tensor(folder_of(folders, source), vars(source)).copy()))


def folder_of(folders: tuple[Path, Path], source: Source) -> Path:
    """Where a source's file is, of a checkpoint's folder and that of its converted weights."""
    return folders[source.file == CONVERTED]
