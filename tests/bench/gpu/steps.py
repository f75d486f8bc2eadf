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
    """All of them; what is worth least comes last, where a limit cuts it off."""
    ahead = _ahead(work)
    return [*_ground(work), *_ort(work), *_built(work, RTX, 120), *ahead[:4], *_built(work, TENSORRT, 180),
            *_compiled(work), *_ort_full(work), *ahead[4:]]  # fmt: skip


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
    """Half precision: in place and captured, in place, and with state that grows."""
    variants = {"scatter-fp16 graphs": ("scatter-fp16", "--graphs"), "scatter-fp16": ("scatter-fp16",),
                "portable-fp16": ("portable-fp16",)}  # fmt: skip
    return [
        Step(f"ort {name}", _child(work, "ort_peer", "--variant", *more), 75, ORT, ("variants",))
        for name, more in variants.items()
    ]


def _ort_full(work: Work) -> list[Step]:
    return [Step("ort portable-fp32", _child(work, "ort_peer", "--variant", "portable-fp32"), 75, ORT, ("variants",))]


def _built(work: Work, backend: str, limit_s: float) -> list[Step]:
    """Engines built on the card and run there."""
    name = {RTX: "trt_rtx", TENSORRT: "trt"}[backend]
    return [
        Step(
            f"{name} {variant}",
            _child(work, "trt_peer", "--backend", name, "--variant", variant),
            limit_s,
            backend,
            ("variants",),
        )
        for variant in ("scatter-fp16", "portable-fp16")
    ]


def _ahead(work: Work) -> list[Step]:
    """Whether TensorRT-RTX's engines that were built where no GPU is seen run on this card."""
    found = []
    for sm in ("0", "80", "120"):
        label = f"rtx ahead of time, {'no target' if sm == '0' else f'SM {sm}'}"
        make, load = (_child(work, "sm90", what, "--capability", sm) for what in ("make", "load"))
        unseen = {"CUDA_VISIBLE_DEVICES": ""}
        found.append(Step(f"{label}: make", make, 45, needs=("variants",), environment=unseen))
        found.append(Step(f"{label}: load", load, 45, needs=(f"{label}: make",)))
    return found


def _compiled(work: Work) -> list[Step]:
    command = _child(work, "torch_peer", "--precision", "fp16", "--compile")
    return [Step("torch.compile fp16", command, 120, needs=("model",))]


def shown(command: tuple[str, ...]) -> str:
    """A command as a reader would type it."""
    return " ".join("python" if part == sys.executable else part for part in command)
