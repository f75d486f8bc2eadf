"""A stage to run in a process of its own, and what is known when it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Progress = Mapping[str, JsonValue]
OnProgress = Callable[[Progress], None]


class Frozen(BaseModel):
    """Frozen and strict, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Job(Frozen):
    """A function and its arguments.

    The child calls `name(arguments, on_progress)`: the arguments as plain JSON, and a callback that takes a small JSON
    record. What the function returns must be plain JSON too.
    """

    function: Annotated[str, Field(pattern=r"\A[\w.]+:\w+\z")]
    """`package.module:name`"""
    arguments: Mapping[str, JsonValue]
    phase: str | None = None
    """What it does, in words for messages, such as "parity of edge"; None is the function's name."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of OpenMP, MKL and OpenBLAS in the child (torch follows them); None leaves the number to them."""
    log: Path | None = None
    """Where the child's stdout, stderr and logging go; None is a temporary file, which stays only after a failure."""

    @property
    def called(self) -> str:
        """Its name in messages."""
        return self.phase or self.function


class Result(Frozen):
    """What a job returned and what it took."""

    value: JsonValue
    seconds: float
    """Wall time, the start of the process included."""
    peak_rss_bytes: int
    """The most memory the child itself held at once, mapped files included, its own children not."""
    cpu_seconds: float
    """User and system time of the child and of the processes it waited for."""
