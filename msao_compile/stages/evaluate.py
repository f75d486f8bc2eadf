"""Task accuracy of a deployment: its models answer labelled questions greedily, as its targets run them.

An answer is right where it is the sample's, but for spaces at either end. Engines that do not run on this machine are
stood in for by ONNX Runtime with the very graphs that they are made of, and the result says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from msao_compile.errors import InputError
from msao_compile.manifest.accuracy import Accuracy, AccuracyReport, Through
from msao_compile.manifest.schema import Deployment, Engine, Model
from msao_compile.manifest.variants import NOT_ON_CPUS, Kinds, as_graphs, kinds_of
from msao_compile.recipe.asked import refuse_unknown
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import fault
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.loader import read_manifest
from msao_compile.runtime.routes import edge
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.views import Question

MAX_NEW_TOKENS = 64
TOLD_EVERY = 20
"""Samples between two words of progress."""
Z_95 = 1.959964


@dataclass(frozen=True)
class Sample:
    """A question, the file of its picture where it has one, and the right answer."""

    question: str
    image: Path | None
    answer: str


@dataclass(frozen=True)
class Way:
    """How a model is run: the same for all targets that agree in it."""

    model: str
    kinds: Kinds
    through: Through


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """`AccuracyReport`; `arguments`: folder, samples, and target, model and limit, each None for all.

    Raises:
        InputError: the samples cannot be read, or the deployment has no such target or model.
    """
    folder, path = Path(arguments["folder"]), Path(arguments["samples"])
    deployment = read_manifest(folder)
    samples = read_samples(path, arguments["limit"])
    ways, left_out = ways_of(deployment, arguments["target"], arguments["model"])
    rows = []
    for way, targets in ways.items():
        source = deployment if way.through == "engine" else as_graphs(deployment)
        engines = Engines(folder, source, verify=True, demand="built", target=targets[0])

        def tell(done: int, way: Way = way, targets: Sequence[str] = targets) -> None:
            on_progress({"target": targets[0], "model": way.model, "done": done, "of": len(samples)})

        marks = _marks(engines.session(deployment.model(way.model)), samples, tell)
        rows.append(counted(way, tuple(targets), marks))
    return AccuracyReport(samples=path.name, rows=tuple(rows), left_out=left_out).model_dump(mode="json")


def ways_of(
    deployment: Deployment, target: str | None = None, model: str | None = None
) -> tuple[dict[Way, list[str]], dict[str, str]]:
    """Each way in which a model is run once, with its targets; and why others cannot be run, by target and model.

    Raises:
        InputError: the deployment has no such target or model.
    """
    targets = list(dict.fromkeys(engine.target for engine in deployment.engines))
    for option, asked, names in (
        ("target", target, targets), ("model", model, [entry.name for entry in deployment.models]),
    ):  # fmt: skip
        if asked is not None:
            refuse_unknown(option, asked, names)
    found: dict[Way, list[str]] = {}
    left_out: dict[str, str] = {}
    for name in targets if target is None else [target]:
        for entry in deployment.models:
            if model not in (None, entry.name):
                continue
            own = [engine for engine in deployment.engines if engine.target == name]
            way = _way(entry, own)
            if isinstance(way, str):
                left_out[f"{name} {entry.name}"] = way
            else:
                found.setdefault(way, []).append(name)
    return found, left_out


def _way(model: Model, engines: Sequence[Engine]) -> Way | str:
    """How a target's engines can answer here, or why they cannot."""
    own = [engine for engine in engines if engine.module in model.components.values()]
    if model.decoder is None:
        return "it decodes nothing, so it answers no question"
    if {engine.module for engine in own} != set(model.components.values()):
        return "the target has no engines for all of its modules"
    here = all(engine.status != "deferred" and _fault(engine) is None for engine in own)
    low = sorted({engine.precision for engine in own} & set(NOT_ON_CPUS))
    if not here and low:
        return f"its engines do not run here, and ONNX Runtime multiplies nothing in {low[0]} on a CPU"
    return Way(model.name, kinds_of(own, model), "engine" if here else "graph, not engine")


def _fault(engine: Engine) -> str | None:
    return fault(engine.backend, () if engine.order is None else engine.order.compute_capabilities)


def read_samples(path: Path, limit: int | None) -> list[Sample]:
    """The first samples of JSON lines with question, answer and, where there is one, image: a file beside them.

    Raises:
        InputError: the file cannot be read, a line is no such sample, or there is none.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a file of JSON lines with --samples") from error
    found = []
    for number, line in enumerate(lines[:limit], 1):
        try:
            entry = json.loads(line)
            image = None if entry.get("image") is None else path.parent / str(entry["image"])
            found.append(Sample(str(entry["question"]), image, str(entry["answer"])))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: sample {number} is no object with question, answer and image ({error!r}); correct that line"
            ) from error
    if not found:
        raise InputError(f"{path}: holds no sample; give JSON lines with question, answer and image")
    return found


def _marks(session: ModelSession, samples: Sequence[Sample], tell: Callable[[int], None]) -> list[bool]:
    """Whether each sample is answered right."""
    found = []
    for number, sample in enumerate(samples):
        if number % TOLD_EVERY == 0:
            tell(number)
        pictures = () if sample.image is None else (sample.image,)
        question = Question(sample.question, pictures, MAX_NEW_TOKENS, SamplingParameters())
        said = session.tokenizer.decode(list(edge(session, question, Clock()).tokens))
        found.append(said.strip() == sample.answer.strip())
    return found


def counted(way: Way, targets: tuple[str, ...], marks: Sequence[bool]) -> Accuracy:
    """The share of right answers with its interval."""
    right = sum(marks)
    low, high = wilson(right, len(marks))
    return Accuracy(
        targets=targets, model=way.model, dialect=way.kinds.dialect, precision=way.kinds.of(""), through=way.through,
        right=right, asked=len(marks), share=right / len(marks), low=low, high=high,
        marks="".join("1" if mark else "0" for mark in marks),
    )  # fmt: skip


def wilson(right: int, asked: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927); `asked` > 0."""
    share, scale = right / asked, 1.0 + Z_95**2 / asked
    middle = (share + Z_95**2 / (2 * asked)) / scale
    half = Z_95 * sqrt(share * (1.0 - share) / asked + Z_95**2 / (4 * asked**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
