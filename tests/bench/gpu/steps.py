"""What the check does, in the order of what is worth most, each in a process of its own with a limit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.bench.children import module
from tests.bench.gpu.work import Work

ORT, TENSORRT, RTX = "ONNX Runtime CUDA", "TensorRT", "TensorRT-RTX"
BACKENDS = (ORT, TENSORRT, RTX)
"""What the last lines of a check say of each."""


@dataclass(frozen=True)
class Step:
    """One child: how it is started, how long it may take, and which backend its answers are of."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    backend: str | None = None
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def steps(work: Work) -> list[Step]:
    """All of them."""
    return [*_ground(work), *_ort(work), *_rtx(work), *_tensorrt(work), *_compiled(work)]


def _child(work: Work, file: str, *more: str) -> tuple[str, ...]:
    return tuple(module(f"tests.bench.gpu.{file}", *work.options(), *more))


def _ground(work: Work) -> list[Step]:
    """Facts, model, graphs, reference, and torch as it comes."""
    layout, out = work.layout, ["--out", str(work.layout.portable_deployment.parent), "--store", str(work.layout.store)]
    build = module("msao_compile", "build", str(layout.portable_recipe), "--quiet", *out)
    return [
        Step("facts", _child(work, "facts"), 60),
        Step("model", tuple(module("tests.bench.standard", str(layout.root))), 90),
        Step("reference", _child(work, "torch_peer", "--precision", "fp32", "--attention", "eager", "--reference"), 90),
        Step("build", tuple(build), 180, needs=("model",)),
        Step("variants", _child(work, "variants"), 90, needs=("build",)),
        Step("torch eager fp16", _child(work, "torch_peer", "--precision", "fp16"), 90, needs=("model",)),
    ]


def _ort(work: Work) -> list[Step]:
    plain = ("scatter-fp16", "portable-fp16", "scatter-fp32", "portable-fp32")
    found = [Step(f"ort {name}", _child(work, "ort_peer", "--variant", name), 75, ORT, ("variants",)) for name in plain]
    graphs = _child(work, "ort_peer", "--variant", "scatter-fp16", "--graphs")
    return [*found[:2], Step("ort scatter-fp16 graphs", graphs, 75, ORT, ("variants",)), *found[2:]]


def _rtx(work: Work) -> list[Step]:
    """Engines built on the card, then whether those that were built ahead of time run on it."""
    unseen = {"CUDA_VISIBLE_DEVICES": ""}
    found = [
        Step(
            f"rtx {name}", _child(work, "trt_peer", "--backend", "trt_rtx", "--variant", name), 120, RTX, ("variants",)
        )
        for name in ("scatter-fp16", "portable-fp16")
    ]
    for sm in ("0", "80", "120"):
        label = f"rtx ahead of time, {'no target' if sm == '0' else f'SM {sm}'}"
        make, load = (_child(work, "sm90", what, "--capability", sm) for what in ("make", "load"))
        found.append(Step(f"{label}: make", make, 45, needs=("variants",), environment=unseen))
        found.append(Step(f"{label}: load", load, 45, needs=(f"{label}: make",)))
    return found


def _tensorrt(work: Work) -> list[Step]:
    return [
        Step(
            f"trt {name}", _child(work, "trt_peer", "--backend", "trt", "--variant", name), 180, TENSORRT, ("variants",)
        )
        for name in ("scatter-fp16", "portable-fp16")
    ]


def _compiled(work: Work) -> list[Step]:
    command = _child(work, "torch_peer", "--precision", "fp16", "--compile")
    return [Step("torch.compile fp16", command, 150, needs=("model",))]


def shown(command: tuple[str, ...]) -> str:
    """A command as a reader would type it."""
    return " ".join("python" if part == sys.executable else part for part in command)
