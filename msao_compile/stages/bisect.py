"""Where a module of less than fp32 loses its answer: block by block against the fp32 graph of the same dialect.

Both graphs are fed what the fp32 modules make of the same requests, so that nothing is inherited from other modules.
Inside a module an error is inherited: what left a block below the bound may have entered it so. Both graphs can be fed
in their middle, which tells three things of a block. `min_cosine` is of what leaves it when the conversion runs as a
whole. `own` is 1 - cosine where it was fed what the fp32 graph has there. `effect` is how much nearer to fp32 the
module's output comes when this block stays fp32 as well as all before it: an error can grow on its way there.

The proposed island is measured too: of the blocks by effect, by own error, and from the first one on, the smallest set
that brings the output within the bound on these requests. The parity of the next build proves it on its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.errors import DeploymentError, MsaoError
from msao_compile.graph.precision.observe import leaving, observed_blocks
from msao_compile.graph.precision.sides import Entered, Sides
from msao_compile.graph.precision.trial import Trial
from msao_compile.graph.precision.watch import watch
from msao_compile.made_up import picture
from msao_compile.manifest.bisection import Bisected, Findings
from msao_compile.manifest.evidence import ParityEvidence
from msao_compile.manifest.schema import Deployment, Dialect, Graph, Precision
from msao_compile.manifest.variants import NOT_ON_CPUS, as_graphs, kinds_of, unconverted
from msao_compile.recipe.asked import refuse_unknown
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, EngineFile, open_engine
from msao_compile.runtime.backends.base import Engine as OpenEngine
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import forward, rows
from msao_compile.runtime.loader import locate, read_manifest
from msao_compile.runtime.routes import edge
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession, Request
from msao_compile.runtime.views import Question

QUESTIONS = ("What is in this picture?", "How many things are there, and of what color?")
NEW_TOKENS = 4
"""Decoded for each request, so that steps are compared as prompts are."""
MADE_UP_TOKENS = 16
"""Of a request to a model that has no tokenizer here."""


@dataclass(frozen=True)
class Subject:
    """A module to look at: one model's component as some targets run it."""

    model: str
    component: str
    module: str
    dialect: Dialect
    precision: Precision


Seen = Mapping[Subject, Trial | str]
"""What was compared, or why it could not be."""


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """`Findings`; `arguments`: folder, target, model and component, each None for all, and by model the file of the
    requests that parity compares it on: seeded questions where there is none.

    Raises:
        InputError: the deployment has no such target, model or component. DeploymentError: a file is damaged.
    """
    folder = Path(arguments["folder"])
    deployment = read_manifest(folder)
    if "parity" not in deployment.evidence:
        raise DeploymentError(f"{folder}: holds no parity evidence, so no bounds are known; build it again")
    evidence = ParityEvidence.model_validate_json(locate(folder, deployment.evidence["parity"]).read_bytes())
    wanted = subjects(deployment, arguments["target"], arguments["model"], arguments["component"])
    found: list[Bisected] = []
    left_out: dict[str, str] = {}
    for model in deployment.models:
        own = {subject: targets for subject, targets in wanted.items() if subject.model == model.name}
        asked = arguments["requests"].get(model.name)
        for subject, trial in _tried(folder, deployment, own, asked, evidence, on_progress):
            if isinstance(trial, str):
                left_out |= {f"{target} {model.name}/{subject.component}": trial for target in own[subject]}
            else:
                found.append(judged(subject, own[subject], trial, _bound(evidence, subject)))
    of = "the requests of parity" if arguments["requests"] else "seeded questions"
    findings = Findings(name=deployment.name, asked=of, modules=tuple(found), left_out=left_out)
    return findings.model_dump(mode="json")


def _bound(evidence: ParityEvidence, subject: Subject) -> float | None:
    return evidence.bounds.get(subject.precision, {}).get("min_cosine")


