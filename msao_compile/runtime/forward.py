"""One forward pass over named Hugging Face inputs through the loaded modules: what parity compares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.session import CONTEXT_INPUTS, ModelSession, Request


def forward(session: ModelSession, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`logits` [batch, sequence, vocabulary]; rows are run one by one, padding is skipped and its logits are zero.

    Raises:
        InputError: `input_ids` is missing or no such tokens, or placeholders and features do not match.
    """
    if "input_ids" not in inputs or np.ndim(inputs["input_ids"]) != 2:
        raise InputError("forward needs input_ids [batch, sequence]")
    ids_BS = np.asarray(inputs["input_ids"], np.int64)
    mask_BS = np.asarray(inputs.get("attention_mask", np.ones_like(ids_BS))).astype(bool)
    if mask_BS.shape != ids_BS.shape:
        raise InputError(f"attention_mask has shape {mask_BS.shape} where input_ids have {ids_BS.shape}")
    known = session.model.decoder.vocab_size
    if ((ids_BS < 0) | (ids_BS >= known))[mask_BS].any():
        raise InputError(f"input_ids hold tokens outside the vocabulary of {known}")
    clock = Clock()
    features = session.encode(inputs, clock)
    rows = None if features is None else features.reshape(-1, features.shape[-1])
    logits = np.zeros((*ids_BS.shape, session.model.decoder.vocab_size), np.float32)
    used = pictures = 0
    for row, (ids_S, mask_S) in enumerate(zip(ids_BS, mask_BS, strict=True)):
        own = ids_S[mask_S]
        session.check_capacity(len(own), 0)
        count = int((own == session.model.image_token_id).sum()) if rows is not None else 0
        context, taken = _context(session, inputs, pictures, count)
        part = rows[used : used + count] if rows is not None and count else None
        found, _ = session.prefill(Request(own, context), part, clock, every=True)
        logits[row, mask_S] = found
        used, pictures = used + count, pictures + taken
    if rows is not None and used != len(rows):
        raise InputError(f"input_ids hold {used} picture placeholders where the pictures give {len(rows)} features")
    return {"logits": logits}


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
