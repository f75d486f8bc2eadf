"""Training rows: one picture's tokens, then many questions with their answers that cannot see one another.

A row is a prefix (segment 0) and segments; each segment attends to the prefix and to itself, and its positions
restart after the prefix, so every segment looks as a lone prompt does later. Rows have one fixed length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Idefics3Processor, PreTrainedTokenizerFast

from calibration.shapes.dataset import SEEDS
from calibration.shapes.questions import FEWEST_THINGS, TEXT_KINDS, ask
from calibration.shapes.render import blank_picture, picture
from calibration.shapes.scene import PICTURE_PX, Scene, draw_scene
from calibration.train.tokenizer import ASSISTANT, END, IMAGE, USER, token_id

ROW_TOKENS = 144
SEGMENTS = 14
IGNORED = -100
PICTURES_PER_EXTRA = 16
"""For every 16 rows with a picture, one row with a flat picture and one without any."""
HIDDEN = -1e4
TEXT_SHARE = 0.12

VISION_WEIGHTS = {
    "color": 1.3,
    "shape": 1.2,
    "size": 1.0,
    "count": 1.8,
    "position": 1.4,
    "comparison": 2.4,
    "describe": 1.2,
    "detail": 0.9,
}
TEXT_WEIGHTS = {"arithmetic": 2.0, "copy": 1.0, "fact": 1.0, "fact_sentence": 0.6}


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens; the first P have a picture with shapes, the next F a flat one, the rest none."""

    scenes: tuple[Scene, ...]
    """The P scenes."""
    pixels: torch.Tensor
    """(P + F, 3, 72, 72), between -1 and 1."""
    ids: torch.Tensor
    """(B, L)."""
    positions: torch.Tensor
    """(B, L)."""
    mask: torch.Tensor
    """(B, 1, L, L), to add to attention scores: 0 where a token may look, else very negative."""
    targets: torch.Tensor
    """(B, L), the next token where it belongs to an answer, else -100."""
    weights: torch.Tensor
    """(B, L), 1 / sqrt(answer length) on answers."""


class RowMaker:
    """Draws fresh pictures and fresh questions for every batch."""

    def __init__(self, processor: Idefics3Processor, picture_rows: int, rng: Random) -> None:
        self._tokenizer: PreTrainedTokenizerFast = processor.tokenizer
        self._picture_rows = picture_rows
        self._extra_rows = max(1, picture_rows // PICTURES_PER_EXTRA)
        self._rng = rng
        user, self._assistant, self._end = (token_id(self._tokenizer, token) for token in (USER, ASSISTANT, END))
        shown = processor(text=USER + IMAGE, images=[blank_picture()], return_tensors="pt")
        self.picture_prefix: list[int] = shown["input_ids"][0].tolist()
        self._text_prefix = [user]

    def scenes(self, count: int) -> tuple[Scene, ...]:
        """Scenes drawn with replacement from the training seeds."""
        return tuple(draw_scene(Random(self._rng.choice(SEEDS["train"]))) for _ in range(count))

    def batch(self) -> Batch:
        """A batch of fresh rows."""
        drawn, extra = self._picture_rows, self._extra_rows
        scenes = self.scenes(drawn)
        flat = np.zeros((extra, PICTURE_PX, PICTURE_PX, 3), np.uint8)
        flat[:] = np.array(self._rng.choices(range(40, 200), k=3 * extra), np.uint8).reshape(extra, 1, 1, 3)
        arrays = _Arrays(drawn + 2 * extra)
        for index in range(drawn + 2 * extra):
            prefix = self.picture_prefix if index < drawn + extra else self._text_prefix
            pairs = self._pairs(scenes[index] if index < drawn else None)
            arrays.fill(index, prefix, self._encode(pairs))
        return arrays.batch(scenes, normalised(np.concatenate([pictures(scenes), flat])))

    def _pairs(self, scene: Scene | None) -> list[tuple[str, str]]:
        pairs = []
        for _ in range(SEGMENTS):
            if scene is None or self._rng.random() < TEXT_SHARE:
                (kind,) = self._rng.choices(list(TEXT_WEIGHTS), list(TEXT_WEIGHTS.values()))
            else:
                (kind,) = self._rng.choices(list(VISION_WEIGHTS), list(VISION_WEIGHTS.values()))
            if kind in TEXT_KINDS:
                pairs.append(TEXT_KINDS[kind](_NO_SCENE if scene is None else scene, self._rng))
            elif scene is not None and len(scene.things) >= FEWEST_THINGS.get(kind, 1):
                pairs.append(ask(kind, scene, self._rng))
        return pairs

    def _encode(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        texts = [text for pair in pairs for text in pair]
        encoded = self._tokenizer(texts).input_ids
        return [
            ([*question, self._assistant], [*answer, self._end])
            for question, answer in zip(encoded[::2], encoded[1::2], strict=True)
        ]


class _Arrays:
    """The arrays of a batch while it is being filled."""

    def __init__(self, rows: int) -> None:
        shape = (rows, ROW_TOKENS)
        self.ids, self.positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.segments, self.targets = np.full(shape, -1, np.int64), np.full(shape, IGNORED, np.int64)
        self.weights = np.zeros(shape, np.float32)

    def fill(self, row: int, prefix: list[int], pairs: list[tuple[list[int], list[int]]]) -> None:
        start = len(prefix)
        self.ids[row, :start], self.positions[row, :start], self.segments[row, :start] = prefix, range(start), 0
        for index, (question, answer) in enumerate(pairs):
            end = start + len(question) + len(answer)
            if end > ROW_TOKENS:
                continue
            self.ids[row, start:end] = question + answer
            self.positions[row, start:end] = range(len(prefix), len(prefix) + end - start)
            self.segments[row, start:end] = index + 1
            self.targets[row, start + len(question) - 1 : end - 1] = answer
            self.weights[row, start + len(question) - 1 : end - 1] = len(answer) ** -0.5
            start = end

    def batch(self, scenes: tuple[Scene, ...], pixels: torch.Tensor) -> Batch:
        segments = torch.from_numpy(self.segments)
        same = segments[:, :, None] == segments[:, None, :]
        past = torch.ones(ROW_TOKENS, ROW_TOKENS, dtype=torch.bool).tril()
        visible = past & (same | (segments[:, None, :] == 0))
        mask = torch.zeros(visible.shape).masked_fill(~visible, HIDDEN)
        return Batch(
            scenes,
            pixels,
            torch.from_numpy(self.ids),
            torch.from_numpy(self.positions),
            mask[:, None],
            torch.from_numpy(self.targets),
            torch.from_numpy(self.weights),
        )


def pictures(scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    """The pictures of the scenes: (P, 72, 72, 3)."""
    return np.stack([np.asarray(picture(scene)) for scene in scenes])


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels as the processor hands them to the model: (P, 3, 72, 72) between -1 and 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


_NO_SCENE = draw_scene(Random(0))
