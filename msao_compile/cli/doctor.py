"""`doctor`: what this machine can build and run, and what to install where it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import Json, Quiet
from msao_compile.cli.talk import talk_of
from msao_compile.errors import MissingTool

NEEDS_GPU = frozenset({"tensorrt", "tensorrt_rtx"})
"""Backends that run nothing without a GPU; TensorRT-RTX builds without one all the same."""
UNSAFE_WITHOUT_GPU = frozenset({"tensorrt"})
BACKEND_EXTRAS = {"onnxruntime": "ort", "tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
COMPILE_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
RUNTIME_PACKAGES = ("numpy", "tokenizers", "pillow")


@dataclass(frozen=True)
class Finding:
    """One checked thing: whether it is there, what is known of it, and what to do where it is missing."""

    name: str
    present: bool
    detail: str
    advice: str = ""


def doctor(context: typer.Context, as_json: Json = False, quiet: Quiet = False) -> None:
    """Check this machine: processor, memory, GPU, backends and libraries, and which targets it can build and run; exit
    4 where no backend can run."""
    from msao_compile.cli import reach
    from msao_compile.cli.machine import ask, machine_facts

    talk = talk_of(context, as_json, quiet)
    machine = machine_facts(Path.cwd())
    gpu = ask("cuda")
    backends = [backend(name, gpu, ask(name) if may_ask(name, gpu) else None) for name in BACKEND_EXTRAS]
    packages = {name: version_of(name) for name in (*RUNTIME_PACKAGES, *COMPILE_PACKAGES)}
    present = {one.name: one.present for one in backends}
    present["onnxruntime-gpu"] = any("CUDAExecutionProvider" in one.detail for one in backends)
    targets = reach.reaches(reach.Here(present, reach.sms(gpu), bool(machine["jetson"])))
    findings = [*machine_findings(machine), gpu_finding(gpu), *backends, *package_findings(packages)]
    facts = {
        "version": version_of("msao-compile"),
        "machine": machine,
        "gpu": gpu,
        "backends": [asdict(one) for one in backends],
        "packages": packages,
        "targets": [asdict(one) for one in targets],
        "can_run": any(one.present and may_run(one.name, gpu) for one in backends),
        "can_compile": all(packages[name] for name in COMPILE_PACKAGES),
    }

    def show() -> None:
        draw.table(("", "what", "found", "to do"), [_cells(one) for one in findings])
        draw.line("")
        draw.table(reach.HEADERS, reach.rows(targets))

    talk.reply(facts, show)
    if not facts["can_run"]:
        raise MissingTool("no backend can run on this machine; start with pip install 'msao-compile[ort]'")


def may_ask(name: str, gpu: Mapping[str, Any]) -> bool:
    """Whether importing a backend is safe: TensorRT's package may crash where the driver does not start."""
    return name not in UNSAFE_WITHOUT_GPU or bool(gpu.get("usable"))


def may_run(name: str, gpu: Mapping[str, Any]) -> bool:
    """Whether a backend that is installed has what it runs on."""
    return name not in NEEDS_GPU or bool(gpu.get("usable"))


def backend(name: str, gpu: Mapping[str, Any], answer: Mapping[str, Any] | None) -> Finding:
    """What is known of a backend; `answer` is None where it was not asked for want of a GPU."""
    install = f"pip install 'msao-compile[{BACKEND_EXTRAS[name]}]'"
    if answer is None:
        return Finding(
            name, False, f"not asked: {_no_gpu(gpu)}", f"needs an NVIDIA GPU with its driver, then {install}"
        )
    if "error" in answer:
        return Finding(name, False, str(answer["error"]), install)
    providers = ", ".join(answer.get("providers", ()))
    advice = "" if may_run(name, gpu) else f"builds engines for other machines; runs none here: {_no_gpu(gpu)}"
    return Finding(name, True, str(answer["version"]) + (f", {providers}" if providers else ""), advice)


def gpu_finding(gpu: Mapping[str, Any]) -> Finding:
    """The GPUs that the driver reports."""
    if not gpu.get("usable"):
        return Finding("gpu", False, _no_gpu(gpu), "only needed for TensorRT")
    shown = [f"{one['name']} ({one['compute_capability']}, {units.size(one['memory_bytes'])})" for one in gpu["gpus"]]
    return Finding("gpu", True, f"{', '.join(shown)}; driver for CUDA {gpu['cuda']}")


def _no_gpu(gpu: Mapping[str, Any]) -> str:
    return str(gpu.get("reason") or gpu.get("error") or "no GPU")


def machine_findings(machine: Mapping[str, Any]) -> list[Finding]:
    """The machine itself as findings; they are facts, so they are always present."""
    cpu, memory, disk, jetson = machine["cpu"], machine["memory"], machine["disk"], machine["jetson"]
    threads = f", OMP_NUM_THREADS={cpu['omp_num_threads']}" if cpu["omp_num_threads"] else ""
    features = ", ".join(cpu["features"]) or "none that engines use"
    swap = f", {units.size(memory['swap_free_bytes'])} of swap free"
    found = [
        Finding("python", True, f"{machine['python']} ({machine['executable']})"),
        Finding("platform", True, machine["platform"]),
        Finding("processor", True, f"{cpu['name']}, {cpu['usable_cpus']:g} of {cpu['cpus']} CPUs usable{threads}"),
        Finding("cpu features", True, features),
        Finding(
            "memory",
            True,
            f"{units.size(memory['available_bytes'])} of {units.size(memory['total_bytes'])} available{swap}",
        ),
        Finding(
            "disk",
            True,
            f"{units.size(disk['free_bytes'])} of {units.size(disk['total_bytes'])} free at {disk['folder']}",
        ),
    ]
    return found + ([_jetson_finding(jetson)] if jetson else [])


def _jetson_finding(jetson: Mapping[str, str | None]) -> Finding:
    mode = jetson["power_mode"]
    shown = f"JetPack {jetson['jetpack'] or 'unknown'}, L4T {jetson['l4t'] or 'unknown'}"
    if mode is None:
        return Finding("jetson", True, f"{shown}, power mode unknown", "nvpmodel -q says the power mode")
    return Finding("jetson", True, f"{shown}, power mode {mode}")


def package_findings(packages: Mapping[str, str | None]) -> list[Finding]:
    """Installed packages by what they are for; absent compile packages are no fault on a device."""
    found = []
    for name, version in packages.items():
        side = "compile" if name in COMPILE_PACKAGES else "run"
        install = "pip install 'msao-compile[compile]'" if side == "compile" else "pip install msao-compile"
        advice = "" if version else f"to {side}: {install}"
        found.append(Finding(name, version is not None, version or "not installed", advice))
    return found


def version_of(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cells(finding: Finding) -> tuple[str, ...]:
    return ("ok" if finding.present else "missing", finding.name, finding.detail, finding.advice)
