"""Inputs to hold an engine against its graph: seeded, in the shapes of the engine's own profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from msao_compile.errors import StageError
from msao_compile.manifest.schema import Graph, ShapeProfile, TensorSpec

Arrays = dict[str, np.ndarray]
SPREAD = 1.0
"""Standard deviation of numbers that stand for pixels, features and embeddings."""
TOKENS = ("input_ids", "decoder_input_ids")
WRITE_INDICES = "write_indices"
POSITIONS, ROWS, MASK = "position_ids", "logits_positions", "attention_mask"


@dataclass(frozen=True)
class Facts:
    """What the model says of tokens: how many there are, and which stand for features of a modality."""

    vocabulary: int
    placeholders: Mapping[str, int] = field(default_factory=dict)


def shapes_of(graph: Graph, profile: ShapeProfile, which: str) -> dict[str, tuple[int, ...]]:
    """The shape of every input at a profile's `min` or `opt`; what varies there and is in no range is 1."""
    ranges = {entry.name: getattr(entry, which) for entry in profile.inputs}
    fixed = {
        spec.name: tuple(size if isinstance(size, int) else 1 for size in spec.shape)
        for spec in graph.inputs
    }  # fmt: skip
    return {**fixed, **ranges}


def seeded(graph: Graph, shapes: Mapping[str, tuple[int, ...]], facts: Facts, name: str) -> Arrays:
    """An array for every input that a decoder does not give itself, the same for the same `name`.

    Masks are all ones, positions count up, tokens are drawn from the vocabulary with a placeholder for each row of
    features where they fit, other numbers are normal.

    Raises:
        StageError: an input is of whole numbers that nothing here knows.
    """
    own = {*(state.name for state in graph.states), WRITE_INDICES}
    found: Arrays = {}
    for spec in graph.inputs:
        if spec.name not in own:
            found[spec.name] = _array(spec, shapes[spec.name], facts, f"{name}.{spec.name}")
    for tokens in TOKENS:
        if tokens in found:
            _place(found[tokens], found, facts)
    return found


def _array(spec: TensorSpec, shape: tuple[int, ...], facts: Facts, name: str) -> np.ndarray:
    kind = np.dtype(spec.dtype)
    chance = np.random.default_rng(int.from_bytes(sha256(name.encode()).digest()[:8], "little"))
    if kind.kind == "b" or "mask" in spec.name:
        return np.ones(shape, kind)
    if kind.kind == "f":
        return (SPREAD * chance.standard_normal(shape)).astype(kind)
    if spec.name in TOKENS:
        free = np.setdiff1d(np.arange(facts.vocabulary), list(facts.placeholders.values()))
        return chance.choice(free, shape).astype(kind)
    if spec.name in (POSITIONS, ROWS):
        return np.ascontiguousarray(np.broadcast_to(np.arange(shape[-1], dtype=kind), shape))
    if spec.name == "token_type_ids":
        return np.zeros(shape, kind)
    raise StageError(f"its input {spec.name} holds whole numbers that depend on a picture or a sound")


def _place(tokens: np.ndarray, found: Arrays, facts: Facts) -> None:
    """Let as many of the first tokens as there are features stand for them, in each modality that has any."""
    flat, start = tokens.reshape(-1), 0
    for modality, token in sorted(facts.placeholders.items()):
        features = found.get(f"{modality}_features")
        count = 0 if features is None else features.size // features.shape[-1]
        if start + count <= flat.size:
            flat[start : start + count] = token
            start += count


def decoder_steps(graph: Graph, first: Arrays, embeds: Sequence[np.ndarray], capacity: int) -> list[Arrays]:
    """The feeds of a prefill and of the steps after it; `embeds` [B, S, H] are each run's, positions count on.

    Each run gives the logits of its last position. As many runs as fit the state.
    """
    feeds, held = [], 0
    for number, given in enumerate(embeds):
        batch, count = given.shape[:2]
        if held + count > capacity:
            break
        feed = dict(first) if number == 0 else _later(graph, first)
        feed["inputs_embeds"] = given
        if POSITIONS in feed:
            feed[POSITIONS] = _counted(graph, batch, held, count)
        if MASK in feed:
            feed[MASK] = np.ones((batch, held + count), feed[MASK].dtype)
        if ROWS in feed:
            feed[ROWS] = np.array([count - 1], feed[ROWS].dtype)
        feeds.append(feed)
        held += count
    return feeds


def _counted(graph: Graph, batch: int, start: int, count: int) -> np.ndarray:
    """Positions from `start` on, [B, S] or [axes, B, S]."""
    spec = next(entry for entry in graph.inputs if entry.name == POSITIONS)
    axes = tuple(size for size in spec.shape[:-2] if isinstance(size, int))
    counted = np.arange(start, start + count, dtype=spec.dtype)
    return np.ascontiguousarray(np.broadcast_to(counted, (*axes, batch, count)))


def _later(graph: Graph, first: Arrays) -> Arrays:
    """What steps after the prefill are given: the last row of what lies over tokens."""
    found = {}
    for spec in graph.inputs:
        if spec.name in first:
            over = spec.shape.index("sequence_length") if "sequence_length" in spec.shape else None
            found[spec.name] = first[spec.name] if over is None else np.take(first[spec.name], [-1], over)
    return found
