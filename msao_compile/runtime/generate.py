"""The decode loop: pick a token, stop or append it, ask for the next logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.sampling import SamplingParameters, generator, likeliest, mask_vocabulary, pick, probabilities
from msao_compile.runtime.session import Conversation, ModelSession


def tokens(
    session: ModelSession, logits_V: np.ndarray, talk: Conversation, parameters: SamplingParameters, limit: int
) -> Iterator[int]:
    """Token ids until a stop token (not given out) or `limit`; chance comes from `parameters.seed` alone.

    Raises:
        StageError: the logits are not finite, or a module failed.
    """
    chance, clock = generator(parameters.seed), Clock()
    stops, vocabulary = set(session.tokenizer.eos_token_ids), session.tokenizer.vocab_size
    if parameters.ignore_eos:
        stops.clear()
    for count in range(1, limit + 1):
        if parameters.greedy:
            token = likeliest(logits_V[:vocabulary])
        else:
            token = pick(probabilities(mask_vocabulary(logits_V, vocabulary), parameters), chance)
        if token in stops:
            return
        yield token
        if count < limit:
            logits_V = session.extend(np.asarray([token], np.int64), talk, clock)[-1]
