"""What an emulated run declares: the speed of each side, what a picture weighs on the wire, and the points to visit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from msao_compile.bench.shape import Shape
from msao_compile.errors import InputError
from msao_compile.manifest.frozen import Frozen
from msao_compile.manifest.offload import Line, Primitives

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Side(Frozen):
    """One side's declared speed. `slower` stretches times measured here; times that are declared replace them.

    `turn_ms`: so long after each piece of work its caller hears of it.
    """

    name: str
    slower: Positive = 1.0
    turn_ms: NotNegative = 0.0
    prepare: Line | None = None
    encode: Line | None = None
    prefill: Line | None = None
    decode: Line | None = None
    verify: Line | None = None

    def primitives(self, measured: Primitives) -> Primitives:
        """Times of this side: declared where they are, else those measured, stretched."""
        found = {}
        for kind in ("prepare", "encode", "prefill", "decode", "verify"):
            declared: Line | None = getattr(self, kind)
            line: Line = getattr(measured, kind)
            stretched = Line(fixed_ms=line.fixed_ms * self.slower, each_ms=line.each_ms * self.slower)
            found[kind] = stretched if declared is None else declared
        return Primitives(model=measured.model, **found)


class Sweep(Frozen):
    """The points of a sweep: every rate with every round trip and every number of sessions."""

    mbps: Annotated[tuple[Positive, ...], Field(min_length=1)]
    rtt_ms: Annotated[tuple[Positive, ...], Field(min_length=1)]
    sessions: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)

    def shapes(self) -> list[tuple[Shape, int]]:
        """Links and sessions, in order."""
        return [
            (Shape(mbps=rate, rtt_ms=delay), count)
            for count in self.sessions
            for delay in self.rtt_ms
            for rate in self.mbps
        ]


class Setting(Frozen):
    """A whole emulation; `why` says where its figures are from.

    `message_ms`: what each message takes beside the link, either way.
    """

    name: str
    why: str
    edge: Side
    cloud: Side
    picture_bytes: Count | None = None
    message_ms: NotNegative = 0.0
    sweeps: Annotated[tuple[Sweep, ...], Field(min_length=1)]


def read_setting(path: Path) -> Setting:
    """From a TOML file.

    Raises:
        InputError: it is not there, no TOML, or a field is missing, unknown or out of range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a setting in TOML ({error})") from error
    try:
        return Setting.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}") from error
