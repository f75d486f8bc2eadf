"""One forward pass over named Hugging Face inputs through the loaded modules: what parity compares."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.encoding import items
from msao_compile.runtime.feed import feed
from msao_compile.runtime.sampling import likeliest
from msao_compile.runtime.session import ModelSession, Request

IMPLIED = ("mm_token_type_ids", "token_type_ids", "attention_mask", "use_audio_in_video", "second_per_grid_ts",
           "video_second_per_grid", "num_frames_per_video")  # fmt: skip
"""What processors give beside what modules take: the ids say the same, or positions are made of it."""
OF_CLIPS = ("second_per_grid_ts", "video_second_per_grid")
"""One number for each clip, which positions are made of."""
PRODUCED = ("inputs_embeds", "image_features", "video_features", "audio_features", "text_features", "encoder_states",
            "cross_key_values")  # fmt: skip
"""What crosses between modules."""


def forward(session: ModelSession, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """`logits` [batch, sequence, vocabulary]; rows are run one by one, padding is skipped and its logits are zero.

    A model that decodes nothing gives what its forward gives, by name.

    Raises:
        InputError: an input is unknown, missing or of the wrong kind, or placeholders and features do not match.
        CapacityExceeded: a row is longer than the KV cache.
    """
    clock = Clock()
    if session.model.decoder is None:
        return compared(session, _arrays(session, inputs), clock)
    tokens = session.facts.tokens
    given = _checked(session, inputs)
    logits = np.zeros((*given[tokens].shape, session.facts.vocab_size), np.float32)
    for index, (request, mask) in enumerate(rows(session, given)):
        session.check_capacity(len(request.ids), 0)
        found, _ = session.prefill(request, session.encode(request.tensors, clock), clock, every=True)
        logits[index, mask] = found
    return {"logits": logits}


def compared(session: ModelSession, inputs: Mapping[str, np.ndarray], clock: Clock) -> Arrays:
    """What encoders and the classifier over them give, each output of theirs by name."""
    found = session.encode(inputs, clock)
    classifier = session.engines.get("classifier")
    # Texts or pictures alone have features and nothing to be compared with.
    if classifier is not None and {*classifier.inputs} <= {*inputs, *found}:
        with clock.module("classifier"):
            found |= classifier.run(feed(classifier, {**inputs, **found}, (1, 0)))
    return found


def greedy(session: ModelSession, inputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """The next `count` tokens of every row, [batch, count]; stop tokens do not stop it.

    A decoder that reads an encoder starts its answer anew, from the first of the decoder tokens that the inputs hold.

    Raises:
        InputError: as in `forward`, or prompt and tokens exceed the KV cache.
        StageError: the logits are not finite.
    """
    clock = Clock()
    found = []
    given = _checked(session, inputs)
    if session.facts.tokens != "input_ids":
        given[session.facts.tokens] = given[session.facts.tokens][:, :1]
    for request, _ in rows(session, given):
        session.check_capacity(len(request.ids), count)
        logits, talk = session.prefill(request, session.encode(request.tensors, clock), clock)
        tokens = [likeliest(logits[-1])]
        while len(tokens) < count:
            tokens.append(likeliest(session.extend(np.asarray(tokens[-1:], np.int64), talk, clock)[-1]))
        found.append(tokens)
    return np.asarray(found, np.int64)


def rows(session: ModelSession, inputs: Arrays) -> Iterator[tuple[Request, np.ndarray]]:
    """Each sequence of a batch with its own pictures and without its padding, and where its tokens stood.

    Raises:
        InputError: it cannot be told whose the pictures are.
    """
    tokens = session.facts.tokens
    own = tokens == "input_ids"
    batch = len(inputs[tokens])
    media = _media_of_rows(session, inputs) if batch > 1 else [_media(session, inputs)]
    for index in range(batch):
        ids = inputs[tokens][index]
        mask = (
            inputs["attention_mask"][index].astype(bool)
            if own and "attention_mask" in inputs
            else np.ones(len(ids), bool)
        )
        others = {
            name: value if batch == 1 or value.ndim == 0 else value[index : index + 1]
            for name, value in inputs.items()
            if name not in (tokens, *media[index])
            and not _is_media(session, name)
            and (batch == 1 or value.ndim == 0 or (len(value) == batch and name not in OF_CLIPS))
        }
        others = {
            name: value[:, mask] if own and value.shape[1:2] == mask.shape else value for name, value in others.items()
        }
        yield Request(ids[mask], {**others, **media[index]}), mask


def _is_media(session: ModelSession, name: str) -> bool:
    return any(name in encoder.inputs for encoder in session.model.encoders)


def _media(session: ModelSession, inputs: Arrays) -> Arrays:
    return {name: value for name, value in inputs.items() if _is_media(session, name)}


def _media_of_rows(session: ModelSession, inputs: Arrays) -> list[Arrays]:
    """The pictures of each row: so many as its placeholders need, or its own entry where it has no placeholders."""
    tokens, batch = inputs.get("input_ids", inputs[session.facts.tokens]), len(inputs[session.facts.tokens])
    found: list[Arrays] = [{} for _ in range(batch)]
    for encoder in session.model.encoders:
        given = {name: inputs[name] for name in encoder.inputs if name in inputs}
        if not given:
            continue
        if encoder.modality == "video":
            given |= {name: inputs[name] for name in OF_CLIPS if name in inputs}
        if encoder.placeholder is None:
            parts = [{name: value[index : index + 1] for name, value in given.items()} for index in range(batch)]
        else:
            counts = (tokens == encoder.placeholder).sum(-1)
            parts = _dealt(session, encoder.component, given, counts)
        for row, part in zip(found, parts, strict=True):
            row |= part
    return found


def _dealt(session: ModelSession, component: str, given: Arrays, counts: np.ndarray) -> list[Arrays]:
    """Items dealt to rows until each row's placeholders are filled."""
    single = next(encoder for encoder in session.model.encoders if encoder.component == component)
    entries = list(items(given)) if single.each else _one_by_one(given)
    found: list[Arrays] = []
    for wanted in counts:
        taken: list[Arrays] = []
        filled = 0
        while filled < wanted and entries:
            item = entries.pop(0)
            features = session.encode(item, Clock())[f"{single.modality}_features"]
            filled += features.size // session.facts.hidden_size
            taken.append(item)
        joined = {name: np.concatenate([item[name] for item in taken]) for name in taken[0]} if taken else {}
        found.append(joined)
    if entries:
        raise InputError(f"{len(entries)} more pictures are given than the rows have placeholders for")
    return found


