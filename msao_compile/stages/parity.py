"""Compare what ships with its torch original: each module, the whole model, and every place where it can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from msao_compile.runtime.forward import forward, greedy, picture_tokens
from msao_compile.runtime.loader import locate, read_manifest, verify
from msao_compile.runtime.routes import crossing
from msao_compile.runtime.session import Conversation, ModelSession, Request
from msao_compile.runtime.wire.message import pack, unpack

CUTS = {
    "vision_encoder": frozenset({"vision_encoder"}),
    "embed_tokens": frozenset({"vision_encoder", "embed_tokens"}),
}
Bounds = Mapping[str, float | None]
Pair = tuple[np.ndarray, np.ndarray]


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Parity rows of one model in every dialect its draft deployment holds.

    `arguments`: folder (draft deployment), model, checkpoint, bounds, steps.
    """
    import torch

    folder = Path(arguments["folder"])
    deployment = read_manifest(folder)
    rows: list[ParityRow] = []
    with torch.inference_mode():
        original = _Original(Path(arguments["checkpoint"]))
        for dialect in sorted({engine.dialect for engine in deployment.engines}):
            engines = Engines(folder, deployment, verify=True, demand=("built",), dialect=dialect)
            session = engines.session(deployment.model(arguments["model"]))
            for subject, found in _Judge(original, session, int(arguments["steps"])).subjects():
                on_progress({"subject": subject, "dialect": dialect})
                rows.append(_row(session.model.name, subject, dialect, found, arguments["bounds"]))
    return ParityEvidence(rows=tuple(rows), bounds=arguments["bounds"]).model_dump(mode="json")


