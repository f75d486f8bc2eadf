"""Engine files: our header before a library's plan, so that what it is for is known before vendor code reads it.

Layout: `MAGIC`, the header's length (8 bytes, little endian), its SHA-256, the header (JSON), zeros up to a multiple of
4096, the plan.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msao_compile.errors import DamagedFile, DeploymentError, StageError

MAGIC = b"MSAOENG\x01"
BARE_PLANS = {b"vtrt": "TensorRT-RTX", b"ftrt": "TensorRT"}
NAMES = {"trt": "TensorRT", "trt_rtx": "TensorRT-RTX"}
FACTS = (
    "backend", "library_version", "gpu_architectures", "os", "architecture", "cuda", "driver", "gpu_name",
    "module", "component", "precision", "dialect", "graph_sha256", "order", "key",
)  # fmt: skip
_PAGE = 4096
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
_FIXED = len(MAGIC) + _LENGTH_BYTES + _DIGEST_BYTES
_LARGEST_HEADER = 1 << 24
_CHUNK = 1 << 22


def machine() -> dict[str, str]:
    """The operating system and processor, as facts name them: linux, x86_64."""
    return {"os": platform.system().lower(), "architecture": platform.machine().lower()}


def write(path: Path, facts: Mapping[str, Any], plan: Any) -> None:
    """Write a plan (any object with the buffer protocol) with its facts; a file is there whole or not at all.

    Raises:
        ValueError: a fact of `FACTS` is missing.
        StageError: it cannot be written; says why.
    """
    missing = [name for name in FACTS if name not in facts]
    if missing:
        raise ValueError(f"an engine file needs the facts {', '.join(missing)}")
    view = memoryview(plan).cast("B")
    digest = hashlib.sha256(view).hexdigest()
    header = {**facts, "plan_bytes": view.nbytes, "plan_sha256": digest}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    start = MAGIC + len(text).to_bytes(_LENGTH_BYTES, "little") + hashlib.sha256(text).digest() + text
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, (start, bytes(-len(start) % _PAGE), view))
    except OSError as error:
        reason = error.strerror or str(error)
        raise StageError(f"{path}: an engine of {view.nbytes} bytes cannot be written here: {reason}") from error


def replace(path: Path, parts: tuple[Any, ...]) -> None:
    """Write bytes beside `path`, make them safe on the disk, and put them in its place.

    Raises:
        OSError: any of it fails; `path` is as before.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_header(path: Path, verify: bool = False) -> dict[str, Any]:
    """What the file says of itself; with `verify` the plan is read through and held against its digest.

    Raises:
        DamagedFile: it is no engine, or a plan without our header, or cut off, or other bytes than were written.
    """
    return _header(path, verify)[0]


def read_plan(path: Path) -> memoryview:
    """The plan, mapped and not read; raises as `read_header`."""
    header, start = _header(path, False)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(mapped)[start : start + header["plan_bytes"]]


def _header(path: Path, verify: bool) -> tuple[dict[str, Any], int]:
    """The header, and where the plan starts."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _parse(path, file.read(_FIXED), file)
            wanted = start + int(header["plan_bytes"])
            if size != wanted:
                what = "is cut off" if size < wanted else "has more than was written"
                raise DamagedFile(f"{path} {what}: {size} bytes of {wanted}: copy it again, or build it again")
            if verify:
                _check_plan(path, header, start, file)
    except OSError as error:
        raise DamagedFile(f"{path}: no engine can be read: {error.strerror or error}") from error
    return header, start


def _parse(path: Path, fixed: bytes, file: Any) -> tuple[dict[str, Any], int]:
    if fixed[: len(MAGIC)] != MAGIC:
        library = BARE_PLANS.get(fixed[:4])
        if library is not None:
            raise DamagedFile(
                f"{path} is a bare plan of {library}, which does not say what it is for: build it with msao-compile"
            )
        raise DamagedFile(f"{path} is not an engine: it does not start as one")
    length = int.from_bytes(fixed[len(MAGIC) : len(MAGIC) + _LENGTH_BYTES], "little")
    text = file.read(length) if length <= _LARGEST_HEADER else b""
    if len(fixed) < _FIXED or hashlib.sha256(text).digest() != fixed[-_DIGEST_BYTES:]:
        raise DamagedFile(f"{path}: the header of this engine is damaged or cut off: copy it again, or build it again")
    end = _FIXED + length
    return json.loads(text), end + -end % _PAGE


def _check_plan(path: Path, header: Mapping[str, Any], start: int, file: Any) -> None:
    file.seek(start)
    found = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    if found.hexdigest() != header["plan_sha256"]:
        raise DamagedFile(
            f"{path}: the plan's SHA-256 is {found.hexdigest()} and not {header['plan_sha256']}: copy it again, or "
            "build it again"
        )


def refuse_other(path: Path, header: Mapping[str, Any], wanted: Mapping[str, Any], whose: str) -> None:
    """Refuse an engine whose header says another thing than `wanted`; `whose` says who wants it, as in "the receipt".

    Raises:
        DeploymentError: names the first fact that differs, with both values.
    """
    for name, value in wanted.items():
        if header.get(name) != value:
            raise DeploymentError(
                f"{path} is another engine: its header says {name} {_shown(header.get(name))} where {whose} has "
                f"{_shown(value)}; put back the file that belongs here, or build it again"
            )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def refuse_mismatch(path: Path, header: Mapping[str, Any], here: Mapping[str, Any], rebuild: str) -> None:
    """Refuse an engine that was built for something else; `here` has the facts of this machine under the same names.

    TensorRT plans belong to one version, platform and SM. TensorRT-RTX compiles kernels when it loads, so the first two
    numbers of its version must be equal and the GPU among those that it was built for.

    Raises:
        DeploymentError: says what it was built by and for, what is here, and `rebuild`, the command to run.
    """
    same = header["backend"] == here["backend"]
    version = _significant(header) == _significant(here)
    gpu = set(here["gpu_architectures"]) <= set(header["gpu_architectures"])
    platforms = [(facts["os"], facts["architecture"]) for facts in (header, here)]
    if not (same and version and gpu and (header["backend"] == "trt_rtx" or platforms[0] == platforms[1])):
        raise DeploymentError(
            f"{path} was built by {_tuple(header, ' for ')}; here {_tuple(here, ', ')}: run: {rebuild}"
        )


def _significant(facts: Mapping[str, Any]) -> list[str]:
    parts = str(facts["library_version"]).split(".")
    return parts[:2] if facts["backend"] == "trt_rtx" else parts


def _tuple(facts: Mapping[str, Any], joint: str) -> str:
    library = NAMES.get(facts["backend"], facts["backend"])
    architectures = "+".join(facts["gpu_architectures"]) or "no GPU"
    more = [f"{name} {facts[name]}" for name in ("cuda", "driver") if facts.get(name)]
    gpu = f" ({facts['gpu_name']})" if facts.get("gpu_name") else ""
    machine_ = f"{facts['os']} {facts['architecture']}"
    return f"{library} {facts['library_version']}{joint}{architectures}{gpu} on {', '.join([machine_, *more])}"
