"""Compare what ships with its torch original: each module, the whole model, and every place where it can be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import DeploymentError, InputError
from msao_compile.manifest.evidence import ParityEvidence, ParityRow
from msao_compile.manifest.schema import Deployment, Dialect
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.compare import Distance, distance, refuse_failures, verdict
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import forward, picture_tokens
from msao_compile.runtime.loader import locate, read_manifest, verify
from msao_compile.runtime.session import ModelSession, Request
from msao_compile.runtime.wire.message import Message, pack, unpack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from msao_compile.families.base import Family, Sizes

DEFAULT_BOUNDS = {"min_cosine": 0.9999, "max_abs": 1e-3}
PROMPT_TOKENS = 6
Pair = tuple[np.ndarray, np.ndarray]


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Parity rows of one model in every dialect its draft deployment holds.

    `arguments`: folder (draft deployment), model, checkpoint, bounds, steps.
    """
    import torch

    from msao_compile.families.base import SIZES

    folder = Path(arguments["folder"])
    deployment = read_manifest(folder)
    family, original = _original(Path(arguments["checkpoint"]))
    rows: list[ParityRow] = []
    with torch.no_grad():
        for dialect in sorted({engine.dialect for engine in deployment.engines}):
            engines = Engines(folder, deployment, verify=True, demand=("built",), dialect=dialect)
            session = engines.session(deployment.model(arguments["model"]))
            judge = _Judge(family, original, session, SIZES, int(arguments["steps"]))
            for subject, found in judge.subjects():
                on_progress({"subject": subject, "dialect": dialect})
                rows.append(_row(session.model.name, subject, dialect, found, arguments["bounds"]))
    return ParityEvidence(rows=tuple(rows)).model_dump(mode="json")


def _original(folder: Path) -> tuple[Family, PreTrainedModel]:
    import torch
    import transformers

    from msao_compile.families.checkpoint import read_config
    from msao_compile.families.registry import find

    config = read_config(folder)
    name = config["architectures"][0]
    architecture = getattr(transformers, name)
    model = architecture.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    family = find(config["model_type"], name)
    family.host_facts(model.config)
    return family, model


def _row(model: str, subject: str, dialect: Dialect, found: Distance, bounds: dict[str, Any]) -> ParityRow:
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


