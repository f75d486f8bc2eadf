"""One forward pass over named Hugging Face inputs through the loaded modules: what parity compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.session import CONTEXT_INPUTS, ModelSession, Request


@dataclass(frozen=True)
class Row:
    """One sequence of a batch without its padding; `mask` [sequence] says where its tokens stood."""

    request: Request
    features: np.ndarray | None
    mask: np.ndarray


def forward(session: ModelSession, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`logits` [batch, sequence, vocabulary]; rows are run one by one, padding is skipped and its logits are zero.

    Raises:
        InputError: `input_ids` is missing or no such tokens, or placeholders and features do not match.
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
    """
    clock = Clock()
    found = []
    for row in rows(session, inputs, clock, count):
        logits, talk = session.prefill(row.request, row.features, clock)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < count:
            tokens.append(int(session.extend(np.asarray(tokens[-1:], np.int64), talk, clock)[-1].argmax()))
        found.append(tokens)
    return np.asarray(found, np.int64)


def rows(session: ModelSession, inputs: Mapping[str, np.ndarray], clock: Clock, new_tokens: int = 0) -> list[Row]:
    """The sequences of a batch, each with its own part of the encoded pictures.

    Raises:
        InputError: as in `forward`; CapacityExceeded before any encoder runs.
    """
    ids_BS, mask_BS = _checked(session, inputs)
    session.check_capacity(int(mask_BS.sum(-1).max(initial=0)), new_tokens)
    encoded = session.encode(inputs, clock)
    features = None if encoded is None else encoded.reshape(-1, encoded.shape[-1])
    found, used, pictures = [], 0, 0
    for ids_S, mask_S in zip(ids_BS, mask_BS, strict=True):
        own = ids_S[mask_S]
        count = int((own == session.model.image_token_id).sum()) if features is not None else 0
        context, taken = _context(session, inputs, pictures, count)
        part = features[used : used + count] if features is not None and count else None
        found.append(Row(Request(own, context), part, mask_S))
        used, pictures = used + count, pictures + taken
    if features is not None and used != len(features):
        raise InputError(f"input_ids hold {used} picture placeholders where the pictures give {len(features)} features")
    return found


def _checked(session: ModelSession, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask [batch, sequence]."""
    if "input_ids" not in inputs or np.ndim(inputs["input_ids"]) != 2:
        raise InputError("forward needs input_ids [batch, sequence]")
    ids_BS = np.asarray(inputs["input_ids"], np.int64)
    mask_BS = np.asarray(inputs.get("attention_mask", np.ones_like(ids_BS))).astype(bool)
    if mask_BS.shape != ids_BS.shape:
        raise InputError(f"attention_mask has shape {mask_BS.shape} where input_ids have {ids_BS.shape}")
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
