"""What the tensors of a checkpoint say of a model that cannot be opened: its parts, their layers, their sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from msao_compile.families.checkpoint import Source, read_sources, weight_files
from msao_compile.families.outline import CONNECTOR, NAMED

EMBEDDING = re.compile(r"embed_tokens|tok_embeddings|word_embeddings|(^|\.)wte(\.|$)|(^|\.)shared(\.|$)")
SHOWN = 3
"""Of a tensor's path, as many names as tell parts of a model apart."""


@dataclass
class Stack:
    """Tensors under one path: a stack of layers, or what stands beside stacks."""

    component: str
    path: str
    params: int = 0
    size_bytes: int = 0
    layers: set[int] = field(default_factory=set)

    @property
    def found_by(self) -> str:
        """How it was found, in words."""
        count = f", {len(self.layers)} layers" if self.layers else ""
        return f"tensors named {self.path}{count}"


def structure(folder: Path) -> list[Stack]:
    """The parts of a checkpoint by the names of its tensors, in the order of the files; nothing of it is run.

    Raises:
        CheckpointError: there are no weights, or a file is damaged.
    """
    found: dict[str, Stack] = {}
    for key, source in _tensors(folder):
        path, layer = _path(key)
        stack = found.setdefault(path, Stack(_component(path), path))
        stack.params += math.prod(source.shape)
        stack.size_bytes += source.size_bytes
        if layer is not None:
            stack.layers.add(layer)
    return list(found.values())


def _tensors(folder: Path) -> Iterator[tuple[str, Source]]:
    for file in weight_files(folder):
        yield from read_sources(file).items()


def _path(key: str) -> tuple[str, int | None]:
    names = key.split(".")
    number = next((index for index, name in enumerate(names) if name.isdigit()), None)
    if number is not None:
        return ".".join(names[:number]), int(names[number])
    return ".".join(names[: min(SHOWN, max(1, len(names) - 1))]), None


def _component(path: str) -> str:
    """As a name says; what connects a tower to the rest counts to the tower, as everywhere here."""
    if EMBEDDING.search(path):
        return "embed_tokens"
    told = next((component for words, component in NAMED if words.search(path)), None)
    if told in (None, "text_encoder"):
        return "vision_encoder" if CONNECTOR.search(path) else "decoder"
    return told
