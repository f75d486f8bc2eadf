"""`place`: which device holds which module, with a certificate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import Json, Quiet, unset
from msao_compile.cli.talk import talk_of
from msao_compile.errors import GateError, InputError

if TYPE_CHECKING:
    from msao_compile.manifest.placement import PlacementCertificate
    from msao_compile.manifest.schema import Deployment
    from msao_compile.place.certify import Placed, Terms
    from msao_compile.place.instance import Instance

MODULES = ("device", "module", "memory", "free")
REQUESTS = ("request", "from", "weight", "ms", "encoders on", "head on")


class Wanted(StrEnum):
    """What a placement is to make small."""

    MEAN = "mean"
    P95 = "p95"


class By(StrEnum):
    """How a placement is sought."""

    AUTO = "auto"
    GREEDY = "greedy"
    LOCAL = "local"
    EXACT = "exact"


def place(
    context: typer.Context,
    deployment: Annotated[
        Path | None, typer.Argument(metavar="DEPLOYMENT", help="A folder with a deployment.json.", show_default=False)
    ] = None,
    instance: Annotated[Path | None, unset("FILE", "Devices, links, modules and requests (JSON).")] = None,
    devices: Annotated[Path | None, unset("FILE", "For DEPLOYMENT: devices, links, requests, work (JSON).")] = None,
    objective: Annotated[
        Wanted, typer.Option(help="Sum of weight x latency, or what 95 % of the weight are at most.")
    ] = Wanted.MEAN,
    replicas: Annotated[int, typer.Option(metavar="N", min=0, help="Copies of a module; 0: as many as fit.")] = 1,
    time_limit: Annotated[float, typer.Option(metavar="S", min=0.01, help="Seconds that it may take.")] = 10.0,
    solver: Annotated[By, typer.Option(help="auto is all three, one after another.")] = By.AUTO,
    write: Annotated[bool, typer.Option("--write", help="Put it into the manifest of DEPLOYMENT.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Place modules on devices so that requests are answered soonest, and say how far from the best that can be.

    The certificate has a bound that no placement is below. Where nothing fits, the answer is why, and the smallest
    change that helps; the exit code is then 5. All of it, the files and the model of latency: docs/placement-files.md.

    \b
      msao-compile place --instance recipes/instances/five-tasks--campus.json
      msao-compile place --instance FILE.json --objective p95 --replicas 0 --time-limit 30 --json
      msao-compile place artifacts/deployments/shapes-vqa --devices devices.json --write
    """
    from msao_compile.place.answer import facts
    from msao_compile.place.certify import Terms

    talk = talk_of(context, as_json, quiet)
    manifest, given = _given(deployment, instance, devices, write)
    found = _placed(given, Terms(objective.value, replicas, time_limit, solver.value))
    talk.reply(facts(found, objective.value), lambda: _draw(found, objective.value))
    if found.certificate is None:
        raise GateError(f"no placement: {found.reason}")
    if write and manifest is not None and deployment is not None:
        from msao_compile.place.deployed import placement_of
        from msao_compile.stages.place import write as written

        written(deployment, manifest, placement_of(manifest, found))
        talk.say(f"{deployment} has it")


def _given(
    deployment: Path | None, instance: Path | None, devices: Path | None, write: bool
) -> tuple[Deployment | None, Instance]:
    from msao_compile.place.instance import checked, read_json

    if instance is not None:
        if deployment is not None or devices is not None:
            raise InputError("--instance says everything: leave DEPLOYMENT and --devices out")
        if write:
            raise InputError("--write needs a manifest to write to: give DEPLOYMENT and --devices instead")
        return None, checked(read_json(instance), str(instance))
    if deployment is None or devices is None:
        raise InputError("nothing to place: give --instance FILE, or DEPLOYMENT with --devices FILE")
    from msao_compile.place.deployed import devices_of, instance_of
    from msao_compile.runtime.loader import read_manifest

    manifest = read_manifest(deployment)
    return manifest, instance_of(manifest, devices_of(read_json(devices), str(devices)), str(devices))


def _placed(instance: Instance, terms: Terms) -> Placed:
    from msao_compile.place.certify import place as solve

    return solve(instance, terms)


def _draw(placed: Placed, objective: str) -> None:
    from msao_compile.place.answer import facts

    told = facts(placed, objective)
    if placed.certificate is None:
        return
    draw.table(MODULES, _modules(told), frozenset({2, 3}))
    draw.line("")
    draw.table(REQUESTS, [_request(entry) for entry in told["latency_s"]], frozenset({2, 3}))
    draw.line("")
    for line in lines(placed.certificate, placed.greedy_objective_s):
        draw.line(line)


def _modules(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each copy; each device's first has what is free."""
    rows: list[tuple[str, ...]] = []
    for device in told["devices"]:
        held = [copy for copy in told["copies"] if copy["device"] == device["name"]]
        free = f"{units.size(device['free_bytes'])} of {units.size(device['memory_bytes'])}"
        names = [copy["module"] + (f" ({copy['dtype']})" if copy["dtype"] else "") for copy in held]
        sizes = [units.size(copy["memory_bytes"]) for copy in held]
        rows += [
            (device["name"] if number == 0 else "", name, size, free if number == 0 else "")
            for number, (name, size) in enumerate(zip(names or ["-"], sizes or ["-"], strict=True))
        ]
    return rows


def _request(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        entry["task"], entry["source"], f"{entry['weight']:.3g}", units.milliseconds(entry["seconds"] * 1e3),
        ", ".join(entry["encoders"]) or "-", entry["head"],
    )  # fmt: skip


def lines(told: PlacementCertificate, greedy_s: float | None) -> list[str]:
    """The certificate in words."""
    what = "weight x latency" if told.objective == "mean" else "95 % of the weight within"
    known = "optimal" if told.optimal else f"no placement is more than {told.gap:.1%} better"
    found = [
        f"{what}: {told.objective_s * 1e3:.4g} ms, {known} (bound {told.bound_s * 1e3:.4g} ms, tolerance "
        f"{told.tolerance:g})",
        f"by the solver {told.solver} in {told.seconds:.2g} s",
    ]
    if greedy_s is not None and greedy_s > told.objective_s * (1 + told.tolerance):
        found.append(f"greedy alone: {greedy_s * 1e3:.4g} ms")
    return found