def _tried(
    folder: Path, deployment: Deployment, own: Mapping[Subject, tuple[str, ...]], asked: str | None,
    evidence: ParityEvidence, on_progress: Any,
) -> Iterator[tuple[Subject, Trial | str]]:  # fmt: skip
    """Every module of one model, those of one dialect together."""
    groups: dict[tuple[Dialect, bool], list[Subject]] = {}
    for subject, targets in own.items():
        groups.setdefault((subject.dialect, _clips(deployment, subject, targets)), []).append(subject)
    for (dialect, clips), here in groups.items():
        on_progress({"model": here[0].model, "dialect": dialect})
        requests = None if asked is None else list(_requests(Path(asked), "real" if clips else "own"))
        bounds = {subject: _bound(evidence, subject) for subject in here}
        yield from _compared(folder, deployment, bounds, requests).items()


def subjects(
    deployment: Deployment, target: str | None = None, model: str | None = None, component: str | None = None
) -> dict[Subject, tuple[str, ...]]:
    """Every module of less than fp32 once, with the targets that run it so; None means all.

    Raises:
        InputError: the deployment has no such target, model or component.
    """
    known = {
        "target": (target, list(dict.fromkeys(engine.target for engine in deployment.engines))),
        "model": (model, [entry.name for entry in deployment.models]),
        "component": (component, sorted({module.component for module in deployment.modules})),
    }
    for option, (asked, names) in known.items():
        if asked is not None:
            refuse_unknown(option, asked, names)
    found: dict[Subject, tuple[str, ...]] = {}
    taken: dict[tuple[str, Dialect, Precision], Subject] = {}
    for entry in deployment.models:
        for name, module in entry.components.items():
            for engine in deployment.engines:
                if engine.module != module or engine.precision == "fp32" or target not in (None, engine.target):
                    continue
                if model not in (None, entry.name) or component not in (None, name):
                    continue
                kind = (module, engine.dialect, engine.precision)
                subject = taken.setdefault(kind, Subject(entry.name, name, *kind))
                found[subject] = tuple(dict.fromkeys((*found.get(subject, ()), engine.target)))
    return found


def _clips(deployment: Deployment, subject: Subject, targets: Sequence[str]) -> bool:
    """Whether each of the targets clips activations to what samples reached, so that noise says nothing of it."""
    model = deployment.model(subject.model)
    held = [[engine for engine in deployment.engines if engine.target == target] for target in targets]
    return all(kinds_of(engines, model).has_ranges for engines in held)


def _requests(path: Path, kind: str) -> Iterator[Arrays]:
    """The requests of parity: named inputs, and the tokens that its steps take as `teacher`."""
    held = dict(np.load(path, allow_pickle=False))
    for number in sorted({name.split(".")[1] for name in held if name.startswith(f"{kind}.")}):
        start = f"{kind}.{number}."
        yield {name.removeprefix(start): value for name, value in held.items() if name.startswith(start)}


def _compared(
    folder: Path, deployment: Deployment, wanted: Mapping[Subject, float | None], asked: Sequence[Arrays] | None
) -> Seen:
    """Modules of one model and dialect with their bounds, fed with what its fp32 modules make of requests."""
    found: dict[Subject, Trial | str] = {
        subject: f"ONNX Runtime multiplies nothing in {subject.precision} on a CPU; build in fp16 to see its blocks"
        for subject in wanted
        if subject.precision in NOT_ON_CPUS
    }
    possible = [subject for subject in wanted if subject not in found]
    if not possible:
        return found
    dialect, model = possible[0].dialect, deployment.model(possible[0].model)
    engines = Engines(folder, as_graphs(deployment), verify=True, demand="built", target=unconverted(dialect))
    session = engines.session(model)
    with _room(folder) as room:
        for component in dict.fromkeys(subject.component for subject in possible):
            own = [subject for subject in possible if subject.component == component]
            found |= _watched(session, folder, deployment, own, room)
        trials = {subject: trial for subject, trial in found.items() if isinstance(trial, Trial)}
        why = _ask(session, asked)
        apart = [subject for subject, trial in trials.items() if not trial.whole.min_cosine]
        for subject in apart:
            why = _made_up(session, deployment, subject) or why
            if not trials[subject].whole.min_cosine:
                found[subject] = f"no request reaches it: {why or 'it was fed nothing'}"
        _try_islands(trials, wanted, lambda: _again(session, deployment, asked, apart))
    return found


