"""Calls inside a model whose results depend on sizes alone: made by the host in NumPy, and given to the graph.

Transformers computes positions, windows and masks of its towers from grids by Python loops. Such functions are known
by name wherever a modeling file uses them. While a model is run on an example their calls are written down; while it is
traced each gives the graph input that stands for its result.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from msao_compile.errors import UnsupportedFamily
from msao_compile.manifest.schema import HostCall
from msao_compile.runtime.encoding import host_inputs
from msao_compile.runtime.host import FUNCTIONS
from msao_compile.runtime.host.anyres import anyres_index
from msao_compile.runtime.host.vision import vision_frame_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tensors = dict[str, torch.Tensor]
NOT_PASSED = ("kwargs", "config", "device")
LENGTHS_ONLY = ("vision_merged_shape",)
"""Functions whose results are used as lengths: the graph gets a tensor that has them."""
TILE_COUNTS = "image_size_to_num_patches"
LARGER = (5, 7)
"""How many times more rows and columns a larger grid has."""
PACK, PAIR_FRAMES = "pack_image_features", "_temporal_slicing"
"""Methods, not functions, that loop over sizes."""


@dataclass
class HostCalls:
    """The calls of one model: first recorded on an example, then answered from inputs.

    `calls` describes them for the runtime, `results[name]` are the recorded arrays.
    """

    model: PreTrainedModel
    calls: list[HostCall] = field(default_factory=list)
    results: Tensors = field(default_factory=dict)
    _answers: Tensors | None = None
    _next: int = 0
    _lengths_too: bool = True  # what packs gives the lengths of what it packed as well

    @contextlib.contextmanager
    def recording(self, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Run the model on `inputs` inside this block."""
        self.calls.clear()
        self.results = {}
        with self._patched(partial(self._record, inputs)):
            yield

    @contextlib.contextmanager
    def answering(self, answers: Tensors) -> Iterator[None]:
        """Run or trace the model inside this block: each call gives what `answers` holds for it."""
        if not self.calls:
            yield
            return
        self._answers, self._next = answers, 0
        with self._patched(self._answer):
            yield

    @contextlib.contextmanager
    def _patched(self, handle: Callable[..., Any]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for file in self._files():
                for name, function in list(vars(file).items()):
                    known = name.removeprefix("get_")
                    if known in FUNCTIONS and callable(function):
                        stack.enter_context(patch.object(file, name, partial(handle, known, function)))
                    elif name == TILE_COUNTS and handle == self._answer:
                        stack.enter_context(patch.object(file, name, self._tiles))
            ways: dict[str, Callable[..., Any]] = {PACK: self._pack, PAIR_FRAMES: _pair_frames}
            for part in self.model.modules():
                for name, ours in ways.items():
                    if hasattr(type(part), name):
                        stack.enter_context(patch.object(part, name, partial(ours, part, handle)))
            yield

    def has(self, name: str) -> bool:
        """Whether a modeling file of the model has a function of this name."""
        return any(hasattr(file, name) for file in self._files())

    def _files(self) -> list[Any]:
        names = {type(part).__module__ for part in self.model.modules()}
        return [sys.modules[name] for name in sorted(names) if ".models." in name]

    def _record(self, inputs: Mapping[str, torch.Tensor], known: str, function: Any, *args: Any, **named: Any) -> Any:
        found = function(*args, **named)
        bound = inspect.signature(function).bind(*args, **named)
        bound.apply_defaults()
        sources: dict[str, str] = {}
        settings: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if name in NOT_PASSED:
                continue
            if isinstance(value, torch.Tensor):
                source = _source(value, {**self.results, **inputs})
                if source is None:  # not one of the request's own sizes: left to the graph
                    return found
                sources[name] = source
            else:
                settings[name] = list(value) if isinstance(value, tuple) else value
        if known == "vision_attention_seqlens":
            settings = {key: value for key, value in settings.items() if key == "merge_temporal"}
        arrays = [item for item in (found if isinstance(found, tuple) else (found,)) if item is not None]
        if known == "vision_attention_seqlens":
            arrays = arrays[:1]
        self._note(known, sources, settings, arrays)
        return found

    def _note(self, known: str, sources: dict[str, str], settings: dict[str, Any], arrays: list[Any]) -> None:
        names = tuple(f"{known}.{len(self.calls)}.{index}" for index in range(len(arrays)))
        if known in LENGTHS_ONLY:
            names = names[:1]
            self.results[names[0]] = torch.zeros([int(size) for size in arrays])
        else:
            self.results |= {name: torch.as_tensor(array) for name, array in zip(names, arrays, strict=True)}
        self.calls.append(HostCall(function=known, settings=settings, inputs=sources, outputs=names))

    def _answer(self, known: str, function: Any, *args: Any, **named: Any) -> Any:
        call = self.calls[self._next] if self._next < len(self.calls) else None
        if call is None or call.function != known or self._answers is None:
            return function(*args, **named)
        self._next += 1
        found = [self._answers[name] for name in call.outputs]
        if known in LENGTHS_ONLY:
            return tuple(found[0].shape)
        if known == "vision_attention_seqlens":
            return found[0], 0  # the longest segment is asked for by other attention functions only
        return found[0] if len(found) == 1 else tuple(found)

    def _tiles(self, *_: Any, **__: Any) -> Any:
        """One picture at a time, without padding: as many tiles as it has."""
        return _AllTiles()

    def _pack(self, part: Any, handle: Any, image_features: Any, image_sizes: Any, *args: Any, **named: Any) -> Any:
        """Pack one picture's tiles: a gather by an index that the host computes."""
        original = partial(getattr(type(part), PACK), part)
        bound = inspect.signature(original).bind(image_features, image_sizes, *args, **named)
        newline = bound.arguments.get("image_newline")
        [features] = image_features
        flat = features.reshape(-1, features.shape[-1])
        rows = torch.cat([flat, newline[None].to(flat.dtype)]) if newline is not None else flat
        if handle != self._answer:
            packed = original(image_features, image_sizes, *args, **named)
            self._lengths_too = isinstance(packed, tuple)
            self._note_pack(part, features, image_sizes, bound.arguments)
            return packed
        call = self.calls[self._next]
        self._next += 1
        assert self._answers is not None  # only `answering` passes this handle
        taps, weights = (self._answers[name] for name in call.outputs)
        chosen = (rows[taps.reshape(-1)].reshape(*taps.shape, -1) * weights[..., None]).sum(1)
        return ([chosen], torch.tensor([0])) if self._lengths_too else [chosen]

    def _note_pack(self, part: Any, features: torch.Tensor, image_sizes: Any, given: Mapping[str, Any]) -> None:
        config = self.model.config
        aspect = str(given.get("vision_aspect_ratio") or "")
        limit = int(aspect.removeprefix("anyres_max_")) if aspect.startswith("anyres_max_") else None
        settings: dict[str, Any] = {
            "grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints],
            "tile_size": int(config.vision_config.image_size),
            "side": int(features.shape[1] ** 0.5),
            "max_num_patches": limit,
            "newline": given.get("image_newline") is not None,
            "tiled": features.shape[0] > 1,
        }
        found = anyres_index(image_sizes[0].tolist(), **settings)
        self._note("anyres_index", {"image_size": "image_sizes:first"}, settings, [torch.from_numpy(x) for x in found])


def _pair_frames(part: Any, handle: Any, hidden_states: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """Every second frame beside the one after it: gathers by indices that the host computes."""

    def pairs(grid_thw: torch.Tensor, spatial_merge_size: int) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, vision_frame_pairs(grid_thw.numpy(), spatial_merge_size)))

    first, second = handle("vision_frame_pairs", pairs, grid_thw=grid_thw, spatial_merge_size=part.spatial_merge_size)
    return torch.cat([hidden_states[first], hidden_states[second]], -1)


