"""An instance as numbers: options of each module, delays between devices, and the slots that a request fills."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from msao_compile.place.instance import Instance, Module

BITS = 8


@dataclass(frozen=True)
class Option:
    """A module on a device in a dtype."""

    device: int
    dtype: str
    memory_bytes: float
    seconds: float


@dataclass(frozen=True)
class Ask:
    """A request class: modules by number; `arrivals[i][n]` is when encoder i's input is at device n, `reply[n]` how
    long an answer travels from there, both infinite where no link leads.
    """

    weight: float
    slots: tuple[int, ...]
    """The encoders in order, the head last."""
    arrivals: tuple[tuple[float, ...], ...]
    reply: tuple[float, ...]


Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Problem:
    """What solvers work on; devices, modules and options are numbers, times seconds."""

    instance: Instance
    options: tuple[tuple[Option, ...], ...]
    asks: tuple[Ask, ...]
    features: tuple[Table, ...]
    """Of each module: how long its output travels from a device to another."""

    @cached_property
    def room(self) -> tuple[float, ...]:
        """Bytes of each device."""
        return tuple(device.memory_bytes for device in self.instance.devices)

    @cached_property
    def device_names(self) -> tuple[str, ...]:
        """By number."""
        return tuple(device.name for device in self.instance.devices)

    @cached_property
    def module_names(self) -> tuple[str, ...]:
        """By number."""
        return tuple(module.name for module in self.instance.modules)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """The requests that use each module."""
        return tuple(
            tuple(number for number, ask in enumerate(self.asks) if module in ask.slots)
            for module in range(len(self.options))
        )

    def with_room(self, room: Sequence[float]) -> Problem:
        """The same with other memory."""
        devices = tuple(
            device.model_copy(update={"memory_bytes": size})
            for device, size in zip(self.instance.devices, room, strict=True)
        )
        return replace(self, instance=self.instance.model_copy(update={"devices": devices}))


def links_of(instance: Instance) -> dict[tuple[int, int], tuple[float, float]]:
    """Round trip in ms and Mbit/s by the numbers of two devices, in both directions."""
    number = {device.name: index for index, device in enumerate(instance.devices)}
    given = {(number[link.start], number[link.end]): (link.rtt_ms, link.mbps) for link in instance.links}
    return {(end, start): values for (start, end), values in given.items()} | given


def delays(instance: Instance, size_bytes: float) -> Table:
    """Seconds that so many bytes travel between devices: half a round trip and the bytes at the link's rate."""
    links, count = links_of(instance), len(instance.devices)

    def between(start: int, end: int) -> float:
        if start == end:
            return 0.0
        if (start, end) not in links:
            return math.inf
        rtt_ms, mbps = links[start, end]
        return rtt_ms / 2e3 + size_bytes * BITS / (mbps * 1e6)

    return tuple(tuple(between(start, end) for end in range(count)) for start in range(count))


def problem_of(instance: Instance) -> Problem:
    """The numbers of an instance."""
    devices = {device.name: index for index, device in enumerate(instance.devices)}
    modules = {module.name: index for index, module in enumerate(instance.modules)}
    asks = []
    for request in instance.requests:
        source = devices[request.source]
        asks.append(
            Ask(
                weight=request.weight,
                slots=(*(modules[use.module] for use in request.encoders), modules[request.head]),
                arrivals=tuple(delays(instance, use.input_bytes)[source] for use in request.encoders),
                reply=tuple(row[source] for row in delays(instance, request.reply_bytes)),
            )
        )
    return Problem(
        instance=instance,
        options=tuple(options_of(module, devices) for module in instance.modules),
        asks=tuple(asks),
        features=tuple(delays(instance, module.output_bytes) for module in instance.modules),
    )


def options_of(module: Module, devices: dict[str, int]) -> tuple[Option, ...]:
    """Where and how a module may run; a dtype that is neither smaller nor faster on a device is left out."""
    found: list[Option] = []
    for name, device in devices.items():
        here = [
            Option(device, dtype, module.memory_bytes[dtype], module.seconds[dtype][name])
            for dtype in module.dtypes
            if name in module.seconds.get(dtype, {})
        ]
        here.sort(key=lambda option: (option.seconds, option.memory_bytes))
        kept: list[Option] = []
        for option in here:
            if not kept or option.memory_bytes < kept[-1].memory_bytes:
                kept.append(option)
        found += kept
    return tuple(found)
