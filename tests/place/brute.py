"""Every placement of a small instance, tried: written from the instance file's description alone, to check solvers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

Copy = tuple[str, str]
"""A device and a dtype; a module without dtypes has the dtype `""`."""


def ways(content: dict[str, Any], module: dict[str, Any]) -> dict[Copy, tuple[float, float]]:
    """Where and how a module may run: bytes and seconds."""
    memory, seconds = module["memory_bytes"], module["seconds"]
    if not isinstance(memory, dict):
        memory = {"": memory}
    if not any(isinstance(value, dict) for value in seconds.values()):
        seconds = dict.fromkeys(memory, seconds)
    allowed = module.get("allowed", list(memory))
    return {
        (device["name"], dtype): (memory[dtype], seconds[dtype][device["name"]])
        for device in content["devices"]
        for dtype in allowed
        if device["name"] in seconds.get(dtype, {})
    }


class Brute:
    """An instance to try everything on; at most `replicas` copies of a module, each on a device of its own."""

    def __init__(self, content: dict[str, Any], replicas: int = 1) -> None:
        self.content = content
        self.ways = {module["name"]: ways(content, module) for module in content["modules"]}
        self.output = {module["name"]: module["output_bytes"] for module in content["modules"]}
        self.links = {(link["to"], link["from"]): link for link in content["links"]}
        self.links |= {(link["from"], link["to"]): link for link in content["links"]}
        self.sets = {
            name: [
                held
                for count in range(1, replicas + 1)
                for held in itertools.combinations(found, count)
                if len({device for device, _ in held}) == count
            ]
            for name, found in self.ways.items()
        }
        self.weights = [request["weight"] for request in content["requests"]]
        self.request_s = cache(self._request_s)

    @property
    def size(self) -> int:
        """Placements, whether they fit or not."""
        return math.prod(len(found) for found in self.sets.values())

    def travel(self, start: str, end: str, size: float) -> float:
        """Seconds from a device to another."""
        if start == end:
            return 0.0
        link = self.links.get((start, end))
        return math.inf if link is None else link["rtt_ms"] / 2000 + size * 8 / (link["mbps"] * 1e6)

    def one_s(self, number: int, encoders: tuple[Copy, ...], head: Copy) -> float:
        """Seconds of a request with every slot decided."""
        request = self.content["requests"][number]
        busy = dict.fromkeys((device["name"] for device in self.content["devices"]), 0.0)
        arrivals = [0.0]
        for use, copy in zip(request["encoders"], encoders):
            device = copy[0]
            came = self.travel(request["source"], device, use["input_bytes"])
            busy[device] = max(came, busy[device]) + self.ways[use["module"]][copy][1]
            arrivals.append(busy[device] + self.travel(device, head[0], self.output[use["module"]]))
        back = self.travel(head[0], request["source"], request["reply_bytes"])
        return max(arrivals) + self.ways[request["head"]][head][1] + back

    def _request_s(self, number: int, held: tuple[tuple[Copy, ...], ...]) -> float:
        return min(self.one_s(number, chosen[:-1], chosen[-1]) for chosen in itertools.product(*held))

    def latencies(self, placement: dict[str, tuple[Copy, ...]]) -> list[float]:
        """Seconds of every request, each on the copies that are best for it."""
        return [
            self.request_s(
                number, (*(placement[use["module"]] for use in request["encoders"]), placement[request["head"]])
            )
            for number, request in enumerate(self.content["requests"])
        ]

    def objective(self, latencies: list[float], name: str) -> float:
        """The sum of weight x latency, or the smallest latency below which 95 % of the weight is."""
        if math.inf in latencies:
            return math.inf
        if name == "mean":
            return sum(weight * value for weight, value in zip(self.weights, latencies))
        for limit in [0.0, *sorted(latencies)]:
            within = sum(weight for weight, value in zip(self.weights, latencies) if value <= limit)
            if within >= 0.95 * sum(self.weights) * (1 - 1e-9):
                return limit
        raise AssertionError("all of the weight is at most the largest")

    def fitting(self) -> Iterator[dict[str, tuple[Copy, ...]]]:
        """Every placement within memory."""
        room = {device["name"]: device["memory_bytes"] for device in self.content["devices"]}
        yield from self._placed(list(self.sets), {}, room)

    def _placed(
        self, left: list[str], held: dict[str, tuple[Copy, ...]], room: dict[str, float]
    ) -> Iterator[dict[str, tuple[Copy, ...]]]:
        if not left:
            yield held
            return
        name, *rest = left
        for copies in self.sets[name]:
            after = dict(room)
            for copy in copies:
                after[copy[0]] -= self.ways[name][copy][0]
            if min(after.values()) >= 0:
                yield from self._placed(rest, {**held, name: copies}, after)

    def best(self, name: str = "mean") -> float:
        """The least objective of all; infinite where nothing fits or answers."""
        return min((self.objective(self.latencies(held), name) for held in self.fitting()), default=math.inf)
