"""`kit`: what a device needs to build its engines by itself, written here or taken there by ssh."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import DeploymentFolder, Json, Quiet, unset
from msao_compile.cli.talk import Talk, talk_of
from msao_compile.errors import DeploymentError, GateError, MissingTool, MsaoError, StageError

if TYPE_CHECKING:
    from msao_compile.farm.ssh import Host
    from msao_compile.manifest.receipt import Receipt
    from msao_compile.stages.kit.pack import Packed

PLACE = "~/msao-kits/"
"""Where kits are kept on a device that is reached by ssh, by their id: what is there already is not sent again."""
RECEIPTS = Path("artifacts/receipts")
HEADERS = ("module", "precision", "dialect", "graph and weights", "memory", "disk", "checks")
PROVEN = ("status", "module", "build", "peak memory", "parity", "reason")
Output = Annotated[
    Path | None,
    unset("FILE", "A .tar.zst, .tar.gz or .tar, or a folder; with --ssh the folder for the receipt and the engines.",
          "--output", "-o"),
]  # fmt: skip
ERRORS: dict[int, type[MsaoError]] = {2: DeploymentError, 3: StageError, 4: MissingTool, 5: GateError}


def kit(
    context: typer.Context,
    deployment: DeploymentFolder,
    target: Annotated[str, typer.Option("--target", "-t", metavar="T", help="The target that builds its own engines.")],
    output: Output = None,
    ssh: Annotated[str | None, unset("USER@HOST[:PORT]", "Send it there, run it, fetch the receipt.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be packed, and write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack what a target's device needs to build, run and check its engines: graphs, weights, orders, stored inputs and
    outputs, and a kit.py that needs Python, NumPy and the device's own TensorRT."""
    from msao_compile.farm.ssh import Host
    from msao_compile.runtime.loader import read_manifest
    from msao_compile.stages.kit import archive
    from msao_compile.stages.kit.pack import pack

    talk = talk_of(context, as_json, quiet)
    host = None if ssh is None else Host.read(ssh)
    manifest = read_manifest(deployment)
    where = output or _default(manifest.name, target, host)
    if host is None:
        archive.check_ending(where)
    packed = pack(deployment, manifest, target)
    if dry_run:
        talk.reply(_facts(packed), lambda: draw.table(HEADERS, _rows(packed), frozenset({3, 4, 5})))
        talk.say(_summary(packed))
    elif host is None:
        archive.write(where, packed.entries)
        facts = {"kit": str(where), **_facts(packed)}
        talk.reply(facts, lambda: draw.line(str(where)))
        talk.say(f"{_summary(packed)}; unpack it on the device and run `python3 kit.py` there")
    else:
        _there(talk, host, packed, where)


def _default(name: str, target: str, host: Host | None) -> Path:
    from msao_compile.stages.kit import archive

    if host is not None:
        return RECEIPTS / f"{name}-{target}"
    return Path(f"{name}-{target}.kit{'.tar.zst' if archive.has_zstandard() else '.tar.gz'}")


def _there(talk: Talk, host: Host, packed: Packed, where: Path) -> None:
    """Push, run, fetch, and say what was proven.

    Raises:
        MsaoError: of the class that the exit code there stands for, where anything was not done.
    """
    from msao_compile.farm import ssh
    from msao_compile.manifest.receipt import RECEIPT_NAME
    from msao_compile.stages.kit.accept import read_receipt

    place = PLACE + packed.id
    sent = ssh.push(host, place, packed.entries)
    talk.say(f"{host.name}: {units.plural(sent, 'file')} sent of {len(packed.entries)}, into {place}")
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        talk.say(f"{host.name}: {line}")

    code = ssh.stream(host, place, "python3 kit.py --keep-going", tell)
    if not any(line.startswith("done receipt") for line in lines):
        said = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "nothing")
        raise ERRORS.get(code, StageError)(f"{host.name} wrote no receipt: {said.removeprefix('error: ')}")
    path = where / RECEIPT_NAME
    ssh.fetch(host, f"{place}/{RECEIPT_NAME}", path)
    receipt = read_receipt(path)
    for module in receipt.modules:
        if module.engine is not None:
            ssh.fetch(host, f"{place}/{module.engine.path}", where / module.engine.path, module.engine.sha256)
    talk.reply(_receipt_facts(path, receipt), lambda: draw.table(PROVEN, _proven(receipt)))
    talk.say(f"take it in with `msao-compile build RECIPE --accept-receipt {path}`")
    if code:
        raise ERRORS.get(code, StageError)(_undone(host.name, receipt))


def _undone(name: str, receipt: Receipt) -> str:
    states = Counter(module.status for module in receipt.modules)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    every = (entry for module in receipt.modules for entry in module.phases.values() if entry.verdict != "done")
    return f"{name} did not do everything ({told}): {next(every).reason}"


def _facts(packed: Packed) -> dict[str, Any]:
    return {
        "id": packed.id,
        "deployment": packed.content["contract"]["deployment"],
        "target": packed.content["contract"]["target"],
        "size_bytes": packed.size_bytes,
        "files": {entry.path: entry.size_bytes for entry in packed.entries},
        "modules": [
            {**order, **{name: about[name] for name in ("memory_bytes", "disk_bytes", "left_out", "bounds")},
             "checks": [case["name"] for case in about["cases"]]}
            for order, about in _modules(packed)
        ],
    }  # fmt: skip


def _modules(packed: Packed) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    orders = packed.content["contract"]["modules"]
    return [(order, packed.content["modules"][order["name"]]) for order in orders]


def _rows(packed: Packed) -> list[tuple[str, ...]]:
    return [
        (order["name"], order["precision"], order["dialect"],
         units.size(sum(entry["size_bytes"] for entry in (order["graph"], *order["data"]))),
         units.size(about["memory_bytes"]), units.size(about["disk_bytes"]),
         ", ".join(case["name"] for case in about["cases"]) or f"none: {about['left_out']}")
        for order, about in _modules(packed)
    ]  # fmt: skip


def _summary(packed: Packed) -> str:
    modules = units.plural(len(packed.content["modules"]), "module")
    return f"{modules}, {units.plural(len(packed.entries), 'file')}, {units.size(packed.size_bytes)} before compression"


def _receipt_facts(path: Path, receipt: Receipt) -> dict[str, Any]:
    modules = [{"name": module.name, "status": module.status,
                "phases": {name: {"verdict": entry.verdict, "reason": entry.reason}
                           for name, entry in module.phases.items()}} for module in receipt.modules]  # fmt: skip
    return {
        "receipt": str(path),
        "target": receipt.target,
        "kit": receipt.kit,
        "device": receipt.device,
        "modules": modules,
    }


def _proven(receipt: Receipt) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for module in receipt.modules:
        built = module.phases.get("build")
        facts = {} if built is None else built.facts
        parity = module.phases.get("parity")
        stopped = next((entry.reason for entry in module.phases.values() if entry.verdict != "done"), None)
        rows.append((
            module.status, module.name,
            units.seconds(facts["seconds"]) if "seconds" in facts else "",
            units.size(facts["peak_rss_bytes"]) if "peak_rss_bytes" in facts else "",
            "" if parity is None else parity.verdict, stopped or "",
        ))  # fmt: skip
    return rows
