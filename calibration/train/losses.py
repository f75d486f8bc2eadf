"""The three losses: answers, what each patch shows, and image tokens that point at the words for what they show."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from calibration.shapes.render import patch_owners
from calibration.shapes.scene import BACKGROUNDS, COLORS, COLUMNS, ROWS, SHAPES, SIZES, Scene, Thing
from calibration.train.tokenizer import word_ids

BACKGROUND_WEIGHT = 0.2
SHARPNESS = 12.0
WORDS = (COLORS, SHAPES, SIZES, ROWS, COLUMNS)
PATCH_WORDS = WORDS[:3]


def traits(thing: Thing) -> tuple[int, int, int, int, int]:
    """Indices into `WORDS`: colour, shape, size, row, column."""
    return COLORS.index(thing.color), SHAPES.index(thing.shape), SIZES.index(thing.size), thing.row, thing.column


class PatchHeads(nn.Module):
    """Throw-away heads that read colour, shape and size off each patch, so that the vision tower learns to see."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._classes = [len(words) + 1 for words in PATCH_WORDS]
        self.heads = nn.Linear(width, sum(self._classes))

    def loss(self, patches: torch.Tensor, scenes: Sequence[Scene]) -> tuple[torch.Tensor, list[float]]:
        """Cross-entropy over patches (P, 36, width), summed over traits, and the accuracy per trait on shapes."""
        labels = torch.from_numpy(np.stack([_patch_labels(scene) for scene in scenes], 1))
        total, right = patches.new_zeros(()), []
        for logits, wanted in zip(self.heads(patches).split(self._classes, -1), labels, strict=True):
            weight = torch.ones(logits.shape[-1])
            weight[0] = BACKGROUND_WEIGHT
            total = total + functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)
            right.append((logits.argmax(-1) == wanted)[wanted > 0].float().mean().item())
        return total, right


class WordAlignment:
    """Pulls the image token of each cell towards the embeddings of the words for what is in it.

    For a shape these are its colour, shape, size, row and column, for an empty cell the kind of background.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._ids = [torch.tensor(word_ids(tokenizer, words)) for words in (*WORDS, BACKGROUNDS)]

    def loss(
        self, image_tokens: torch.Tensor, embeddings: torch.Tensor, scenes: Sequence[Scene]
    ) -> tuple[torch.Tensor, list[float]]:
        """Image tokens (P, 9, hidden), embeddings (vocabulary, hidden); the loss and the accuracy per trait."""
        shown = [(row, _cell(thing), traits(thing)) for row, scene in enumerate(scenes) for thing in scene.things]
        taken = {(row, cell) for row, cell, _ in shown}
        empty = [(row, cell) for row in range(len(scenes)) for cell in range(9) if (row, cell) not in taken]
        wanted = torch.tensor([trait for _, _, trait in shown])
        background = torch.tensor([BACKGROUNDS.index(scenes[row].background) for row, _ in empty])
        things = image_tokens[[row for row, _, _ in shown], [cell for _, cell, _ in shown]]
        gaps = image_tokens[[row for row, _ in empty], [cell for _, cell in empty]]
        total, right = image_tokens.new_zeros(()), []
        parts = [(things, wanted[:, trait]) for trait in range(len(WORDS))] + [(gaps, background)]
        for ids, (tokens, labels) in zip(self._ids, parts, strict=True):
            words = functional.normalize(embeddings[ids], dim=-1)
            logits = SHARPNESS * functional.normalize(tokens, dim=-1) @ words.T
            total = total + functional.cross_entropy(logits, labels)
            right.append((logits.argmax(-1) == labels).float().mean().item())
        return total, right


def _cell(thing: Thing) -> int:
    return 3 * thing.row + thing.column


def answer_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy: logits (N, vocabulary), targets (N,), weights (N,)."""
    return (functional.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()


def _patch_labels(scene: Scene) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    owners = patch_owners(scene).reshape(-1)
    table = np.zeros((len(PATCH_WORDS), len(scene.things) + 1), np.int64)
    for index, thing in enumerate(scene.things):
        table[:, index] = [1 + trait for trait in traits(thing)[: len(PATCH_WORDS)]]
    return table[:, owners]