class _Judge:
    """Runs the same requests through the torch original and through the loaded modules."""

    def __init__(
        self, family: Family, original: PreTrainedModel, session: ModelSession, sizes: Sequence[Sizes], steps: int
    ) -> None:
        self.family, self.original, self.session, self.sizes, self.steps = family, original, session, sizes, steps
        self.facts = session.model.decoder

    def subjects(self) -> Iterator[tuple[str, Distance]]:
        """Every comparison: modules first, then the whole, then each cut against the whole."""
        yield "vision_encoder", distance([self._features(sizes, seed) for seed, sizes in enumerate(self.sizes)])
        yield "embed_tokens", distance([self._embeds(seed) for seed in range(3)])
        yield "decoder", distance([self._decoder(seed) for seed in range(2)])
        requests = [(sizes, seed) for seed, sizes in enumerate(self.sizes)]
        yield "whole", distance([self._whole(*request) for request in requests])
        for cut in ("vision_encoder", "embed_tokens"):
            yield f"split after {cut}", distance([self._split(cut, *request) for request in requests])

    def _pictures(self, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
        return self.family.example_pictures(self.original.config, sizes, np.random.default_rng(seed))

    def _features(self, sizes: Sizes, seed: int) -> Pair:
        tensors = self._pictures(sizes, seed)
        ours = self.session.encode(tensors, Clock())
        assert ours is not None  # the tensors hold pictures
        found = self.original.model.get_image_features(**_torch(tensors)).pooler_output
        parts = [part.reshape(-1, part.shape[-1]).numpy() for part in found]
        return ours.reshape(-1, ours.shape[-1]), np.concatenate(parts)

    def _embeds(self, seed: int) -> Pair:
        ids = self._text(seed, 11)
        return self.session.embed(ids, None, Clock())[0], self.original.get_input_embeddings()(_tensor(ids)).numpy()

    def _decoder(self, seed: int) -> Pair:
        """Random embeddings: prefill of a part, then one step a token, against one pass over all of them."""
        total = PROMPT_TOKENS + self.steps
        ids = self._text(seed, total)
        logits, talk = self.session.prefill(Request(ids[:PROMPT_TOKENS], {}), None, Clock(), every=True)
        rows = [logits, *(self.session.extend(ids[[index]], talk, Clock()) for index in range(PROMPT_TOKENS, total))]
        return np.concatenate(rows), self.original(input_ids=_tensor(ids)[None]).logits[0].numpy()

    def _request(self, sizes: Sizes, seed: int) -> tuple[Request, np.ndarray, np.ndarray]:
        """A request with pictures, its features, and the tokens that a teacher makes it decode."""
        tensors = self._pictures(sizes, seed)
        features = self.session.encode(tensors, Clock())
        assert features is not None and self.session.model.image_token_id is not None
        parts = [self._text(seed, 3)]
        for count in picture_tokens(self.session, tensors, features):
            parts += [np.full(count, self.session.model.image_token_id, np.int64), self._text(seed + count, 2)]
        ids = np.concatenate([*parts, self._text(seed + 50, PROMPT_TOKENS)])
        return Request(ids, tensors), features, self._text(seed + 100, self.steps)

    def _ours(self, sizes: Sizes, seed: int) -> np.ndarray:
        request, features, teacher = self._request(sizes, seed)
        logits, talk = self.session.prefill(request, features, Clock(), every=True)
        return np.concatenate([logits, *(self.session.extend(teacher[[i]], talk, Clock()) for i in range(self.steps))])

    def _whole(self, sizes: Sizes, seed: int) -> Pair:
        request, _, teacher = self._request(sizes, seed)
        ids = _tensor(np.concatenate([request.ids, teacher]))[None]
        inputs = self.family.forward_inputs(ids, _torch(request.tensors))
        return self._ours(sizes, seed), self.original(**inputs).logits[0].numpy()

    def _split(self, cut: str, sizes: Sizes, seed: int) -> Pair:
        """What crosses the cut goes through bytes and back; the rest must not notice."""
        request, features, teacher = self._request(sizes, seed)
        positions, offset = self.session.positions(request)
        if cut == "vision_encoder":
            crossed = unpack(
                pack(Message("features", {}, {"input_ids": request.ids, "image_features": features}))
            ).tensors
            embeds = self.session.embed(crossed["input_ids"], crossed["image_features"], Clock())
        else:
            merged = self.session.embed(request.ids, features, Clock())
            crossed = unpack(pack(Message("embeds", {}, {"inputs_embeds": merged, "position_ids": positions}))).tensors
            embeds, positions = crossed["inputs_embeds"], crossed["position_ids"]
        logits, talk = self.session.prefill_embeds(embeds, (positions, offset), Clock(), every=True)
        steps = [self.session.extend(teacher[[index]], talk, Clock()) for index in range(self.steps)]
        return np.concatenate([logits, *steps]), self._ours(sizes, seed)

    def _text(self, seed: int, count: int) -> np.ndarray:
        """Random tokens that stand for no picture."""
        special = [value for name, value in self.session.model.family_facts.items() if name.endswith("_token_id")]
        known = np.setdiff1d(
            np.arange(self.facts.vocab_size), np.asarray([value for value in special if value is not None])
        )
        return np.random.default_rng(seed).choice(known, count).astype(np.int64)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _torch(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: _tensor(value) for name, value in arrays.items()}


def check_deployment(folder: Path, reference: Path | None, model: str | None, gate: bool = True) -> ParityEvidence:
    """The parity matrix of a built deployment; with `reference`, a comparison with the outputs stored in that file.

    Raises:
        GateError: a row is FAIL. DeploymentError: a file is damaged. InputError: the reference cannot be read.
    """
    deployment = read_manifest(folder)
    if reference is None:
        verify(folder, deployment)
        if "parity" not in deployment.evidence:
            raise DeploymentError(f"{folder}: holds no parity evidence; build it again")
        path = locate(folder, deployment.evidence["parity"])
        evidence = ParityEvidence.model_validate_json(path.read_bytes())
    else:
        evidence = ParityEvidence(rows=tuple(_reference_rows(folder, deployment, reference, model)))
    rows = tuple(row for row in evidence.rows if model in (None, row.model))
    evidence = ParityEvidence(rows=rows)
    if gate:
        refuse_failures(evidence)
    return evidence


def _reference_rows(folder: Path, deployment: Deployment, reference: Path, model: str | None) -> Iterator[ParityRow]:
    if not reference.is_file():
        raise InputError(f"{reference}: no such file; name an .npz with in.<name> arrays and logits")
    try:
        held = dict(np.load(reference, allow_pickle=False))
    except (ValueError, OSError) as error:
        raise InputError(f"{reference}: not an .npz of plain arrays ({error})") from error
    inputs = {name.removeprefix("in."): value for name, value in held.items() if name.startswith("in.")}
    if "logits" not in held or not inputs:
        raise InputError(f"{reference}: holds no logits or no in.<name> arrays, so there is nothing to compare")
    name = model or deployment.models[0].name
    for dialect in sorted({engine.dialect for engine in deployment.engines if engine.status != "deferred"}):
        session = Engines(folder, deployment, verify=True, dialect=dialect).session(deployment.model(name))
        ours = forward(session, inputs)["logits"]
        yield _row(name, "logits of the reference", dialect, distance([(ours, held["logits"])]), DEFAULT_BOUNDS)
        if "generate" in held:
            wanted = np.asarray(held["generate"]).reshape(-1)
            tokens = _greedy(session, inputs, len(wanted))
            one_hot = [np.eye(session.model.decoder.vocab_size)[ids] for ids in (tokens, wanted)]
            yield _row(
                name, "greedy tokens of the reference", dialect, distance([(one_hot[0], one_hot[1])]), DEFAULT_BOUNDS
            )


def _greedy(session: ModelSession, inputs: dict[str, np.ndarray], count: int) -> np.ndarray:
    tensors = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    request = Request(np.asarray(inputs["input_ids"][0], np.int64), tensors)
    logits, talk = session.prefill(request, session.encode(tensors, Clock()), Clock())
    found = []
    for _ in range(count):
        found.append(int(logits[-1].argmax()))
        logits = session.extend(np.asarray(found[-1:], np.int64), talk, Clock())
    return np.asarray(found)
