"""One forward pass over named Hugging Face inputs through the loaded modules: what parity compares."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.family_code import placeholders
from msao_compile.runtime.sampling import likeliest
from msao_compile.runtime.session import CONTEXT_INPUTS, ModelSession, Request

IMPLIED = ("mm_token_type_ids", "token_type_ids")  # processors give them; the ids say the same


@dataclass(frozen=True)
class Row:
    """One sequence of a batch without its padding; `mask` [sequence] says where its tokens stood."""

    request: Request
    features: np.ndarray | None
    mask: np.ndarray


def forward(session: ModelSession, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`logits` [batch, sequence, vocabulary]; rows are run one by one, padding is skipped and its logits are zero.

    Raises:
        InputError: an input is unknown, missing or of the wrong kind, or placeholders and features do not match.
    """
    clock = Clock()
    held = rows(session, inputs, clock)
    logits = np.zeros((*np.shape(inputs["input_ids"]), session.model.decoder.vocab_size), np.float32)
    for index, row in enumerate(held):
        logits[index, row.mask], _ = session.prefill(row.request, row.features, clock, every=True)
    return {"logits": logits}


def greedy(session: ModelSession, inputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """The next `count` tokens of every row, [batch, count]; stop tokens do not stop it.

    Raises:
        InputError: as in `forward`, or prompt and tokens exceed the KV cache.
        StageError: the logits are not finite.
    """
    clock = Clock()
    found = []
    for row in rows(session, inputs, clock, count):
        logits, talk = session.prefill(row.request, row.features, clock)
        tokens = [likeliest(logits[-1])]
        while len(tokens) < count:
            tokens.append(likeliest(session.extend(np.asarray(tokens[-1:], np.int64), talk, clock)[-1]))
        found.append(tokens)
    return np.asarray(found, np.int64)


def rows(session: ModelSession, inputs: Mapping[str, np.ndarray], clock: Clock, new_tokens: int = 0) -> list[Row]:
    """The sequences of a batch, each with its own part of the encoded pictures.

    Raises:
        InputError: as in `forward`; CapacityExceeded before any encoder runs.
    """
    inputs = _arrays(session, inputs)
    ids_BS, mask_BS = _checked(session, inputs)
    session.check_capacity(int(mask_BS.sum(-1).max(initial=0)), new_tokens)
    encoded = session.encode(inputs, clock)
    features = None if encoded is None else encoded.reshape(-1, encoded.shape[-1])
    placeholders(ids_BS[mask_BS], session.model.image_token_id, 0 if features is None else len(features))
    found, used, pictures = [], 0, 0
    for ids_S, mask_S in zip(ids_BS, mask_BS, strict=True):
        own = ids_S[mask_S]
        count = int((own == session.model.image_token_id).sum()) if features is not None else 0
        context, taken = _context(session, inputs, pictures, count)
        part = features[used : used + count] if features is not None and count else None
        found.append(Row(Request(own, context), part, mask_S))
        used, pictures = used + count, pictures + taken
    return found


def _arrays(session: ModelSession, inputs: Mapping[str, Any]) -> Arrays:
    """The inputs as arrays, every name one that is read or that says nothing new."""
    known = ("input_ids", "attention_mask", *session.code.inputs)
    if not isinstance(inputs, Mapping):
        raise InputError(f"forward takes named inputs, not {type(inputs).__name__}: give {', '.join(known)}")
    arrays = {}
    for name, value in inputs.items():
        if name not in (*known, *IMPLIED):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give {', '.join(known)}"
            raise InputError(f"{name!r} is not an input of {session.model.family}: {hint}")
        try:
            arrays[name] = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"{name} is no array ({error}): give numbers of one shape") from error
    return arrays


def _checked(session: ModelSession, inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask [batch, sequence]."""
    if "input_ids" not in inputs or inputs["input_ids"].ndim != 2:
        raise InputError("forward needs input_ids [batch, sequence]")
    given = inputs["input_ids"]
    mask_BS = inputs.get("attention_mask", np.ones(given.shape, bool))
    for name, array, kinds in (("input_ids", given, "iu"), ("attention_mask", mask_BS, "iub")):
        if array.dtype.kind not in kinds:
            raise InputError(f"{name} are {array.dtype} where whole numbers are needed: give int64")
    ids_BS, mask_BS = given.astype(np.int64), mask_BS.astype(bool)
    if mask_BS.shape != ids_BS.shape:
        raise InputError(f"attention_mask has shape {mask_BS.shape} where input_ids have {ids_BS.shape}")
    if not mask_BS.any(-1).all():
        raise InputError(f"row {int(mask_BS.any(-1).argmin())} of the batch has no token: leave such rows out")
    known = session.model.decoder.vocab_size
    if ((ids_BS < 0) | (ids_BS >= known))[mask_BS].any():
        raise InputError(f"input_ids hold tokens outside the vocabulary of {known}")
    return ids_BS, mask_BS


def _context(
    session: ModelSession, inputs: Mapping[str, np.ndarray], first: int, tokens: int
) -> tuple[dict[str, np.ndarray], int]:
    """The pictures' grids that belong to one row: as many as its placeholders need."""
    grids = inputs.get(CONTEXT_INPUTS[0])
    if grids is None or not tokens:
        return {}, 0
    sizes = _grid_tokens(session, grids)
    count = int(np.searchsorted(np.cumsum(sizes[first:]), tokens)) + 1
    return {CONTEXT_INPUTS[0]: np.asarray(grids[first : first + count], np.int64)}, count


def picture_tokens(session: ModelSession, tensors: Mapping[str, np.ndarray], features: np.ndarray) -> list[int]:
    """How many features each picture has, in order."""
    grids = tensors.get(CONTEXT_INPUTS[0])
    return [features.shape[-2]] * len(features) if grids is None else _grid_tokens(session, grids).tolist()


def _grid_tokens(session: ModelSession, grids: np.ndarray) -> np.ndarray:
    tokens: np.ndarray = grids.prod(-1) // int(session.model.family_facts["spatial_merge_size"]) ** 2
    return tokens
