"""The decode loop: pick a token, stop or append it, ask for the next logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.rules import choose
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import Conversation, ModelSession


def tokens(
    session: ModelSession, logits_V: np.ndarray, talk: Conversation, parameters: SamplingParameters, limit: int
) -> Iterator[int]:
    """Token ids until a stop token (not given out) or `limit`; chance follows from seed and position alone.

    Raises:
        StageError: the logits are not finite, or a module failed.
    """
    clock = Clock()
    stops, vocabulary = set(session.tokenizer.eos_token_ids), session.tokenizer.vocab_size
    if parameters.ignore_eos:
        stops.clear()
    for count in range(1, limit + 1):
        token = choose(logits_V, count - 1, parameters, vocabulary)
        if token in stops:
            return
        yield token
        if count < limit:
            logits_V = session.extend(np.asarray([token], np.int64), talk, clock)[-1]
