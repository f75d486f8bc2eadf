"""Compare what ships with its torch original: each module, the whole model, and every place where it can be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from msao_compile.errors import CapacityExceeded, DeploymentError, InputError
from msao_compile.manifest.evidence import ParityEvidence, ParityRow
from msao_compile.manifest.schema import Deployment, Dialect
from msao_compile.recipe.schema import PARITY_PROMPT_TOKENS
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud import CloudSide
from msao_compile.runtime.compare import Distance, distance, refuse_failures, verdict
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import forward, greedy, rows
from msao_compile.runtime.loader import locate, read_manifest, verify
from msao_compile.runtime.routes import crossing
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire.message import pack, unpack

Bounds = Mapping[str, float | None]
Pair = tuple[np.ndarray, np.ndarray]
TEXT_ONLY = "text"
STEPS = "steps"


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Parity rows of one model in every dialect its draft deployment holds.

    `arguments`: folder (draft deployment), model, checkpoint, bounds, steps, exclude, trusted.
    """
    import torch

    folder = Path(arguments["folder"])
    deployment = read_manifest(folder)
    rows: list[ParityRow] = []
    with torch.inference_mode():
        original = Original(Path(arguments["checkpoint"]), tuple(arguments["exclude"]), int(arguments["steps"]))
        for dialect in sorted({engine.dialect for engine in deployment.engines}):
            engines = Engines(folder, deployment, verify=True, demand=("built",), dialect=dialect)
            session = engines.session(deployment.model(arguments["model"]))
            judge = judge_of(original, session)
            for subject, found in judge:
                on_progress({"subject": subject, "dialect": dialect})
                rows.append(_row(session.model.name, subject, dialect, found, arguments["bounds"]))
    return ParityEvidence(rows=tuple(rows), bounds=arguments["bounds"]).model_dump(mode="json")


@dataclass(frozen=True)
class Asked:
    """One request as named inputs, which modalities it has, and what the torch model answers.

    `outputs` are those of one pass, `teacher` the tokens that it is then made to decode, `steps` [steps + 1,
    vocabulary] the logits before each of them and after the last. `prompt` is what the steps go on from: `inputs`, or
    what the model's own `generate` made of them.
    """

    modalities: tuple[str, ...]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    prompt: dict[str, np.ndarray]
    teacher: np.ndarray
    steps: np.ndarray


