"""Which token comes next: pure arithmetic on logits, with chance as an argument.

Shape suffixes: V vocabulary (or as wide as the logits are), any axes before it are a batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msao_compile.errors import InputError, StageError

Floats = NDArray[np.floating]


class SamplingError(InputError, ValueError):
    """A sampling parameter is unknown or outside its range."""


_KINDS = {"float": (int | float, "a number"), "int": (int, "a whole number"), "bool": (bool, "true or false")}


@dataclass(frozen=True)
class SamplingParameters:
    """How to choose from logits; by default the likeliest token, and always the same draw from the same seed.

    `temperature` 0 means greedy; `top_k` 0 and `top_p` 1 mean no filter; `seed` makes the answer's `generator`;
    `ignore_eos` goes on after a stop token, for measuring.

    Raises:
        SamplingError: a value is of the wrong kind or outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> SamplingParameters:
        """From options by name.

        Raises:
            SamplingError: a name or a value that is none.
        """
        known = [entry.name for entry in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, "max_new_tokens", "image", "route", "task"], n=1)
                hint = f" did you mean {near[0]}?" if near else f" choose {', '.join(known)}."
                raise SamplingError(f"{name} is not an option of an answer;{hint}")
        return cls(**given)

    def __post_init__(self) -> None:
        for entry in fields(self):
            kind, words = _KINDS[str(entry.type)]
            if not isinstance(value := getattr(self, entry.name), kind):
                raise SamplingError(f"{entry.name} is {value!r}; it must be {words}.")
        if not 0 <= self.temperature < float("inf"):
            raise SamplingError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number.")
        if self.top_k < 0:
            raise SamplingError(f"top_k is {self.top_k}; it must be 0 (off) or a positive number of tokens.")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (off).")
        if self.seed < 0:
            raise SamplingError(f"seed is {self.seed}; it must be 0 or a positive whole number.")

    @property
    def greedy(self) -> bool:
        """The most likely token is always taken."""
        return self.temperature == 0


def mask_vocabulary(logits_V: Floats, vocab_size: int) -> NDArray[np.float64]:
    """[..., V] float64 with the logits of padding rows (at `vocab_size` and above) at minus infinity."""
    masked_V = np.array(logits_V, dtype=np.float64)
    masked_V[..., vocab_size:] = -np.inf
    return masked_V


def probabilities(logits_V: Floats, parameters: SamplingParameters) -> NDArray[np.float64]:
    """`probs_V` [..., V] float64, each row summing to 1: temperature, then top-k, then top-p.

    Greedy gives 1 to the first largest logit. The order is that of transformers' generation (logits processors
    TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper).

    Raises:
        StageError: a row has a NaN or plus infinity, or nothing above minus infinity.
    """
    scores_V = np.asarray(logits_V, dtype=np.float64)
    best = scores_V.max(axis=-1, keepdims=True)
    _check_finite(best)
    if parameters.greedy:
        first = scores_V.argmax(axis=-1)[..., None]
        return np.asarray(np.arange(scores_V.shape[-1]) == first, dtype=np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature pushes all but the best to minus infinity, as it should
        scores_V = (scores_V - best) / parameters.temperature
    if parameters.top_k:
        scores_V = keep_top_k(scores_V, parameters.top_k)
    if parameters.top_p < 1:
        scores_V = keep_top_p(scores_V, parameters.top_p)
    return softmax(scores_V)


def likeliest(logits_V: Floats) -> int:
    """The first of the largest logits [V].

    Raises:
        StageError: as `probabilities`.
    """
    token = int(logits_V.argmax())  # NaN counts as the largest
    _check_finite(logits_V[token])
    return token


def _check_finite(best: np.floating | Floats) -> None:
    if not np.isfinite(best).all():
        raise StageError(
            "The decoder's logits are not finite, so no token can be chosen; run parity on the deployment."
        )


def keep_top_k(scores_V: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Scores below the k-th largest become minus infinity; ties with it stay."""
    kept = min(top_k, scores_V.shape[-1])
    smallest_kept = np.partition(scores_V, -kept, axis=-1)[..., -kept, None]
    return np.where(scores_V < smallest_kept, -np.inf, scores_V)


def keep_top_p(scores_V: NDArray[np.float64], top_p: float) -> NDArray[np.float64]:
    """Keeps the fewest most likely tokens whose probabilities reach `top_p`; at least one."""
    order_V = np.argsort(scores_V, axis=-1, kind="stable")
    rising_V = np.take_along_axis(softmax(scores_V), order_V, axis=-1).cumsum(axis=-1)
    dropped_V = rising_V <= 1 - top_p
    dropped_V[..., -1] = False
    scattered_V = np.empty_like(dropped_V)
    np.put_along_axis(scattered_V, order_V, dropped_V, axis=-1)
    return np.where(scattered_V, -np.inf, scores_V)


def softmax(scores_V: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of scores, [..., V]."""
    weights_V = np.exp(scores_V - scores_V.max(axis=-1, keepdims=True))
    return np.asarray(weights_V / weights_V.sum(axis=-1, keepdims=True))


def pick(probs_V: NDArray[np.float64], chance: np.random.Generator) -> int:
    """One token drawn from `probs_V` [V] by inverting its cumulative sum; a certain token uses no chance."""
    likeliest = int(probs_V.argmax())
    if probs_V[likeliest] >= 1:
        return likeliest
    rising_V = probs_V.cumsum()
    drawn = int(np.searchsorted(rising_V, chance.random() * rising_V[-1], side="right"))
    return min(drawn, int(np.flatnonzero(probs_V)[-1]))


def generator(seed: int) -> np.random.Generator:
    """The chance of one answer: the same seed gives the same tokens."""
    return np.random.Generator(np.random.PCG64(seed))
