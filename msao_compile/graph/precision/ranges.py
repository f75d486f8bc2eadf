"""Activation ranges gathered sample by sample; needs neither torch nor onnx."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msao_compile.errors import InputError, StageError


@dataclass(frozen=True)
class Coverage:
    """How well the samples covered the products of a graph.

    `never` names values that were never anything but zero or empty. `still_growing` is the share of the seen maxima
    that grew in the last quarter of the samples: near 0 more samples change little.
    """

    samples: int
    seen: int
    never: tuple[str, ...]
    still_growing: float


class Ranges:
    """Absolute maximum of each value that an observed graph reports, and the sample in which it last grew."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """`values`: for each output of the observed graph the value that it is the maximum of."""
        self._values = dict(values)
        self._maximum: dict[str, float] = dict.fromkeys(self._values.values(), 0.0)
        self._last_grew: dict[str, int] = dict.fromkeys(self._values.values(), 0)
        self._samples = 0

    @property
    def samples(self) -> int:
        """Samples added so far."""
        return self._samples

    @property
    def maximum(self) -> dict[str, float]:
        """Value name -> absolute maximum over all samples; values never seen are left out."""
        return {name: most for name, most in self._maximum.items() if most > 0}

    @property
    def last_grew(self) -> dict[str, int]:
        """Value name -> number of samples after which its maximum has not grown any more."""
        return {name: sample for name, sample in self._last_grew.items() if sample}

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Take the observed outputs of one sample, each a scalar; others are passed over.

        Raises:
            StageError: a maximum is no finite number.
        """
        found = {self._values[output]: float(most) for output, most in outputs.items() if output in self._values}
        for name, most in found.items():
            if not math.isfinite(most):
                raise StageError(f"value {name!r} reached {most} in sample {self._samples + 1}: it cannot be quantised")
        self._samples += 1
        for name, most in found.items():
            if most > self._maximum[name]:
                self._maximum[name], self._last_grew[name] = most, self._samples

    def coverage(self) -> Coverage:
        """How many values were seen, which never, and how many maxima still grew at the end."""
        seen = self.maximum
        late = self._samples - self._samples // 4
        growing = sum(self._last_grew[name] > late for name in seen)
        never = tuple(name for name in self._maximum if name not in seen)
        return Coverage(self._samples, len(seen), never, growing / len(seen) if seen else 0.0)

    def to_json(self) -> str:
        """All of it, as text."""
        facts = {
            "samples": self._samples,
            "values": self._values,
            "maximum": self._maximum,
            "last_grew": self._last_grew,
        }
        return json.dumps(facts, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Ranges:
        """What `to_json` wrote.

        Raises:
            InputError: the text is not that.
        """
        try:
            facts = json.loads(text)
            found = cls(facts["values"])
            found._samples = int(facts["samples"])
            for name in found._maximum:
                found._maximum[name] = float(facts["maximum"][name])
                found._last_grew[name] = int(facts["last_grew"][name])
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise InputError(f"these are not ranges ({problem!r}): observe the graph again") from problem
        return found
