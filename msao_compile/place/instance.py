"""The instance file of `place`: devices, links, modules and requests, and what is refused of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from msao_compile.errors import InputError
from msao_compile.manifest.frozen import Frozen

ONLY = ""
"""The dtype of a module that is given without any."""

Name = Annotated[str, Field(min_length=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Device(Frozen):
    """A machine and the memory that modules may take of it."""

    name: Name
    memory_bytes: Amount


class Link(Frozen):
    """A way between two devices; it leads back as well where the other direction is not given."""

    start: Annotated[Name, Field(alias="from")]
    end: Annotated[Name, Field(alias="to")]
    rtt_ms: Amount
    mbps: Rate


def _some(table: dict[str, Any]) -> dict[str, Any]:
    if not table:
        raise ValueError("it is empty: give at least one entry")
    return table


class Module(Frozen):
    """A module by dtype: its bytes, and its seconds on each device that can run it.

    A module given without dtypes has one, `ONLY`. `allowed` are the dtypes that a placement may choose.
    """

    name: Name
    memory_bytes: Annotated[dict[str, Amount], AfterValidator(_some)]
    output_bytes: Amount
    seconds: dict[str, dict[str, Amount]]
    allowed: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_dtype(cls, content: Any) -> Any:
        """Plain numbers as those of the only dtype, plain seconds as those of every dtype."""
        if not isinstance(content, Mapping):
            return content
        memory, seconds = content.get("memory_bytes"), content.get("seconds")
        whole = dict(content)
        if "memory_bytes" in content and not isinstance(memory, Mapping):
            whole["memory_bytes"] = memory = {ONLY: memory}
        if isinstance(seconds, Mapping) and not any(isinstance(value, Mapping) for value in seconds.values()):
            whole["seconds"] = dict.fromkeys(memory or (), seconds)
        return whole

    @model_validator(mode="after")
    def _dtypes_are_known(self) -> Module:
        for what, given in (("seconds", self.seconds), ("allowed", self.allowed or ())):
            for dtype in given:
                if dtype not in self.memory_bytes:
                    raise ValueError(f"{what} names the dtype {dtype!r}, whose memory_bytes are not given: add them")
        if self.allowed == ():
            raise ValueError("allowed is empty: name a dtype, or leave it out to allow all")
        return self

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those that a placement may choose."""
        return tuple(self.memory_bytes) if self.allowed is None else self.allowed


class Use(Frozen):
    """An encoder of a request, and the bytes that go to it."""

    module: Name
    input_bytes: Amount


class Request(Frozen):
    """A class of requests: encoders in the order in which they run on one device, then the head."""

    task: Name
    source: Name
    weight: Amount
    reply_bytes: Amount
    encoders: tuple[Use, ...]
    head: Name


class Instance(Frozen):
    """A whole placement problem."""

    devices: Annotated[tuple[Device, ...], Field(min_length=1)]
    links: tuple[Link, ...]
    modules: Annotated[tuple[Module, ...], Field(min_length=1)]
    requests: Annotated[tuple[Request, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Instance:
        _once("devices", (device.name for device in self.devices))
        _once("modules", (module.name for module in self.modules))
        devices = {device.name for device in self.devices}
        modules = {module.name for module in self.modules}
        for number, link in enumerate(self.links):
            _known(f"links[{number}].from", link.start, devices, "device")
            _known(f"links[{number}].to", link.end, devices, "device")
            if link.start == link.end:
                raise ValueError(f"links[{number}] leads from {link.start!r} to itself: leave it out")
        _once("links", (f"{link.start} to {link.end}" for link in self.links))
        for module in self.modules:
            for device in (name for times in module.seconds.values() for name in times):
                _known(f"the seconds of module {module.name!r}", device, devices, "device")
        for number, request in enumerate(self.requests):
            _known(f"requests[{number}].source", request.source, devices, "device")
            _known(f"requests[{number}].head", request.head, modules, "module")
            for use in request.encoders:
                _known(f"requests[{number}].encoders", use.module, modules, "module")
        return self


def _once(where: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{where} has {name!r} {count} times: give each one name of its own, once")


def _known(where: str, name: str, known: set[str], kind: str) -> None:
    if name not in known:
        raise ValueError(f"{where} names {name!r}, which is no {kind}: known are {', '.join(sorted(known))}")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): give the path of a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}): correct it") from error


def checked(content: Any, where: str) -> Instance:
    """An instance of what a file says.

    Raises:
        InputError: something is missing, unknown, negative, not finite or does not agree; the message names the field.
    """
    try:
        return Instance.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {sentence(error)}") from error


def sentence(error: ValidationError) -> str:
    """The first fault in one sentence that starts with its field."""
    fault, *more = error.errors(include_url=False)
    loc = tuple(step for step in fault["loc"] if step not in (ONLY, "[key]"))
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")
    left = f" (and {len(more)} more)" if more else ""
    words = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{field}: {words}{left}" if field else f"{words}{left}"
    if fault["type"] == "missing":
        return f"{field} is missing: add it{left}"
    if fault["type"] == "too_short":
        return f"{field} is empty: give at least one{left}"
    if fault["type"] == "extra_forbidden":
        return f"{field} is not a field here: remove it or correct its name{left}"
    got = fault["input"]
    shown = repr(got) if got is None or isinstance(got, int | float | str) else f"a {type(got).__name__}"
    return f"{field or 'the file'} is {shown[:80]}, which is refused: {words}{left}"
