"""A whole sweep: every point with every policy, several at once, each kept as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from msao_compile.bench.identity import code
from msao_compile.bench.policies import policies
from msao_compile.bench.run import asked, pair_of, point, summary
from msao_compile.bench.setting import Setting, read_setting
from msao_compile.bench.shape import Shape
from msao_compile.errors import DamagedFile, InputError
from msao_compile.manifest.digest import canonical_json, sha256_bytes, sha256_file
from msao_compile.manifest.schema import MANIFEST_NAME
from msao_compile.runtime.api import load

CLOUD_ONLY = "cloud-only"
"""The policy whose answers the others' are compared with: it comes first at each point."""


@dataclass(frozen=True)
class Asking:
    """What is swept: a deployment, a setting, labelled samples and so many of them, and some policies, none for all."""

    deployment: Path
    setting: Path
    samples: Path
    questions: int
    only: tuple[str, ...] = ()

    def key(self) -> str:
        """What results belong to: what is asked, and the code that answers."""
        told = {
            "code": code(),
            "manifest": sha256_file(self.deployment / MANIFEST_NAME),
            "setting": sha256_file(self.setting),
            "samples": sha256_file(self.samples),
            "questions": self.questions,
        }
        return sha256_bytes(canonical_json(told))


def rows_of(samples: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` samples, `kind`s in turn as the file has them.

    Raises:
        InputError: the file is not there, or a line is no sample.
    """
    try:
        lines = samples.read_text(encoding="utf-8").splitlines()[:count]
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{samples}: no samples as JSON lines ({error})") from error
    if not rows or not all(_is_sample(row) for row in rows):
        raise InputError(f"{samples}: each line needs question and answer, and image where there is one")
    return rows


def _is_sample(row: Any) -> bool:
    """Whether question, answer and image are texts, the last where there is one."""
    if not isinstance(row, dict):
        return False
    asked, image = [row.get("question"), row.get("answer")], row.get("image")
    return all(isinstance(text, str) for text in asked) and isinstance(image, str | None)


def places(setting: Setting) -> list[tuple[Shape, int]]:
    """Every point of a setting, once."""
    found = {(shape.mbps, shape.rtt_ms, count): shape for sweep in setting.sweeps for shape, count in sweep.shapes()}
    return [(shape, count) for (_, _, count), shape in found.items()]


def sweep(asking: Asking, kept: Path, jobs: int, tell: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """The results of every point and policy, of which those in `kept` (JSON lines) are not run again.

    Raises:
        InputError: a policy is not known, or the samples cannot be used. DeploymentError: as `pair_of`.
        DamagedFile: `kept` holds other than results.
    """
    setting = read_setting(asking.setting)
    names = known_names(asking.only)
    rows_of(asking.samples, asking.questions)
    known = {_place(row): row for row in _read(kept) if row["key"] == asking.key()}
    wanted = [(index, name) for index in range(len(places(setting))) for name in names]
    left = [(index, name) for index, name in wanted if _place_of(setting, index, name) not in known]
    done = len(wanted) - len(left)
    tell(done, len(wanted))
    for row in _run(asking, left, jobs):
        known[_place(row)] = row
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        done += 1
        tell(done, len(wanted))
    return [known[_place_of(setting, index, name)] for index, name in wanted]


def _run(asking: Asking, left: Sequence[tuple[int, str]], jobs: int) -> Iterator[dict[str, Any]]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(one, asking, index, name) for index, name in left]
        for future in as_completed(futures):
            yield future.result()


def one(asking: Asking, index: int, name: str) -> dict[str, Any]:
    """One policy at one point, in this process."""
    setting, pair, questions, known = _opened(asking)
    shape, sessions = places(setting)[index]
    seen = point(pair, setting, shape, sessions, known[name], questions)
    reference = _reference(asking)
    return {
        "key": asking.key(), "mbps": shape.mbps, "rtt_ms": shape.rtt_ms, "sessions": sessions, "policy": name,
        "lossless": known[name].lossless, **summary(pair, seen, questions, reference),
    }  # fmt: skip


@cache
def _opened(asking: Asking) -> tuple[Any, Any, Any, Any]:
    runtime = load(asking.deployment)
    rows = rows_of(asking.samples, asking.questions)
    questions = asked(rows, asking.samples.parent)
    pair = pair_of(runtime)
    return read_setting(asking.setting), pair, questions, policies(runtime.deployment, pair.drafter)


@cache
def _reference(asking: Asking) -> Any:
    """The cloud's own answers, which follow from no link."""
    setting, pair, questions, known = _opened(asking)
    return point(pair, setting, Shape(mbps=1000.0, rtt_ms=1.0), 1, known[CLOUD_ONLY], questions).outcomes


def known_names(only: Sequence[str]) -> list[str]:
    """The names of these policies in the order of all, or of all where none is given.

    Raises:
        InputError: one is not known.
    """
    known = list(policies(None))
    strange = next((name for name in only if name not in known), None)
    if strange is not None:
        raise InputError(f"policy {strange!r} is not known: choose from {', '.join(map(repr, known))}")
    return [name for name in known if not only or name in only]


def _read(kept: Path) -> list[dict[str, Any]]:
    if not kept.exists():
        return []
    try:
        rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["key"], _place(row)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{kept}: holds other than results ({error}): remove it, and it is made again") from error
    return rows


def _place(row: Mapping[str, Any]) -> tuple[float, float, int, str]:
    return row["mbps"], row["rtt_ms"], row["sessions"], row["policy"]


def _place_of(setting: Setting, index: int, name: str) -> tuple[float, float, int, str]:
    shape, sessions = places(setting)[index]
    return shape.mbps, shape.rtt_ms, sessions, name