class _Original:
    """The torch model, eager fp32; each answer is computed once however many dialects are compared with it."""

    def __init__(self, folder: Path) -> None:
        import torch

        from msao_compile.families.base import REQUEST_SIZES
        from msao_compile.families.registry import open_model

        self.family, skeleton = open_model(folder)
        self.model = type(skeleton).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.pictures = [
            self.family.example_pictures(self.model.config, sizes, np.random.default_rng(seed))
            for seed, sizes in enumerate(REQUEST_SIZES)
        ]
        self.known: dict[tuple[str, int], np.ndarray] = {}

    def features(self, seed: int) -> np.ndarray:
        """Features of request `seed`, [tokens, hidden]."""

        def compute() -> np.ndarray:
            found = self.model.model.get_image_features(**_torch(self.pictures[seed])).pooler_output
            return np.concatenate([part.reshape(-1, part.shape[-1]).numpy() for part in found])

        return self._once(("features", seed), compute)

    def embeds(self, ids: np.ndarray, seed: int) -> np.ndarray:
        """Embeddings of tokens, [tokens, hidden]."""
        return self._once(("embeds", seed), lambda: self.model.get_input_embeddings()(_tensor(ids)).numpy())

    def text_logits(self, ids: np.ndarray, seed: int) -> np.ndarray:
        """Logits of one pass over text, [tokens, vocabulary]."""
        return self._once(("text", seed), lambda: self.model(input_ids=_tensor(ids)[None]).logits[0].numpy())

    def logits(self, ids: np.ndarray, seed: int) -> np.ndarray:
        """Logits of one pass over tokens and the pictures of request `seed`."""

        def compute() -> np.ndarray:
            inputs = self.family.forward_inputs(self.model.config, _tensor(ids)[None], _torch(self.pictures[seed]))
            logits: np.ndarray = self.model(**inputs).logits[0].numpy()
            return logits

        return self._once(("whole", seed), compute)

    def _once(self, key: tuple[str, int], compute: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


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


@dataclass(frozen=True)
class _Asked:
    """One request with pictures, and the tokens to decode after it."""

    ids: np.ndarray
    tensors: dict[str, np.ndarray]
    features: np.ndarray
    teacher: np.ndarray


class _Judge:
    """Runs the same requests through the torch original and through the loaded modules."""

    def __init__(self, original: _Original, session: ModelSession, steps: int) -> None:
        self.original, self.session, self.steps = original, session, steps
        self.requests = [self._request(seed) for seed in range(len(original.pictures))]

    def subjects(self) -> Iterator[tuple[str, Distance]]:
        """Every comparison: modules first, then the whole, then each cut against the whole."""
        seeds = range(len(self.requests))
        flat = [asked.features.reshape(-1, asked.features.shape[-1]) for asked in self.requests]
        yield "vision_encoder", distance([(flat[seed], self.original.features(seed)) for seed in seeds])
        yield "embed_tokens", distance([self._embeds(seed) for seed in range(3)])
        yield "decoder", distance([self._decoder(seed) for seed in range(2)])
        ours = [
            self._decoded(asked, self.session.prefill(*self._merged(asked), Clock(), every=True))
            for asked in self.requests
        ]
        theirs = [
            self.original.logits(np.concatenate([asked.ids, asked.teacher]), seed)
            for seed, asked in enumerate(self.requests)
        ]
        yield "whole", distance(list(zip(ours, theirs, strict=True)))
        uncut = [self._decoded(asked, self.session.prefill(*self._merged(asked), Clock())) for asked in self.requests]
        for cut, here in CUTS.items():
            split = [self._decoded(asked, self._crossed(asked, here)) for asked in self.requests]
            yield f"split after {cut}", distance(list(zip(split, uncut, strict=True)))

    def _embeds(self, seed: int) -> Pair:
        ids = self._text(seed, 11)
        return self.session.embed(ids, None, Clock())[0], self.original.embeds(ids, seed)

    def _decoder(self, seed: int) -> Pair:
        """Text alone: prefill of a part, then one step a token, against one pass over all of it."""
        total = PARITY_PROMPT_TOKENS + self.steps
        self._check_room(PARITY_PROMPT_TOKENS)
        ids = self._text(seed, total)
        logits, talk = self.session.prefill(Request(ids[:PARITY_PROMPT_TOKENS], {}), None, Clock(), every=True)
        rows = [
            logits,
            *(self.session.extend(ids[[index]], talk, Clock()) for index in range(PARITY_PROMPT_TOKENS, total)),
        ]
        return np.concatenate(rows), self.original.text_logits(ids, seed)

    def _request(self, seed: int) -> _Asked:
        """A request with pictures, its features, and the tokens that a teacher makes it decode."""
        tensors = self.original.pictures[seed]
        features = self.session.encode(tensors, Clock())
        assert features is not None and self.session.model.image_token_id is not None  # the tensors hold pictures
        parts = [self._text(seed, 3)]
        for count in picture_tokens(self.session, tensors, features):
            parts += [np.full(count, self.session.model.image_token_id, np.int64), self._text(seed + count, 2)]
        ids = np.concatenate([*parts, self._text(seed + 50, PARITY_PROMPT_TOKENS)])
        self._check_room(len(ids))
        return _Asked(ids, tensors, features, self._text(seed + 100, self.steps))

    @staticmethod
    def _merged(asked: _Asked) -> tuple[Request, np.ndarray]:
        return Request(asked.ids, asked.tensors), asked.features

    def _crossed(self, asked: _Asked, here: frozenset[str]) -> tuple[np.ndarray, Conversation]:
        """As the routes do it: what the modules `here` give becomes bytes, and the cloud's side goes on from those."""
        sent = pack(crossing(self.session, Request(asked.ids, asked.tensors), here, Clock()))
        return CloudSide(self.session).prefill(unpack(sent), self.steps, Clock())

    def _decoded(self, asked: _Asked, prefilled: tuple[np.ndarray, Conversation]) -> np.ndarray:
        """Logits that the prompt gave and those of each token the teacher gives."""
        logits, talk = prefilled
        steps = [self.session.extend(asked.teacher[[index]], talk, Clock()) for index in range(self.steps)]
        return np.concatenate([logits, *steps])

    def _check_room(self, prompt_tokens: int) -> None:
        capacity = self.session.model.decoder.kv_capacity
        if prompt_tokens + self.steps > capacity:
            raise CapacityExceeded(
                f"parity needs {prompt_tokens} prompt tokens and {self.steps} steps where {self.session.model.name} "
                f"has a KV cache of {capacity}: lower parity.steps or raise shapes.decoder.kv_capacity in the recipe"
            )

    def _text(self, seed: int, count: int) -> np.ndarray:
        """Random tokens that stand for no picture."""
        facts = self.session.model.family_facts
        special = [value for name, value in facts.items() if name.endswith("_token_id") and value is not None]
        known = np.setdiff1d(np.arange(self.session.model.decoder.vocab_size), np.asarray(special))
        return np.random.default_rng(seed).choice(known, count).astype(np.int64)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _torch(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: _tensor(value) for name, value in arrays.items()}


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
        ours = forward(session, inputs)["logits"]
        if ours.shape != held["logits"].shape:
            raise InputError(
                f"{reference}: its logits have shape {held['logits'].shape} where its inputs give {ours.shape}"
            )
        real = np.asarray(inputs.get("attention_mask", np.ones(ours.shape[:2]))).astype(bool)
        found = distance([(ours[real], held["logits"][real])])
        yield _row(name, "logits of the reference", dialect, found, bounds)
        if "generate" in held:
            wanted = _tokens(reference, held["generate"], ours)
            tokens = greedy(session, inputs, wanted.shape[1])
            one_hot = [np.eye(ours.shape[-1])[ids.reshape(-1)] for ids in (tokens, wanted)]
            found = distance([(one_hot[0], one_hot[1])])
            yield _row(name, "greedy tokens of the reference", dialect, found, bounds)


def _tokens(reference: Path, generate: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The generated tokens of a reference, [batch, tokens], refused where they cannot belong to these logits."""
    batch, _, vocabulary = logits.shape
    found = generate[None] if generate.ndim == 1 else generate
    if found.ndim != 2 or len(found) != batch or not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"{reference}: generate is {found.dtype} {found.shape}; it should be int64 ({batch}, tokens)")
    if ((found < 0) | (found >= vocabulary)).any():
        raise InputError(f"{reference}: generate holds tokens outside the vocabulary of {vocabulary}")
    return found
