"""The text of an answer as its tokens come, up to the first of the sequences that end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msao_compile.errors import InputError
from msao_compile.runtime.tokens import StreamDecoder


class TextUntil:
    """Gives text that is certain: not what may be the start of a stop sequence, and nothing from one on.

    Of several sequences the one that is complete first counts, however the text is cut into pieces.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str]) -> None:
        self._decoder, self._stops = decoder, stops
        self._held = ""
        self.text, self.ended = "", False

    def push(self, token_id: int) -> str:
        """The text that is certain after this token; `ended` says whether a stop sequence was found."""
        return self._give(self._decoder.push(token_id), last=False)

    def flush(self) -> str:
        """The rest of the text, empty where a stop sequence ended it."""
        return "" if self.ended else self._give(self._decoder.flush(), last=True)

    def _give(self, new: str, last: bool) -> str:
        self._held += new
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.ended = bool(found)
        end = min(found)[1] if found else len(self._held) - (0 if last else self._doubtful())
        given, self._held = self._held[:end], self._held[end:]
        self.text += given
        return given

    def _doubtful(self) -> int:
        """How many characters at the end may be the start of a stop sequence."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._opens(self._held[-size:])), 0)

    def _opens(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)


def read_stops(given: Any) -> tuple[str, ...]:
    """One stop sequence or several.

    Raises:
        InputError: one is empty or no text.
    """
    stops = (given,) if isinstance(given, str) else tuple(given)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise InputError(f"a stop sequence is {stop!r}: give text of at least one character")
    return stops
