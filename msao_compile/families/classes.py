"""Classes of requests for which it is told what crosses a cut: how many tokens each modality takes in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.families.examples import medium

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIDE_PIXELS = 512
SECONDS = 3
FRAMES_PER_SECOND = 2
MEL_FRAMES_PER_SECOND = 100
LABELS = {
    "image": f"one {SIDE_PIXELS} px picture",
    "video": f"a {SECONDS}-s clip of {SIDE_PIXELS} px, {FRAMES_PER_SECOND} frames a second",
    "audio": f"{SECONDS} s of sound",
}
TEXT = "text alone"


def request_classes(model: PreTrainedModel, known: Sequence[str]) -> dict[str, int]:
    """Tokens that stand for the medium of each class, by the class's label; 0 for text alone.

    Grids follow from the size. Families of one size make it of every picture, so that an example tells; so does one of
    their sounds, in proportion where its length varies.
    """
    found = {TEXT: 0}
    for modality in known:
        example = medium(model, modality, 0, np.random.default_rng(0))  # type: ignore[arg-type]
        tokens = sum(example.tokens)
        grid = next((value for name, value in example.inputs.items() if name.endswith("grid_thw")), None)
        if grid is not None:
            tokens = _grid_tokens(model.config.vision_config, modality, tokens, int(grid.prod()))
        elif modality == "audio" and tokens:
            longer = medium(model, "audio", 1, np.random.default_rng(1))
            tokens = _sound_tokens(example.inputs, longer.inputs, tokens)
        found[LABELS[modality]] = tokens
    return found


def _grid_tokens(vision: Any, modality: str, tokens: int, patches: int) -> int:
    """Tokens of a picture or clip whose patches are packed; the example tells how many patches one token stands for."""
    merged = max(1, patches // max(tokens, 1))
    side = int(vision.patch_size) * max(1, round(merged**0.5))
    rows = max(1, round(SIDE_PIXELS / side))
    frames = 1
    if modality == "video":
        frames = max(1, SECONDS * FRAMES_PER_SECOND // int(getattr(vision, "temporal_patch_size", 1) or 1))
    return int(rows * rows * frames)


def _sound_tokens(example: dict[str, np.ndarray], longer: dict[str, np.ndarray], tokens: int) -> int:
    """In proportion to the frames, where two examples differ in them; else what the family's one window takes."""
    [name] = [name for name, value in example.items() if value.dtype == np.float32][:1]
    axes = [axis for axis in range(1, example[name].ndim) if example[name].shape[axis] != longer[name].shape[axis]]
    if not axes:
        return tokens
    return int(max(1, round(tokens * SECONDS * MEL_FRAMES_PER_SECOND / example[name].shape[axes[-1]])))
