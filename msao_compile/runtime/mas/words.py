"""What a prompt's words say of whether its pictures are needed, before anything looks at these."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from msao_compile.errors import MsaoError
from msao_compile.runtime.mas.measures import Bools
from msao_compile.runtime.session import ModelSession

LIMIT = 8.0
"""Log odds beyond this say no more; one odd word then never outweighs everything else."""
SAMPLE = b"P6 16 16 255\n" + bytes(768)
"""A picture of 16 x 16 pixels, for the text that stands around pictures."""


def prompt_score(ids_S: np.ndarray, weights: Mapping[int, float]) -> float:
    """`phi`: the sum of the fitted weights (log odds) of the distinct tokens of a prompt, within +-8."""
    total = sum([weights.get(token, 0.0) for token in set(ids_S.tolist())])
    return min(max(total, -LIMIT), LIMIT)


def word_table(session: ModelSession) -> Bools:
    """[vocabulary]: which tokens are words of a user, and not of the chat template or for a picture.

    What prompts of different words have in common is the template's. Where there is no template, nothing is.
    """
    is_word = np.ones(session.facts.vocab_size, np.bool_)
    is_word[[token for token in session.model.placeholders.values() if token < len(is_word)]] = False
    pictures = (SAMPLE,) if "vision_encoder" in session.model.components else ()
    try:
        one, other = (set(session.prepare(text, pictures).ids.tolist()) for text in ("a", "b"))
    except MsaoError:
        return is_word
    is_word[list(one & other)] = False
    return is_word
