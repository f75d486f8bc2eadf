"""M-RoPE positions of Qwen2.5-Omni and Qwen3-Omni: pictures, recordings, clips, and clips with their sound.

A prompt is a row of pieces, each [3, tokens]; a piece begins one after the highest position of the piece before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msao_compile.errors import PromptError
from msao_compile.runtime.host.audio import halved, tokens_after_convolutions
from msao_compile.runtime.host.rope_prompt import Facts, Positions, Prompt
from msao_compile.runtime.positions import Ints

Piece = NDArray[Any]
"""[3, tokens], int64 or float32 as the model has them."""

TEXT, IMAGE, VIDEO, AUDIO = range(4)


def qwen2_5_omni_positions(prompt: Prompt, facts: Facts) -> Positions:
    """`position_ids` [3, S] int64; sound and frames of a clip alternate in stretches of `seconds_per_chunk`.

    Source: transformers/models/qwen2_5_omni/modeling_qwen2_5_omni.py, get_rope_index of the thinker and the talker.
    """
    lens = np.zeros(0, dtype=np.int64) if prompt.audio_seqlens is None else np.asarray(prompt.audio_seqlens, np.int64)
    chunk = int(facts["position_id_per_seconds"] * facts["seconds_per_chunk"])
    return _positions(prompt, facts, _Rules(np.dtype(np.int64), (0, 0), chunk), halved(lens) // 2)


def qwen3_omni_positions(prompt: Prompt, facts: Facts) -> Positions:
    """`position_ids` [3, S] float32; sound and frames of a clip are sorted by their times, which are not rounded.

    Source: transformers/models/qwen3_omni_moe/modeling_qwen3_omni_moe.py, get_rope_index of the thinker.
    """
    lens = np.zeros(0, dtype=np.int64) if prompt.audio_seqlens is None else prompt.audio_seqlens
    rules = _Rules(np.dtype(np.float32), (0, 1), None)
    return _positions(prompt, facts, rules, tokens_after_convolutions(lens, facts["n_window"]))


@dataclass(frozen=True)
class _Rules:
    """Where the two models differ: the dtype, the offsets of the two tokens at each end of a clip with sound, and the
    positions of one stretch of such a clip (None: tokens are sorted one by one)."""

    dtype: np.dtype[Any]
    pair: tuple[int, int]
    chunk: int | None


def _positions(prompt: Prompt, facts: Facts, rules: _Rules, audio_tokens: Ints) -> Positions:
    ids = prompt.input_ids
    if prompt.image_grid_thw is None and prompt.video_grid_thw is None:
        # Without pictures and clips a recording's tokens count up as text does.
        return np.tile(np.arange(len(ids), dtype=rules.dtype), (3, 1)), rules.dtype.type(0).item()
    walk = _Walk(prompt, facts, rules, audio_tokens)
    while walk.index < len(ids):
        walk.step()
    walk.check_end()
    position_ids = np.concatenate(walk.pieces, axis=1)
    return position_ids, (position_ids.max() + rules.dtype.type(1) - rules.dtype.type(len(ids))).item()


class _Walk:
    """Goes through a prompt piece by piece."""

    def __init__(self, prompt: Prompt, facts: Facts, rules: _Rules, audio_tokens: Ints) -> None:
        self.types = Prompt(prompt.input_ids).types(facts)
        self.rules = rules
        self.merge = int(facts["spatial_merge_size"])
        self.rate = facts["position_id_per_seconds"]
        self.with_sound = prompt.use_audio_in_video
        videos = prompt.videos().tolist()
        seconds = [1.0] * len(videos) if prompt.second_per_grid_ts is None else list(prompt.second_per_grid_ts)
        self.images = iter(prompt.images().tolist())
        self.videos = iter(list(zip(videos, seconds, strict=True)))
        self.audio_tokens = iter(audio_tokens.tolist())
        self.pieces: list[Piece] = []
        self.index = 0
        self.start: Any = rules.dtype.type(0)
        self.end_tokens = 0

    def step(self) -> None:
        """Adds the text up to the next placeholder, or what the placeholders at `index` stand for."""
        match int(self.types[self.index]):
            case 0:
                self._text()
            case 1:
                self._media([self._grid(next(self.images, None), None)])
            case 2 if self.with_sound:
                self._clip_with_sound()
            case 2:
                grid, second = next(self.videos, (None, 1.0))
                self._media([self._grid(grid, second)])
            case _:
                self._media([self._sound()])

    def check_end(self) -> None:
        """Refuses a prompt that has no placeholders for something that was given."""
        for name, queue in (("pictures", self.images), ("clips", self.videos), ("recordings", self.audio_tokens)):
            if left := sum(1 for _ in queue):
                raise PromptError(f"The prompt has no tokens for {left} of its {name}; write their placeholders.")

    def _text(self) -> None:
        """Text between placeholders: the tokens that end what was before, free text, those that begin what comes."""
        later = np.flatnonzero(self.types[self.index :])
        count = int(later[0]) if len(later) else len(self.types) - self.index
        begin = 0
        if len(later):
            begin = 2 if self.with_sound and self.types[self.index + count] == VIDEO else 1
        free = count - self.end_tokens - begin
        if free < 0:
            raise PromptError(
                f"The prompt has {count} tokens at {self.index}; each medium has a start and an end token."
            )
        self._line(self._ends(self.end_tokens))
        self._line(np.arange(free))
        self._line(self._ends(begin))
        self.index += count

    def _ends(self, count: int) -> Ints:
        """Offsets of the tokens at one end of a medium: one, or two of a clip with sound."""
        return np.array(self.rules.pair if count == 2 else (0,) * count, dtype=np.int64)

    def _line(self, offsets: Ints) -> None:
        """Adds text tokens, equal on all axes."""
        if len(offsets):
            self.pieces.append(np.tile(offsets.astype(self.rules.dtype), (3, 1)) + self.start)
            self.start = self.start + self.rules.dtype.type(offsets[-1] + 1)

    def _media(self, pieces: list[Piece], end_tokens: int = 1) -> None:
        expected = sum(piece.shape[1] for piece in pieces)
        run = self.types[self.index : self.index + expected]
        if expected == 0 or len(run) < expected or (run == TEXT).any():
            raise PromptError(
                f"The prompt's placeholders at {self.index} are not the {expected} tokens that its picture, clip or"
                " recording takes; expand them with the preprocessor of the same checkpoint."
            )
        self.pieces += pieces
        self.start = pieces[-1].max() + self.rules.dtype.type(1)
        self.end_tokens = end_tokens
        self.index += expected

    def _grid(self, grid: list[int] | None, second: float | None) -> Piece:
        """[3, tokens] of a picture (`second` None) or a clip; times of a clip are float32 as torch has them."""
        if grid is None:
            raise PromptError(f"The prompt has placeholders at {self.index} for a picture or clip that was not given.")
        frames, rows, columns = grid[0], grid[1] // self.merge, grid[2] // self.merge
        times = np.arange(frames, dtype=np.float32)
        times = times * np.float32(1 if second is None else second) * np.float32(self.rate)
        place = np.indices((frames, rows, columns), dtype=self.rules.dtype).reshape(3, -1)
        place[0] = np.repeat(times.astype(self.rules.dtype), rows * columns)
        piece: Piece = place + self.start
        return piece

    def _sound(self) -> Piece:
        """[3, tokens] of a recording."""
        piece: Piece = np.tile(np.arange(next(self.audio_tokens, 0), dtype=self.rules.dtype), (3, 1)) + self.start
        return piece

    def _clip_with_sound(self) -> None:
        grid, second = next(self.videos, (None, 1.0))
        frames, sound = self._grid(grid, second), self._sound()
        if self.rules.chunk is None:
            self._media(_sorted(frames, sound), 2)
            return
        stretches = [_stretches(piece, piece[0] - self.start, self.rules.chunk) for piece in (frames, sound)]
        longest = max(len(stretch) for stretch in stretches)
        self._media([stretch[i] for i in range(longest) for stretch in stretches if i < len(stretch)], 2)


def _sorted(frames: Piece, sound: Piece) -> list[Piece]:
    """Both in order of time, frames first where times are equal; the last piece is what one has left at the end.

    The next token's position follows that rest alone, so it is a piece of its own.
    """
    both = np.concatenate([frames, sound], axis=1)
    order = np.argsort(both[0], kind="stable")
    from_sound = order >= frames.shape[1]
    switches = np.flatnonzero(np.diff(from_sound))
    rest = int(switches[-1]) + 1 if len(switches) else 0
    merged = both[:, order]
    return [merged[:, :rest], merged[:, rest:]]


def _stretches(piece: Piece, times: Piece, chunk: int) -> list[Piece]:
    """`piece` cut where `times` reach the next multiple of `chunk`.

    One cut at a token and one multiple at a cut, as transformers' get_chunked_index has it: times that jump over
    several multiples cut the tokens that follow one by one.
    """
    cuts = [0]
    for index, time in enumerate(times.tolist()):
        if time >= len(cuts) * chunk:
            cuts.append(index)
    return [piece[:, start:end] for start, end in zip(cuts, [*cuts[1:], piece.shape[1]], strict=True)]
