"""Instances as files have them, small enough to reckon by hand, and random ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as some

from msao_compile.place.instance import checked
from msao_compile.place.latency import Copies, Judge
from msao_compile.place.problem import Problem, problem_of

TIMES = [0.0, 0.01, 0.05, 0.2, 0.37]


def link(start: str, end: str, rtt_ms: float = 0.0, mbps: float = 8.0) -> dict[str, Any]:
    """8 Mbit/s is a megabyte a second."""
    return {"from": start, "to": end, "rtt_ms": rtt_ms, "mbps": mbps}


def module(name: str, memory: Any = 1.0, seconds: Any = None, output_bytes: float = 0.0, **more: Any) -> dict[str, Any]:
    """On the devices that `seconds` names."""
    return {"name": name, "memory_bytes": memory, "output_bytes": output_bytes, "seconds": seconds or {}, **more}


def request(
    source: str, encoders: list[tuple[str, float]], head: str, weight: float = 1.0, reply_bytes: float = 0.0
) -> dict[str, Any]:
    """Encoders with the bytes that go to each."""
    uses = [{"module": name, "input_bytes": size} for name, size in encoders]
    return {"task": "t", "source": source, "weight": weight, "reply_bytes": reply_bytes, "encoders": uses, "head": head}


def instance(
    devices: dict[str, float], links: list[Any], modules: list[dict[str, Any]], requests: list[dict[str, Any]]
) -> dict[str, Any]:
    """The whole file."""
    held = [{"name": name, "memory_bytes": size} for name, size in devices.items()]
    return {"devices": held, "links": links, "modules": modules, "requests": requests}


def two() -> dict[str, Any]:
    """Edge and cloud, a picture's encoder and a head: the picture is a second's way, the head is slow at the edge."""
    return instance(
        {"edge": 10.0, "cloud": 10.0}, [link("edge", "cloud", rtt_ms=20.0)],
        [module("eyes", 4.0, {"edge": 0.3, "cloud": 0.01}, output_bytes=1000.0),
         module("head", 5.0, {"edge": 2.0, "cloud": 0.1})],
        [request("edge", [("eyes", 1e6)], "head", reply_bytes=1000.0)],
    )  # fmt: skip


def problem(content: dict[str, Any]) -> Problem:
    """What solvers work on."""
    return problem_of(checked(content, "the test"))


def on(held: Problem, **devices: str) -> Copies:
    """One copy of each module, by name."""
    return tuple(
        (next(index for index, option in enumerate(options) if held.device_names[option.device] == devices[name]),)
        for name, options in zip(held.module_names, held.options, strict=True)
    )


def judge(content: dict[str, Any], objective: Any = "mean") -> Judge:
    """Of an instance."""
    return Judge(problem(content), objective)


@some.composite
def instances(draw: Any, dtypes: bool = False) -> dict[str, Any]:
    """Up to three devices, four modules and three requests: links may miss, modules may run nowhere."""
    names = [f"d{number}" for number in range(draw(some.integers(1, 3)))]
    devices = {name: float(draw(some.integers(2, 12))) for name in names}
    pairs = [(one, two) for one in names for two in names if one != two]
    links = [
        link(*pair, draw(some.sampled_from([0.0, 5.0, 50.0])), draw(some.sampled_from([1.0, 10.0, 100.0])))
        for pair in pairs if draw(some.booleans())
    ]  # fmt: skip

    def seconds() -> dict[str, float]:
        return {name: draw(some.sampled_from(TIMES)) for name in names if draw(some.integers(0, 5))}

    modules = []
    for number in range(draw(some.integers(1, 4))):
        size, times = float(draw(some.integers(0, 5))), seconds()
        if dtypes and draw(some.booleans()):
            memory = {"fp16": size + 1, "int4": 1.0}
            modules.append(module(f"m{number}", memory, {"fp16": times, "int4": seconds()}, 1e4))
        else:
            modules.append(module(f"m{number}", size, times, draw(some.sampled_from([0.0, 1e4, 1e5]))))
    one = some.sampled_from([entry["name"] for entry in modules])
    use = some.tuples(one, some.sampled_from([0.0, 1e4, 2e5]))
    requests = [
        request(draw(some.sampled_from(names)), draw(some.lists(use, max_size=3)), draw(one),
                draw(some.sampled_from([0.0, 1.0, 1.5, 20.0])), draw(some.sampled_from([0.0, 1e4])))
        for _ in range(draw(some.integers(1, 3)))
    ]  # fmt: skip
    return instance(devices, links, modules, requests)
