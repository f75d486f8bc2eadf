"""When a drafter stops and asks: pure rules on its distribution before a token is drawn from it, and on time.

Gates read the distribution and never the token drawn: to drop a drawn token because it looks unlikely would bias what
the verifier commits under rule `reject`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msao_compile.manifest.offload import Speculation
from msao_compile.runtime.sampling import Floats


def confidence(logits_V: Floats, vocabulary: int) -> float:
    """How sure a distribution is of its likeliest token: its probability, at temperature 1."""
    scores_V = np.asarray(logits_V[:vocabulary], np.float64)
    return float(1 / np.exp(scores_V - scores_V.max()).sum())


@dataclass(frozen=True)
class Pace:
    """What a round costs: times of one draft, of a verified token, and of a round trip with its verification, and what
    is already on its way."""

    draft_ms: float
    token_ms: float
    round_ms: float


def worth_drafting(chance: float, drafted: int, pace: Pace, waiting: bool) -> bool:
    """Whether one more draft saves more than it costs, `chance` being that it and all before it are kept.

    A kept draft saves its share of a round; it costs the verifier's time for a token, and the drafter's own where
    nothing else would be done with it meanwhile (`waiting`: a round is under way). Ratio stopping: the expected tokens
    of a round over its time rise as long as the chance of the next is above that ratio times its own cost.
    """
    cost_ms = pace.token_ms + (0.0 if waiting else pace.draft_ms)
    rate = (1 + drafted) / (pace.round_ms + drafted * (pace.draft_ms + pace.token_ms))
    return chance >= rate * cost_ms


def moved(threshold: float, accepted: int, drafted: int, settings: Speculation) -> float:
    """The confidence below which the drafter asks, after a round: lower where all was kept, higher the earlier not."""
    if accepted >= drafted:
        return max(settings.confidence_min, settings.decay * threshold)
    return min(settings.confidence_max, threshold / settings.decay ** (drafted - accepted))
