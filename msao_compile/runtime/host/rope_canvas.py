"""M-RoPE positions of MiniCPM-V 4.7: a picture's thumbnail and its slices lie on one canvas.

A crop is a run of placeholders; a frame is a thumbnail and the slices that show it larger, row by row. Axes are time,
row and column.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from msao_compile.errors import PromptError
from msao_compile.runtime.host.rope_prompt import Facts, Positions, Prompt
from msao_compile.runtime.positions import Ints

MARKERS = ("slice_start_id", "slice_end_id", "image_start_id", "image_end_id", "newline_id")


def canvas_positions(prompt: Prompt, facts: Facts) -> Positions:
    """`position_ids` [3, S] int64 from the crops' rows and columns of patches, `target_sizes` [crops, 2].

    Source: transformers/models/minicpmv4_7/modeling_minicpmv4_7.py, MiniCPMV4_7Model.get_rope_index.
    """
    canvas = _Canvas(prompt, facts)
    for frame in _frames(prompt, facts):
        canvas.place(frame)
    canvas.fill(len(prompt.input_ids))
    for name, queue in (("pictures", canvas.sizes[1]), ("clips", canvas.sizes[2])):
        if left := sum(1 for _ in queue):
            raise PromptError(f"The prompt has no tokens for {left} crops of its {name}; write their placeholders.")
    return canvas.position_ids, int(canvas.position_ids.max(initial=-1)) + 1 - len(prompt.input_ids)


@dataclass
class _Frame:
    """Places of a thumbnail and of its slices, each (start, end), and where the markers after them end."""

    modality: int
    thumbnail: tuple[int, int]
    slices: list[tuple[int, int]] = field(default_factory=list)
    stop: int = 0

    def columns(self) -> int:
        """Slices in a row; a newline makes the gap after a row wider than the two markers between slices."""
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(self.slices)]
        columns = next((number for number, gap in enumerate(gaps, start=1) if gap > 2), len(self.slices))
        return columns if len(self.slices) % columns == 0 else len(self.slices)


def _frames(prompt: Prompt, facts: Facts) -> list[_Frame]:
    types_S = prompt.types(facts)
    ids = prompt.input_ids
    # A crop begins and ends where the modality changes.
    edges = [0, *(np.flatnonzero(np.diff(types_S)) + 1).tolist(), len(ids)]
    frames: list[_Frame] = []
    for start, end in itertools.pairwise(edges):
        if start == end or types_S[start] == 0:
            continue
        if start == 0:
            raise PromptError("The prompt begins with a crop's placeholders; write the token that opens it first.")
        if frames and ids[start - 1] == facts["slice_start_id"]:
            frames[-1].slices.append((start, end))
        else:
            frames.append(_Frame(int(types_S[start]), (start, end)))
    is_plain = ~np.isin(ids, [facts[name] for name in MARKERS])
    plain = np.append(np.flatnonzero(is_plain), len(ids))
    for frame in frames:
        last_end = [frame.thumbnail, *frame.slices][-1][1]
        frame.stop = int(plain[np.searchsorted(plain, last_end)])
    return frames


class _Canvas:
    """Numbers a prompt frame by frame: `index` is the next token, `position` its number."""

    def __init__(self, prompt: Prompt, facts: Facts) -> None:
        self.merge = 2 if facts["downsample_mode"] == "4x" else 4
        self.position_ids = np.zeros((3, len(prompt.input_ids)), dtype=np.int64)
        self.sizes = {1: _sizes(prompt.target_sizes), 2: _sizes(prompt.target_sizes_videos)}
        self.index = self.position = 0

    def fill(self, end: int) -> None:
        """Text up to `end` counts up on all axes."""
        count = max(end - self.index, 0)
        self.position_ids[:, self.index : self.index + count] = np.arange(count) + self.position
        self.index += count
        self.position += count

    def place(self, frame: _Frame) -> None:
        """Text before the frame, then its crops and the markers around them."""
        first = frame.thumbnail[0] - 1
        self.fill(first)
        thumbnail, *slices = (self._size(frame.modality) for _ in [frame.thumbnail, *frame.slices])
        columns = frame.columns() if slices else 1
        step = np.array(slices[0] if slices else thumbnail)
        canvas = step * [max(len(slices), 1) // columns, columns]
        origin = self.position
        spatial = self.position_ids[1:]
        self.position_ids[:, first : frame.stop] = origin
        spatial[:, first] = max(origin - 1, 0)
        if frame.thumbnail[1] < frame.stop:
            spatial[:, frame.thumbnail[1]] = origin + canvas
        self._crop(frame.thumbnail, _stretched(thumbnail, canvas) + origin)
        for number, (place, size) in enumerate(zip(frame.slices, slices, strict=True)):
            corner: Ints = origin + step * np.array(divmod(number, columns))
            spatial[:, place[0] - 1] = corner
            if place[1] < frame.stop:
                spatial[:, place[1]] = corner + size - 1
            self._crop(place, _stretched(size, size) + corner[:, None])
        for number, (before, after) in enumerate(itertools.pairwise(frame.slices)):
            # What stands between the two markers is the newline after a row, just right of it.
            row_end = np.array([(number // columns + 1) * step[0] - 1, columns * step[1]])
            spatial[:, before[1] + 1 : after[0] - 1] = (origin + row_end)[:, None]
        self.position = origin + int(canvas.max()) + 1
        self.index = frame.stop

    def _size(self, modality: int) -> tuple[int, int]:
        """Rows and columns of the next crop in tokens."""
        size = next(self.sizes.get(modality, iter(())), None)
        if size is None:
            raise PromptError("The prompt has placeholders for more crops than were given.")
        return size[0] // self.merge, size[1] // self.merge

    def _crop(self, place: tuple[int, int], spatial: Ints) -> None:
        if spatial.shape[1] != place[1] - place[0]:
            raise PromptError(
                f"The prompt has {place[1] - place[0]} placeholders at {place[0]} where its crop takes"
                f" {spatial.shape[1]}; expand them with the preprocessor of the same checkpoint."
            )
        self.position_ids[1:, slice(*place)] = spatial


def _sizes(target_sizes: Sequence[Sequence[int]] | np.ndarray | None) -> Iterator[list[int]]:
    return iter([] if target_sizes is None else np.asarray(target_sizes).tolist())


def _stretched(size: tuple[int, int], canvas: Sequence[int] | Ints) -> Ints:
    """[2, tokens]: row and column on a canvas of each token of a crop that is stretched over it."""
    axes = [_line(int(length), count) for count, length in zip(size, canvas)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1)


def _line(length: int, count: int) -> Ints:
    """[count] places from 0 to `length` - 1, rounded, as torch's linspace has them: from both ends in float32."""
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    steps = np.arange(count)
    last = np.float32(length - 1)
    step = last / np.float32(count - 1)
    below = step * steps.astype(np.float32)
    above = last - step * (count - 1 - steps).astype(np.float32)
    return np.rint(np.where(steps < count // 2, below, above)).astype(np.int64)
