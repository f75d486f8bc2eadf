"""Activation ranges of one model: its fp32 graphs answer samples, and each product's largest input is kept.

Nothing of a sample stays in memory but those numbers, however many samples there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.graph.precision.observe import observed
from msao_compile.graph.precision.ranges import Ranges
from msao_compile.graph.precision.watch import watch
from msao_compile.manifest.schema import Deployment
from msao_compile.recipe.samples import APART, read_samples
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, EngineFile, open_engine
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.loader import read_manifest
from msao_compile.runtime.routes import edge
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.views import Question

NEW_TOKENS = 8
"""Decoded for each sample, so that steps are observed as prompts are."""
SYNTHETIC = 8
SIDE = 256
QUESTIONS = ("What is in this picture?", "How many things are there, and of what color?")


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Ranges by component and value name; `arguments`: folder (draft), model, target and its dialect, components,
    samples (None: synthetic), limit, output (the samples that are kept apart, as arrays).

    Raises:
        InputError: a sample cannot be read. StageError: the model cannot answer any, or a number is not finite.
    """
    folder = Path(arguments["folder"])
    deployment = read_manifest(folder)
    engines = Engines(folder, deployment, verify=True, demand="built", target=arguments["target"])
    session = engines.session(deployment.model(arguments["model"]))
    found = _watch(session, deployment, folder, arguments)
    samples = _synthetic() if arguments["samples"] is None else read_samples(Path(arguments["samples"]))
    takes_pictures = any(encoder.modality == "image" for encoder in session.model.encoders)
    apart: Arrays = {}
    taken = -APART
    for question, picture in samples:
        if taken == arguments["limit"]:
            break
        pictures = (picture,) if takes_pictures else ()
        if taken < 0:
            request = session.prepare(question, pictures)
            inputs = {"input_ids": request.ids[None], "attention_mask": np.ones((1, len(request.ids)), np.int64)}
            apart |= {f"{taken + APART}.{name}": value for name, value in {**inputs, **request.tensors}.items()}
        else:
            asked = Question(question, pictures, NEW_TOKENS, SamplingParameters(ignore_eos=True))
            for _ in edge(session, asked, Clock()).tokens:
                pass
        taken += 1
        on_progress({"samples": max(taken, 0)})
    np.savez(arguments["output"], allow_pickle=False, **apart)
    coverage = {component: {**asdict(ranges.coverage())} for component, ranges in found.items()}
    return {
        "samples": taken,
        "synthetic": arguments["samples"] is None,
        "maximum": {component: ranges.maximum for component, ranges in found.items()},
        "coverage": json.loads(json.dumps(coverage)),
    }


def _watch(session: ModelSession, deployment: Deployment, folder: Path, asked: Mapping[str, Any]) -> dict[str, Ranges]:
    """Let the wanted modules run as graphs that also tell their largest activations."""
    wanted, dialect = asked["components"], asked["dialect"]
    found: dict[str, Ranges] = {}
    for component in wanted:
        module = deployment.module(session.model.components[component])
        graph = next(one for one in module.graphs if (one.dialect, one.precision) == (dialect, "fp32"))
        source = folder / graph.file.path
        copy = source.with_name(f"observed.{source.name}")
        found[component] = Ranges(observed(source, copy))
        engine = open_engine("ort", EngineFile(copy, graph.dialect, deployment.runtime))
        watch(session, component, engine, graph.states, partial(_add, found[component]))
    return found


def _add(ranges: Ranges, _: Arrays, outputs: Arrays) -> None:
    ranges.add(outputs)


def _synthetic() -> Iterator[tuple[str, bytes]]:
    """Pictures of seeded noise over a ramp, PNG."""
    import io

    from PIL import Image

    for seed in range(SYNTHETIC):
        chance = np.random.default_rng(seed)
        ramp = np.linspace(0, 200, SIDE)[:, None, None] * chance.random(3)
        pixels = (ramp + chance.integers(0, 55, (SIDE, SIDE, 3))).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        yield QUESTIONS[seed % len(QUESTIONS)], buffer.getvalue()
