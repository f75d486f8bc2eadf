"""Compare what ships with its torch original: each module, the whole model, and every place where it can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from zipfile import BadZipFile

import numpy as np

from msao_compile.errors import CapacityExceeded, DeploymentError, InputError, StageError
from msao_compile.manifest.evidence import ParityEvidence, ParityRow
from msao_compile.manifest.schema import Deployment, Model, Status
from msao_compile.manifest.variants import Kinds, kinds_of
from msao_compile.recipe.schema import PARITY_PROMPT_TOKENS
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud.opening import go_on
from msao_compile.runtime.compare import Distance, distance, refuse_failures, verdict
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import forward, greedy, rows
from msao_compile.runtime.loader import locate, read_manifest, verify
from msao_compile.runtime.routes import crossing
from msao_compile.runtime.session import ModelSession, Request
from msao_compile.runtime.wire.message import pack, unpack

if TYPE_CHECKING:
    from msao_compile.families.original import Asked, Original

BoundsByPrecision = Mapping[str, Mapping[str, float | None]]
Pair = tuple[np.ndarray, np.ndarray]
TEXT_ONLY = "text"
SAMPLE = 100
"""Where the variants begin that are samples and not made-up requests."""
STEPS = "steps"
BATCH = "batch of 2"


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Parity rows of one model for every target of its draft deployment: a dialect, and a precision of each module.

    `arguments`: folder (draft deployment), model, checkpoint, bounds by precision, steps, exclude, trusted, samples
    (None, or the file of them), requests (where to keep what was asked, for a bisection).
    """
    import torch

    from msao_compile.families.original import Original

    folder = Path(arguments["folder"])
    deployment = read_manifest(folder)
    rows: list[ParityRow] = []
    left_out: dict[str, str] = {}
    with torch.inference_mode():
        checkpoint, exclude = Path(arguments["checkpoint"]), tuple(arguments["exclude"])
        original = Original(checkpoint, exclude, int(arguments["steps"]), PARITY_PROMPT_TOKENS)
        model = deployment.model(arguments["model"])
        real = [] if arguments["samples"] is None else list(_samples(original, Path(arguments["samples"])))
        _keep(Path(arguments["requests"]), original.asked, real)
        for target, kinds in targets_of(deployment, model).items():
            session = Engines(folder, deployment, verify=True, demand="built", target=target).session(model)
            with patch.object(session, "encode", _once(session.encode)):
                asked = real if kinds.has_ranges else None
                for subject, found in judge_of(original, session, asked):
                    on_progress({"subject": subject, "target": target})
                    rows.append(_row(model.name, subject, kinds, found, arguments["bounds"]))
            subjects = {row.subject for row in rows if row.dialect == kinds.dialect}
            left_out |= {
                f"{session.model.name} {subject}": why
                for subject, why in _impossible(session)
                if subject not in subjects
            }
    return ParityEvidence(rows=tuple(rows), bounds=arguments["bounds"], left_out=left_out).model_dump(mode="json")


def _samples(original: Original, path: Path) -> Iterator[Asked]:
    """The original's answers to samples, for what clips whatever is larger than real requests are."""
    held = dict(np.load(path, allow_pickle=False))
    for number in sorted({name.partition(".")[0] for name in held}):
        inputs = {name.partition(".")[2]: value for name, value in held.items() if name.partition(".")[0] == number}
        yield original.answers("image", SAMPLE + int(number), inputs)


def _keep(path: Path, own: Sequence[Asked], real: Sequence[Asked]) -> None:
    """Every request as `<own or real>.<number>.<input>`, and the tokens that its steps take as `.teacher`."""
    arrays = {
        f"{kind}.{number}.{name}": value
        for kind, every in (("own", own), ("real", real))
        for number, asked in enumerate(every)
        for name, value in {**(asked.prompt or asked.inputs), "teacher": asked.teacher}.items()
    }
    np.savez(path, allow_pickle=False, **arrays)


def _impossible(session: ModelSession) -> Iterator[tuple[str, str]]:
    """Why a comparison is not made, by subject, where it is not."""
    for encoder in session.model.encoders:
        yield encoder.component, "transformers has no method that gives as many features; compared in the whole"
    if session.model.decoder is not None:
        yield TEXT_ONLY, "it answers nothing without a picture or a sound"
        yield BATCH, "its graphs take one request at a time"