def _one_by_one(given: Arrays) -> list[Arrays]:
    counts = {name: len(value) for name, value in given.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in counts.items())
        raise InputError(f"{said} rows, so that it cannot be told whose they are: give one text at a time")
    return [{name: value[index : index + 1] for name, value in given.items()} for index in range(count)]


def _known(session: ModelSession) -> list[str]:
    """Names that a caller can give: what modules take that no module makes and the session does not count itself."""
    taken = {name for encoder in session.model.encoders for name in encoder.inputs}
    encoders = {encoder.component for encoder in session.model.encoders}
    for component, engine in session.engines.items():
        taken |= set(engine.inputs) if component not in encoders else set()
    counted: set[str] = set()
    if session.model.decoder is not None:
        taken |= {*session.decoder.inputs, session.facts.tokens}
        counted = {"position_ids", "logits_positions"}
    return sorted(name for name in taken - counted if "." not in name and name not in PRODUCED)


def _arrays(session: ModelSession, inputs: Mapping[str, Any]) -> Arrays:
    """The inputs as arrays, every name one that is read or that says nothing new."""
    known = _known(session)
    if not isinstance(inputs, Mapping):
        raise InputError(f"forward takes named inputs, not {type(inputs).__name__}: give {', '.join(known)}")
    arrays = {}
    for name, value in inputs.items():
        if name not in known and name not in IMPLIED:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give {', '.join(known)}"
            raise InputError(f"{name!r} is not an input of {session.model.family}: {hint}")
        try:
            arrays[name] = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"{name} is no array ({error}): give numbers of one shape") from error
    return arrays


def _checked(session: ModelSession, inputs: Mapping[str, Any]) -> Arrays:
    """The inputs of a decoder, its tokens and their mask whole numbers of one shape."""
    arrays = _arrays(session, inputs)
    tokens = session.facts.tokens
    if tokens not in arrays or arrays[tokens].ndim != 2:
        raise InputError(f"forward needs {tokens} [batch, sequence]")
    for name, kinds in ((tokens, "iu"), ("attention_mask", "iub")):
        if name in arrays and arrays[name].dtype.kind not in kinds:
            raise InputError(f"{name} are {arrays[name].dtype} where whole numbers are needed: give int64")
    ids = arrays[tokens] = arrays[tokens].astype(np.int64)
    mask = arrays.get("attention_mask", np.ones(ids.shape, bool)) if tokens == "input_ids" else np.ones(ids.shape, bool)
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has shape {mask.shape} where {tokens} have {ids.shape}")
    real = mask.astype(bool)
    if not real.any(-1).all():
        raise InputError(f"row {int(real.any(-1).argmin())} of the batch has no token: leave such rows out")
    ends = np.diff(np.pad(real, ((0, 0), (1, 1))).astype(np.int8)) == -1
    if (ends.sum(-1) > 1).any():
        raise InputError(
            "attention_mask has a hole between tokens: it may leave out the beginning or end of a row alone"
        )
    known = session.facts.vocab_size
    if ((ids < 0) | (ids >= known))[real].any():
        raise InputError(f"{tokens} hold tokens outside the vocabulary of {known}")
    return arrays