class _AllTiles:
    """Stands for a number of tiles: slicing by it keeps all."""

    def __index__(self) -> int:
        return sys.maxsize


def refuse_alike(family: str, calls: Sequence[HostCall], examples: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """A trace takes for a constant what has one length in both examples: what grows with the grid must have two.

    Raises:
        UnsupportedFamily: such as two pictures of one attention window each, where a larger one has several.
    """
    one, other = examples
    grids = {
        name: value.numpy() for name, value in one.items()
        if value.ndim == 2 and value.shape[1] in (2, 3) and not value.is_floating_point()
    }  # fmt: skip
    larger = {name: value * np.array([1, *LARGER])[-value.shape[1] :] for name, value in grids.items()}
    for call in calls:
        if all(source.partition(":")[0] in grids for source in call.inputs.values()):
            for name, value in host_inputs((call,), larger).items():
                shapes = zip(value.shape, one[name].shape, other[name].shape, strict=True)
                if any(large != small and small == also for large, small, also in shapes):
                    raise UnsupportedFamily(
                        f"{family}: {call.function} gives {list(one[name].shape)} for both example pictures and "
                        f"{list(value.shape)} for one {LARGER[0]} x {LARGER[1]} times as large: the examples are too "
                        "small to tell what varies (settings: "
                        f"{', '.join(f'{key} {value}' for key, value in call.settings.items())})"
                    )


def _source(value: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> str | None:
    """The input that a tensor is, or is made of in a way that the runtime knows."""
    for name, given in inputs.items():
        if given.shape == value.shape and torch.equal(given.to(value.dtype), value):
            return name
    for name, given in inputs.items():
        if piece := _piece(name, given, value):
            return f"{name}:lengths" if piece == given.shape[1] else f"{name}:lengths {piece}"
        if _is_joined(given, value):
            return f"{name}:joined"
    for name, given in inputs.items():
        if given.ndim == 2 and given.shape[1] == 3 and not given.is_floating_point():
            frames = torch.repeat_interleave(given, given[:, 0], dim=0)
            frames[:, 0] = 1
            if frames.shape == value.shape and torch.equal(frames.to(value.dtype), value):
                return f"{name}:frames"
        if given.ndim == 2 and given.shape[1] == 2 and value.shape == (len(given), 3):
            padded = torch.nn.functional.pad(given, (1, 0), value=1)
            if torch.equal(padded.to(value.dtype), value):
                return f"{name}:still"
        if scale := _scale(given, value):
            return f"{name}:times {' '.join(map(str, scale))}"
    return None


def _piece(name: str, given: torch.Tensor, value: torch.Tensor) -> int:
    """How long the pieces of each row are where `value` counts what a mask of media lets through in each; else 0."""
    mask = name.endswith("_mask") and name != "attention_mask" and given.ndim == 2 and not given.is_floating_point()
    if not mask or value.ndim != 1 or len(value) == 0 or given.numel() % len(value) or len(value) % len(given):
        return 0
    counted = given.reshape(len(value), -1).sum(-1)
    return given.numel() // len(value) if torch.equal(counted, value.to(torch.int64)) else 0


def _scale(given: torch.Tensor, value: torch.Tensor) -> list[int]:
    """By what each column of a grid is multiplied to be `value`; empty where it is not."""
    grid = given.ndim == 2 and given.shape[1] in (2, 3) and given.shape == value.shape
    if not grid or given.is_floating_point() or value.is_floating_point() or not bool((given > 0).all()):
        return []
    scale = torch.div(value[0], given[0], rounding_mode="floor")
    return scale.tolist() if torch.equal(given * scale, value) and bool((scale > 0).all()) else []


def _is_joined(given: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `value` is one sound [bins, frames] without its padding."""
    one = value.ndim == 2 and given.ndim == 3 and len(given) == 1 and value.is_floating_point()
    return one and given.shape[1] == value.shape[0] and torch.equal(given[0, :, : value.shape[1]], value)
