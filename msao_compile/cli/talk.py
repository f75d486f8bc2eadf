"""Where words go: results to stdout, talk to stderr, and with --json exactly one object on stdout."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TextIO

import typer

_KEPT_CONTROLS = "\n\t"


@dataclass
class Talk:
    """How one run of the command line speaks."""

    as_json: bool = False
    quiet: bool = False
    result: Mapping[str, object] | None = None

    def say(self, sentence: str) -> None:
        """Talk: progress, remarks and advice; nothing when quiet."""
        if not self.quiet:
            write_line(sentence)

    def reply(self, facts: Mapping[str, object], draw: Callable[[], None]) -> None:
        """The result: drawn now, or kept for the one JSON object that `close` writes."""
        if self.as_json:
            self.result = facts
        else:
            draw()

    def close(self, error: Mapping[str, object] | None = None) -> None:
        """Write the JSON object, with the error beside the result where there is one."""
        if self.as_json and (self.result is not None or error is not None):
            whole = {**(self.result or {}), **({"error": error} if error else {})}
            print(json.dumps(plain(whole), indent=1), flush=True)


def talk_of(context: typer.Context, as_json: bool, quiet: bool) -> Talk:
    """The run's talk, told what this command was asked for."""
    talk: Talk = context.ensure_object(Talk)
    talk.as_json, talk.quiet = as_json, quiet
    return talk


def plain(value: object) -> object:
    """A value as JSON can hold it: a number that is not finite becomes null, a path its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def write_line(text: str) -> None:
    """A line on stderr, in one call: between the two calls of `print` another thread's line may come."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Text without control characters: what a file or a model says must not steer the terminal."""
    return "".join(
        character if character.isprintable() or character in _KEPT_CONTROLS else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


class StderrHandler(logging.Handler):
    """Log records as plain lines on whatever stderr is now, so that live bars can stand below them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        write_line(f"{record.levelname.lower()}: {self.format(record)}")


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at this stream."""
    return stream.isatty()