def _once(encode: Callable[[Mapping[str, np.ndarray], Clock], Any]) -> Callable[..., Any]:
    """Encodes each picture, clip and sound once, however many rows look at what follows from it."""
    known: dict[str, Any] = {}

    def remembered(tensors: Mapping[str, np.ndarray], clock: Clock) -> Any:
        told = sha256()
        for name, value in sorted(tensors.items()):
            told.update(f"{name} {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        if told.hexdigest() not in known:
            known[told.hexdigest()] = encode(tensors, clock)
        return dict(known[told.hexdigest()])

    return remembered


def targets_of(deployment: Deployment, model: Model, *levels: Status) -> dict[str, Kinds]:
    """A target for each dialect and precision in which ONNX Runtime runs all of a model, at one of the levels."""
    found: dict[Kinds, str] = {}
    for target in dict.fromkeys(engine.target for engine in deployment.engines):
        held = {engine.module: engine for engine in deployment.engines if engine.target == target}
        own = [held[module] for module in model.components.values() if module in held]
        there = len(own) == len(model.components)
        if there and all(engine.backend == "ort" and engine.status in (levels or ("built",)) for engine in own):
            found.setdefault(kinds_of(own, model), target)
    return {target: kinds for kinds, target in found.items()}


def _row(model: str, subject: str, kinds: Kinds, found: Distance, bounds: BoundsByPrecision) -> ParityRow:
    """What one comparison found, held against the bounds of the lowest precision that took part in it."""
    decided, words = verdict(found, bounds[kinds.lowest(subject)])
    return ParityRow(
        model=model,
        subject=subject,
        dialect=kinds.dialect,
        backend="ort",
        precision=kinds.of(subject),
        verdict=decided,
        max_abs=found.max_abs,
        min_cosine=found.min_cosine,
        argmax_agreement=found.argmax_agreement,
        compared=found.compared,
        bound=words,
    )


def _given(session: ModelSession, asked: Asked, name: str) -> np.ndarray:
    """An output of a model that decodes nothing."""
    found = forward(session, asked.inputs)
    if name not in found:
        kinds = " and ".join((*asked.modalities, "text"))
        raise StageError(f"a request of {kinds} gives no {name}: what makes it reads more than such a request has")
    return found[name]


def judge_of(
    original: Original, session: ModelSession, given: Sequence[Asked] | None = None
) -> Iterator[tuple[str, Distance]]:
    """Every comparison of one model: encoders, the whole pass, steps one by one, text alone, and each cut.

    `given` are the requests to compare on instead of the original's own.
    """
    every = fitting(original.asked if given is None else given, session)
    yield from _encoders(every, session)
    if session.model.decoder is None:  # what compares texts with media gives nothing for texts alone
        every = [asked for asked in every if asked.modalities] or every
    names = {name: f"out.{name}" for name in every[0].outputs}
    for name in names if session.model.decoder is None else ("logits",):
        pairs = [(_given(session, asked, name), asked.outputs[name]) for asked in every]
        yield "whole" if len(names) == 1 else f"whole {name}", distance(_flat(pairs))
    if session.model.decoder is None:
        return
    stepped = [(asked, _stepped(session, asked)) for asked in every]
    yield STEPS, distance([(ours, asked.steps) for asked, ours in stepped])
    if session.takes_batches and given is None:
        pair = (every[0], original.twin(every[0]))
        yield BATCH, distance(list(zip(_together(session, pair), (asked.steps for asked in pair), strict=True)))
    alone = [(ours, asked.steps) for asked, ours in stepped if not asked.modalities]
    if alone:
        yield TEXT_ONLY, distance(alone)
    for cut, here in cuts(session).items():
        pairs = [(_stepped(session, asked, here), ours) for asked, ours in stepped if asked.modalities]
        if pairs:
            yield f"split after {cut}", distance(pairs)


def fitting(every: Sequence[Asked], session: ModelSession) -> list[Asked]:
    """The requests whose pictures have a size that the encoders take; all where that leaves a modality without one."""

    def fits(asked: Asked) -> bool:
        for encoder in session.model.encoders:
            shapes = session.engines[encoder.component].inputs
            for name in set(encoder.inputs) & set(asked.inputs) & set(shapes):
                pairs = zip(shapes[name][1:], asked.inputs[name].shape[1:], strict=False)
                if any(isinstance(size, int) and size != given for size, given in pairs):
                    return False
        return True

    found = [asked for asked in every if fits(asked)]
    same = {modality for asked in found for modality in asked.modalities} == {
        modality for asked in every for modality in asked.modalities
    }
    return found if same else list(every)


def cuts(session: ModelSession) -> dict[str, frozenset[str]]:
    """Where a model can be cut, and which components are then on the near side."""
    encoders = [name for name in session.model.components if name.endswith("encoder")]
    if not encoders or "embed_tokens" not in session.model.components:
        return {}
    return {encoders[-1]: frozenset(encoders), "embed_tokens": frozenset({*encoders, "embed_tokens"})}


def _flat(pairs: list[Pair]) -> list[Pair]:
    return [(ours.reshape(-1, ours.shape[-1]), theirs.reshape(-1, theirs.shape[-1])) for ours, theirs in pairs]


def _encoders(every: Sequence[Asked], session: ModelSession) -> Iterator[tuple[str, Distance]]:
    """Features against the model's own method, where it has one that gives as many."""
    for encoder in session.model.encoders:
        name, pairs = f"{encoder.modality}_features", []
        for asked in every:
            theirs = asked.features.get(name) if encoder.modality in asked.modalities else None
            ours = session.encode(asked.inputs, Clock()).get(name) if theirs is not None else None
            if ours is not None and theirs is not None and ours.size == theirs.size:
                pairs.append((ours.reshape(theirs.shape), theirs))
        if pairs:
            yield encoder.component, distance(pairs)


def _prompt(session: ModelSession, asked: Asked) -> Request:
    inputs = dict(asked.prompt)
    if session.facts.tokens != "input_ids":
        inputs[session.facts.tokens] = np.full((1, 1), session.facts.start_token, np.int64)
    [(request, _)] = rows(session, inputs)
    return request


def _together(session: ModelSession, pair: Sequence[Asked]) -> np.ndarray:
    """Logits [B, 1 + steps, vocabulary] of requests of one length that the decoder goes through side by side."""
    clock = Clock()
    logits, talk = session.prefill_batch([_prompt(session, asked) for asked in pair], clock)
    taken = np.stack([asked.teacher for asked in pair])
    steps = [session.extend_batch(taken[:, [index]], talk, clock) for index in range(taken.shape[1])]
    return np.concatenate([logits[:, -1:], *steps], axis=1)


def _stepped(session: ModelSession, asked: Asked, here: frozenset[str] | None = None) -> np.ndarray:
    """Logits after the prompt and after each of the teacher's tokens; with `here`, across a cut."""
    request, clock = _prompt(session, asked), Clock()
    if len(request.ids) + len(asked.teacher) > session.facts.kv_capacity:
        raise CapacityExceeded(
            f"parity needs {len(request.ids)} prompt tokens and {len(asked.teacher)} steps where {session.model.name} "
            f"has a KV cache of {session.facts.kv_capacity}: lower parity.steps or raise shapes.decoder.kv_capacity in "
            "the recipe"
        )
    if here is None:
        logits, talk = session.prefill(request, session.encode(request.tensors, clock), clock)
    else:  # as the routes do it: what the modules `here` give becomes bytes, and the cloud's side goes on from those
        sent = unpack(pack(crossing(session, request, here, clock)))
        logits, talk = go_on(session, sent, len(asked.teacher), clock)
    steps = [session.extend(asked.teacher[[index]], talk, clock) for index in range(len(asked.teacher))]
    return np.concatenate([logits, *steps])


def check_deployment(folder: Path, reference: Path | None, model: str | None, gate: bool = True) -> ParityEvidence:
    """The parity matrix of a built deployment; with `reference`, a comparison with the outputs stored in that file.

    Raises:
        GateError: a row is FAIL. DeploymentError: a file is damaged. InputError: the reference cannot be read, or
            it is not clear which model it belongs to.
    """
    deployment = read_manifest(folder)
    known = [entry.name for entry in deployment.models]
    if model not in (None, *known):
        raise InputError(f"model {model!r} is not in this deployment: it has {', '.join(known)}")
    evidence = _evidence(folder, deployment)
    if reference is not None:
        if model is None and len(known) > 1:
            raise InputError(f"{reference}: which model do these outputs belong to? name one of {', '.join(known)}")
        try:
            rows = tuple(_reference_rows(folder, deployment, reference, (model or known[0], evidence.bounds)))
        except (InputError, CapacityExceeded) as error:
            raise type(error)(f"{reference}: {error}") from error
    else:
        rows = tuple(row for row in evidence.rows if model in (None, row.model))
    about = {} if reference is not None else evidence.left_out
    left_out = {name: why for name, why in about.items() if model in (None, name.partition(" ")[0])}
    evidence = evidence.model_copy(update={"rows": rows, "left_out": left_out})
    if gate:
        refuse_failures(evidence, f"msao-compile parity {folder} --bisect")
    return evidence


def _evidence(folder: Path, deployment: Deployment) -> ParityEvidence:
    verify(folder, deployment)
    if "parity" not in deployment.evidence:
        raise DeploymentError(f"{folder}: holds no parity evidence; build it again")
    path = locate(folder, deployment.evidence["parity"])
    return ParityEvidence.model_validate_json(path.read_bytes())


def _read_reference(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError("no such file; name an .npz with in.<name> arrays and logits")
    try:
        return dict(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise InputError(f"not an .npz of plain arrays ({error})") from error


def _reference_rows(
    folder: Path, deployment: Deployment, reference: Path, held_against: tuple[str, BoundsByPrecision]
) -> Iterator[ParityRow]:
    name, bounds = held_against
    held = _read_reference(reference)
    inputs = {name.removeprefix("in."): value for name, value in held.items() if name.startswith("in.")}
    if "logits" not in held or not inputs:
        raise InputError("holds no logits or no in.<name> arrays, so there is nothing to compare")
    for target, kinds in targets_of(deployment, deployment.model(name), "parity", "qualified").items():
        session = Engines(folder, deployment, verify=True, target=target).session(deployment.model(name))
        if session.model.decoder is None:
            yield from _compared(session, held, inputs, (name, kinds, bounds))
            continue
        ours = forward(session, inputs)["logits"]
        if ours.shape != held["logits"].shape:
            raise InputError(f"its logits have shape {held['logits'].shape} where its inputs give {ours.shape}")
        own = session.facts.tokens == "input_ids"  # else the mask is of the text that an encoder reads
        mask = inputs.get("attention_mask") if own else None
        real = np.ones(ours.shape[:2], bool) if mask is None else np.asarray(mask).astype(bool)
        found = distance([(ours[real], held["logits"][real])])
        yield _row(name, "logits of the reference", kinds, found, bounds)
        if "generate" in held:
            wanted = _tokens(held["generate"], ours)
            start = None if own else int(inputs[session.facts.tokens][0, 0])
            tokens = _aligned(greedy(session, inputs, wanted.shape[1]), wanted, start)
            one_hot = [np.eye(ours.shape[-1])[ids.reshape(-1)] for ids in (tokens, wanted)]
            found = distance([(one_hot[0], one_hot[1])])
            yield _row(name, "greedy tokens of the reference", kinds, found, bounds)


def _aligned(ours: np.ndarray, wanted: np.ndarray, start: int | None) -> np.ndarray:
    """Our tokens as the reference counts them: some hold the token that opened the answer, some do not."""
    opened = start is not None and bool((wanted[:, 0] == start).all()) and not np.array_equal(ours, wanted)
    return np.concatenate([wanted[:, :1], ours[:, :-1]], 1) if opened else ours


def _compared(
    session: ModelSession, held: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], about: Any
) -> Iterator[ParityRow]:
    """The outputs of a model that decodes nothing, each `out.<name>` of the reference."""
    name, kinds, bounds = about
    ours = forward(session, inputs)
    if "logits" in ours:  # a head that gives all of its answer at once
        held = {"out.logits": held["logits"], **held}
    for key in sorted(key for key in held if key.startswith("out.")):
        output = key.removeprefix("out.")
        if output not in ours:
            raise InputError(f"holds {key}, which this model does not give: it gives {', '.join(ours)}")
        if ours[output].shape != held[key].shape:
            raise InputError(f"its {output} have shape {held[key].shape} where its inputs give {ours[output].shape}")
        yield _row(name, f"{output} of the reference", kinds, distance(_flat([(ours[output], held[key])])), bounds)


def _tokens(generate: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The generated tokens of a reference, [batch, tokens], refused where they cannot belong to these logits."""
    batch, _, vocabulary = logits.shape
    found = generate[None] if generate.ndim == 1 else generate
    if found.ndim != 2 or len(found) != batch or found.shape[1] == 0 or not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"generate is {found.dtype} {found.shape}; it should be int64 ({batch}, tokens)")
    if ((found < 0) | (found >= vocabulary)).any():
        raise InputError(f"generate holds tokens outside the vocabulary of {vocabulary}")
    return found
