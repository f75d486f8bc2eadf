"""A prompt without the units that a reading leaves out: the decoder's prefill and KV cache get shorter.

What stays keeps the position that it had, so that the rest of a picture stands where it stood: the decoder then
computes exactly what it would compute of the whole prompt if it never attended to what was left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from msao_compile.manifest.schema import Model
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.mas.measures import Bools
from msao_compile.runtime.mas.reading import Reading
from msao_compile.runtime.session import ModelSession

READ = {"inputs_embeds", "attention_mask", "position_ids", "logits_positions"}
"""All that a decoder may take beside its state: anything else may lie over the tokens of the prompt as well."""
Positions = tuple[np.ndarray, tuple[float, ...]]


def kept_tokens(model: Model, ids_S: np.ndarray, readings: Mapping[str, Reading]) -> Bools:
    """[S]: every token but those that stand for units which a reading leaves out.

    Of a reading whose units are not the drafter's own tokens nothing is left out.
    """
    kept_S = np.ones(len(ids_S), np.bool_)
    for modality, token in model.placeholders.items():
        reading = readings.get(modality)
        if reading is None or reading.action == "full":
            continue
        places = np.flatnonzero(ids_S == token)
        units = np.concatenate([cells.reshape(-1) for cells in reading.kept])
        if reading.action == "drop":
            kept_S[places] = False
        elif len(units) == len(places):
            kept_S[places] = units
    return kept_S


def can_prune(session: ModelSession) -> bool:
    """Whether a prompt's tokens can be left out: the decoder is told positions and reads nothing beside embeddings."""
    taken = {name for name in session.decoder.inputs if not name.startswith("past_key_values.")}
    return "position_ids" in taken <= READ


def prune(known: Mapping[str, np.ndarray], positions: Positions, kept_S: Bools) -> tuple[Arrays, Positions]:
    """Embeddings and positions of the tokens that are kept; what comes later counts on from where it would have."""
    places, offset = positions
    left_out = len(kept_S) - int(kept_S.sum())
    embeds = {"inputs_embeds": np.ascontiguousarray(known["inputs_embeds"][:, kept_S])}
    return {**known, **embeds}, (np.ascontiguousarray(places[..., kept_S]), tuple(axis + left_out for axis in offset))