class Original:
    """The torch model, eager fp32, and its answers to requests of several sizes: each is computed once."""

    def __init__(self, folder: Path, exclude: tuple[str, ...], steps: int) -> None:
        import torch

        from msao_compile.families.examples import modalities
        from msao_compile.families.registry import open_checked
        from msao_compile.manifest.schema import ENCODERS

        kind = type(open_checked(folder, trusted=True))  # the pipeline has refused what may not be opened
        self.model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        known = [name for name in modalities(self.model) if ENCODERS[name] not in exclude]
        self.asked = list(self._requests(known, steps))

    def _requests(self, known: list[Any], steps: int) -> Iterator[Asked]:
        from msao_compile.errors import UnsupportedFamily
        from msao_compile.families.examples import medium, request

        for modality in known:
            for variant in range(3):
                chance = np.random.default_rng(variant)
                media = [medium(self.model, modality, variant, chance)]
                yield self._answered((modality,), request(self.model, media, 6, chance), steps)
        try:
            plain = request(self.model, [], PARITY_PROMPT_TOKENS, np.random.default_rng(9))
        except UnsupportedFamily:  # it answers nothing without a picture or a sound
            return
        yield self._answered((), plain, steps)

    def _answered(self, modalities: tuple[str, ...], inputs: dict[str, np.ndarray], steps: int) -> Asked:
        tensors = _torch(inputs)
        found = self.model(**tensors)
        if "logits" not in found:
            outputs = {name: value.numpy() for name, value in found.items() if hasattr(value, "numpy")}
            return Asked(modalities, inputs, outputs, {}, {}, np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
        logits = found.logits.numpy()
        teacher = np.random.default_rng(len(modalities)).integers(10, min(200, logits.shape[-1]), steps)
        features = self._features(modalities, tensors)
        return Asked(modalities, inputs, {"logits": logits}, features, *self._stepped(inputs, teacher))

    def _stepped(
        self, inputs: dict[str, np.ndarray], teacher: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """What `generate` read, the tokens that it took, the teacher's unless the model's settings forbid one, and its
        logits.
        """
        from transformers import GenerationConfig

        prefixes: list[Any] = []

        def allowed(_: int, prefix: Any) -> list[int]:
            """Asked of the prefix: some models' own `generate` forgets a processor of logits."""
            prefixes.append(prefix)
            return [int(token) for token in teacher[len(prefixes) - 1 : len(prefixes)]] or [0]

        tensors = {name: value.clone() for name, value in _torch(inputs).items() if name != "decoder_input_ids"}
        settings = GenerationConfig(
            max_new_tokens=len(teacher) + 1, do_sample=False, eos_token_id=None, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
            decoder_start_token_id=_start(self.model),
        )  # fmt: skip
        found = self.model.generate(**tensors, generation_config=settings, prefix_allowed_tokens_fn=allowed)
        taken = prefixes[-1][len(prefixes[-1]) - len(teacher) :].numpy()
        prompt = dict(inputs)
        read = prefixes[0][None].numpy()
        if not self.model.config.is_encoder_decoder and 0 < read.shape[1] < inputs["input_ids"].shape[1]:
            prompt = {**prompt, "input_ids": read, "attention_mask": np.ones_like(read)}  # it read a part of the prompt
        return prompt, taken, np.stack([step[0].float().numpy() for step in found.logits])

    def _features(self, modalities: tuple[str, ...], tensors: dict[str, Any]) -> dict[str, np.ndarray]:
        """What the model's own feature methods give, [rows, hidden], by the name our encoders give it."""
        import inspect

        found = {}
        for modality in modalities:
            method = getattr(self.model, f"get_{modality}_features", None)
            if method is None:
                continue
            taken = set(inspect.signature(method).parameters)
            known = {name: value for name, value in tensors.items() if name in taken and name != "input_ids"}
            try:
                given = method(**known)
            except (
                TypeError,
                RuntimeError,
                ValueError,
                AttributeError,
                KeyError,
            ):  # it wants more than a processor gives
                continue
            pooled = getattr(given, "pooler_output", given)
            parts = pooled if isinstance(pooled, list | tuple) else [pooled]
            if all(hasattr(part, "shape") for part in parts):
                found[f"{modality}_features"] = np.concatenate(
                    [part.reshape(-1, part.shape[-1]).numpy() for part in parts]
                )
        return found


def _start(model: Any) -> int | None:
    """The token that opens an answer of a decoder that reads an encoder."""
    for config in (model.generation_config, model.config, model.config.get_text_config(decoder=True)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(config, name, None)
            if isinstance(found, int):
                return found
    return None


def _row(model: str, subject: str, dialect: Dialect, found: Distance, bounds: Bounds) -> ParityRow:
    decided, words = verdict(found, bounds)
    return ParityRow(
        model=model,
        subject=subject,
        dialect=dialect,
        backend="ort",
        precision="fp32",
        verdict=decided,
        max_abs=found.max_abs,
        min_cosine=found.min_cosine,
        argmax_agreement=found.argmax_agreement,
        compared=found.compared,
        bound=words,
    )


def judge_of(original: Original, session: ModelSession) -> Iterator[tuple[str, Distance]]:
    """Every comparison of one model: encoders, the whole pass, steps one by one, text alone, and each cut."""
    yield from _encoders(original, session)
    every = fitting(original.asked, session)
    names = {name: f"out.{name}" for name in every[0].outputs}
    for name in names if session.model.decoder is None else ("logits",):
        pairs = [(forward(session, asked.inputs)[name], asked.outputs[name]) for asked in every]
        yield "whole" if len(names) == 1 else f"whole {name}", distance(_flat(pairs))
    if session.model.decoder is None:
        return
    stepped = [(asked, _stepped(session, asked)) for asked in every]
    yield STEPS, distance([(ours, asked.steps) for asked, ours in stepped])
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


def _encoders(original: Original, session: ModelSession) -> Iterator[tuple[str, Distance]]:
    """Features against the model's own method, where it has one that gives as many."""
    for encoder in session.model.encoders:
        name, pairs = f"{encoder.modality}_features", []
        for asked in fitting(original.asked, session):
            theirs = asked.features.get(name) if encoder.modality in asked.modalities else None
            ours = session.encode(asked.inputs, Clock()).get(name) if theirs is not None else None
            if ours is not None and theirs is not None and ours.size == theirs.size:
                pairs.append((ours.reshape(theirs.shape), theirs))
        if pairs:
            yield encoder.component, distance(pairs)


def _stepped(session: ModelSession, asked: Asked, here: frozenset[str] | None = None) -> np.ndarray:
    """Logits after the prompt and after each of the teacher's tokens; with `here`, across a cut."""
    inputs = dict(asked.prompt)
    if session.facts.tokens != "input_ids":
        inputs[session.facts.tokens] = np.full((1, 1), session.facts.start_token, np.int64)
    [(request, _)] = rows(session, inputs)
    clock = Clock()
    if len(request.ids) + len(asked.teacher) > session.facts.kv_capacity:
        raise CapacityExceeded(
            f"parity needs {len(request.ids)} prompt tokens and {len(asked.teacher)} steps where {session.model.name} "
            f"has a KV cache of {session.facts.kv_capacity}: lower parity.steps or raise shapes.decoder.kv_capacity in "
            "the recipe"
        )
    if here is None:
        logits, talk = session.prefill(request, session.encode(request.tensors, clock), clock)
    else:  # as the routes do it: what the modules `here` give becomes bytes, and the cloud's side goes on from those
        sent = pack(crossing(session, request, here, clock))
        logits, talk = CloudSide(session).prefill(unpack(sent), len(asked.teacher), clock)
    steps = [session.extend(asked.teacher[[index]], talk, clock) for index in range(len(asked.teacher))]
    return np.concatenate([logits, *steps])


def _torch(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


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
        rows = tuple(_reference_rows(folder, deployment, reference, (model or known[0], evidence.bounds)))
    else:
        rows = tuple(row for row in evidence.rows if model in (None, row.model))
    evidence = evidence.model_copy(update={"rows": rows})
    if gate:
        refuse_failures(evidence)
    return evidence


def _evidence(folder: Path, deployment: Deployment) -> ParityEvidence:
    verify(folder, deployment)
    if "parity" not in deployment.evidence:
        raise DeploymentError(f"{folder}: holds no parity evidence; build it again")
    path = locate(folder, deployment.evidence["parity"])
    return ParityEvidence.model_validate_json(path.read_bytes())


def _read_reference(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; name an .npz with in.<name> arrays and logits")
    try:
        return dict(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: not an .npz of plain arrays ({error})") from error


def _reference_rows(
    folder: Path, deployment: Deployment, reference: Path, held_against: tuple[str, Bounds]
) -> Iterator[ParityRow]:
    name, bounds = held_against
    held = _read_reference(reference)
    inputs = {name.removeprefix("in."): value for name, value in held.items() if name.startswith("in.")}
    if "logits" not in held or not inputs:
        raise InputError(f"{reference}: holds no logits or no in.<name> arrays, so there is nothing to compare")
    for dialect in sorted({engine.dialect for engine in deployment.engines if engine.status != "deferred"}):
        session = Engines(folder, deployment, verify=True, dialect=dialect).session(deployment.model(name))
        if session.model.decoder is None:
            yield from _compared(session, held, inputs, (name, dialect, bounds))
            continue
        ours = forward(session, inputs)["logits"]
        if ours.shape != held["logits"].shape:
            raise InputError(
                f"{reference}: its logits have shape {held['logits'].shape} where its inputs give {ours.shape}"
            )
        own = session.facts.tokens == "input_ids"  # else the mask is of the text that an encoder reads
        mask = inputs.get("attention_mask") if own else None
        real = np.ones(ours.shape[:2], bool) if mask is None else np.asarray(mask).astype(bool)
        found = distance([(ours[real], held["logits"][real])])
        yield _row(name, "logits of the reference", dialect, found, bounds)
        if "generate" in held:
            wanted = _tokens(reference, held["generate"], ours)
            start = None if own else int(inputs[session.facts.tokens][0, 0])
            tokens = _aligned(greedy(session, inputs, wanted.shape[1]), wanted, start)
            one_hot = [np.eye(ours.shape[-1])[ids.reshape(-1)] for ids in (tokens, wanted)]
            found = distance([(one_hot[0], one_hot[1])])
            yield _row(name, "greedy tokens of the reference", dialect, found, bounds)


def _aligned(ours: np.ndarray, wanted: np.ndarray, start: int | None) -> np.ndarray:
    """Our tokens as the reference counts them: some hold the token that opened the answer, some do not."""
    opened = start is not None and bool((wanted[:, 0] == start).all()) and not np.array_equal(ours, wanted)
    return np.concatenate([wanted[:, :1], ours[:, :-1]], 1) if opened else ours


def _compared(
    session: ModelSession, held: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], about: Any
) -> Iterator[ParityRow]:
    """The outputs of a model that decodes nothing, each `out.<name>` of the reference."""
    name, dialect, bounds = about
    ours = forward(session, inputs)
    for key in sorted(key for key in held if key.startswith("out.")):
        output = key.removeprefix("out.")
        if output not in ours:
            raise InputError(f"the reference holds {key}, which this model does not give: it gives {', '.join(ours)}")
        yield _row(name, f"{output} of the reference", dialect, distance(_flat([(ours[output], held[key])])), bounds)


def _tokens(reference: Path, generate: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The generated tokens of a reference, [batch, tokens], refused where they cannot belong to these logits."""
    batch, _, vocabulary = logits.shape
    found = generate[None] if generate.ndim == 1 else generate
    if found.ndim != 2 or len(found) != batch or not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"{reference}: generate is {found.dtype} {found.shape}; it should be int64 ({batch}, tokens)")
    if ((found < 0) | (found >= vocabulary)).any():
        raise InputError(f"{reference}: generate holds tokens outside the vocabulary of {vocabulary}")
    return found