def _again(
    session: ModelSession, deployment: Deployment, asked: Sequence[Arrays] | None, apart: Sequence[Subject]
) -> None:
    _ask(session, asked)
    for subject in apart:
        _made_up(session, deployment, subject)


def _try_islands(
    trials: Mapping[Subject, Trial], bounds: Mapping[Subject, float | None], ask_again: Callable[[], None]
) -> None:
    """For outputs below their bound: all first blocks in fp32, then fewer."""
    for trial in trials.values():
        trial.asked = ()
    below = {}
    for subject, trial in trials.items():
        bound = bounds[subject]
        if bound is not None and trial.cosine < bound and trial.blocks:
            below[subject] = bound
    for is_first in (True, False):
        for subject, bound in below.items():
            trials[subject].asked = trials[subject].prefixes() if is_first else trials[subject].smaller(bound)
        if any(trials[subject].asked for subject in below):
            ask_again()


def _watched(
    session: ModelSession, folder: Path, deployment: Deployment, own: Sequence[Subject], room: Path
) -> dict[Subject, Trial | str]:
    """Let one module of the session run as a graph that tells of its blocks, and each conversion of it beside it."""
    component, module = own[0].component, own[0].module
    plain = _graph(deployment, module, own[0].dialect, "fp32")
    source = _brought(folder, plain, room)
    exits = leaving(source)
    states = {state.output for state in plain.states}
    outputs = [spec.name for spec in plain.outputs if spec.name not in states and spec.dtype.startswith("float")]

    def opened(file: Path) -> Entered:
        copy = file.with_name(f"observed.{file.name}")
        observed_blocks(file, copy, exits)
        return Entered(open_engine("ort", EngineFile(copy, plain.dialect, deployment.runtime)), tuple(exits))

    whole = opened(source)
    found: dict[Subject, Trial | str] = {}
    for subject in own:
        try:
            graph = _graph(deployment, module, subject.dialect, subject.precision)
            found[subject] = Trial(Sides(whole, opened(_brought(folder, graph, room))), outputs)
        except MsaoError as error:
            found[subject] = str(error)

    def tell(fed: Arrays, given: Arrays) -> None:
        for trial in found.values():
            if isinstance(trial, Trial):
                trial.add(fed, given)

    watch(session, component, whole, plain.states, tell)
    return found


def _graph(deployment: Deployment, module: str, dialect: Dialect, precision: Precision) -> Graph:
    graphs = deployment.module(module).graphs
    found = next((one for one in graphs if (one.dialect, one.precision) == (dialect, precision)), None)
    if found is None:
        raise DeploymentError(
            f"{deployment.module(module).component}: the deployment holds no graph in {dialect} {precision}; build it "
            "again"
        )
    return found


@contextmanager
def _room(folder: Path) -> Iterator[Path]:
    """A folder for graphs that say more, beside the deployment so that weights can be linked, or where it can be."""
    beside = folder.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".bisect.", dir=beside if os.access(beside, os.W_OK) else None) as made:
        yield Path(made)


def _brought(folder: Path, graph: Graph, room: Path) -> Path:
    """The graph and its weights in the room: links, or copies where the file system has none."""
    for reference in (graph.file, *graph.data):
        source, target = locate(folder, reference), room / Path(reference.path).parent / Path(reference.path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return room / graph.file.path


def _ask(session: ModelSession, asked: Sequence[Arrays] | None) -> str | None:
    """Requests through the whole model, seeded questions where none are given; why it takes none, where it does not."""
    if asked is not None:
        return _replay(session, asked)
    sees = any(encoder.modality == "image" for encoder in session.model.encoders)
    try:
        for text in QUESTIONS:
            question = Question(text, (picture(),) if sees else (), NEW_TOKENS, SamplingParameters(ignore_eos=True))
            for _ in edge(session, question, Clock()).tokens:
                pass
    except MsaoError as error:
        return str(error)
    return None


def _replay(session: ModelSession, every: Sequence[Arrays]) -> str | None:
    """Requests of parity and its steps after them; why none could be taken, where none could."""
    why, clock = "parity compared it on nothing", Clock()
    for asked in every:
        inputs = {name: value for name, value in asked.items() if name != "teacher"}
        try:
            if session.model.decoder is None:
                forward(session, inputs)
                continue
            if session.facts.tokens != "input_ids":
                inputs[session.facts.tokens] = np.full((1, 1), session.facts.start_token, np.int64)
            [(request, _)] = rows(session, inputs)
            _, talk = session.prefill(request, session.encode(request.tensors, clock), clock, every=True)
            for token in asked["teacher"]:
                session.extend(np.array([token]), talk, clock)
        except MsaoError as error:  # as a picture of a size that a module does not take
            why = str(error)
    return why


def _made_up(session: ModelSession, deployment: Deployment, subject: Subject) -> str | None:
    """Seeded tokens for a decoder, seeded arrays for another module; why it cannot take them, where it cannot."""
    chance = np.random.default_rng(0)
    try:
        if subject.component == "decoder":
            free = np.setdiff1d(np.arange(session.facts.vocab_size), list(session.model.placeholders.values()))
            ids = chance.choice(free, MADE_UP_TOKENS + NEW_TOKENS).astype(np.int64)
            _, talk = session.prefill(Request(ids[:MADE_UP_TOKENS], {}), {}, Clock())
            session.extend(ids[MADE_UP_TOKENS:], talk, Clock())
        else:
            engine = session.engines[subject.component]
            engine.run({name: _array(name, engine, _best(deployment, subject), chance) for name in engine.inputs})
    except MsaoError as error:
        return str(error)
    return None


def _best(deployment: Deployment, subject: Subject) -> dict[str, tuple[int, ...]]:
    """Shapes that an engine of the module is fastest at, by input; empty where none has a profile."""
    orders = (engine.order for engine in deployment.engines if engine.module == subject.module)
    profiles = [profile for order in orders if order is not None for profile in order.profiles]
    return {one.name: one.opt for one in profiles[0].inputs} if profiles else {}


def _array(
    name: str, engine: OpenEngine, best: Mapping[str, tuple[int, ...]], chance: np.random.Generator
) -> np.ndarray:
    """Normal numbers, small token ids, masks of ones."""
    lengths = {"sequence_length": MADE_UP_TOKENS, "total_sequence_length": MADE_UP_TOKENS}
    shape = best.get(name) or tuple(
        size if isinstance(size, int) else lengths.get(size, 1) for size in engine.inputs[name]
    )
    kind = np.dtype(engine.types[name])
    if kind.kind == "f":
        return chance.standard_normal(shape).astype(kind)
    return chance.integers(1, 9, shape).astype(kind) if name == "input_ids" else np.ones(shape, kind)


def judged(subject: Subject, targets: tuple[str, ...], trial: Trial, bound: float | None) -> Bisected:
    """The first block below the bound, the worst, and the island that brings the module back within it."""
    blocks, outputs = trial.errors()
    first = next((one.name for one in blocks if bound is not None and one.min_cosine < bound), None)
    worst = max(blocks, key=lambda one: one.own).name if trial.blocks else None
    chosen = () if bound is None else trial.best(bound)
    nearest = trial.cosine_with(chosen) if chosen else None
    return Bisected(
        model=subject.model, component=subject.component, targets=targets, dialect=subject.dialect,
        precision=subject.precision, bound=bound, blocks=blocks, outputs=outputs, first=first, worst=worst,
        island=chosen, island_cosine=nearest, remark=_remark(trial, bound, chosen),
    )  # fmt: skip


def _remark(trial: Trial, bound: float | None, chosen: tuple[str, ...]) -> str:
    if bound is None:
        return "no min_cosine is set for this precision, so nothing can be below it"
    if trial.cosine >= bound:
        return "what it gives is within the bound"
    if not trial.blocks:
        return "it has no repeated blocks, so no island helps: raise its precision or correct the bound"
    if not chosen:
        nearest = trial.cosine_with(trial.prefixes()[-1])
        return f"with every block in fp32 it gives {nearest:.4f}: raise its precision or correct the bound"
    return f"with the island it gives {trial.cosine_with(chosen):.4f} on the same requests"
