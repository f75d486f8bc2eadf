"""Typed reading of an image processor's JSON, with transformers' rule that null means the class's own default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msao_compile.errors import InputError
from msao_compile.runtime.preprocess.pixels import PixelScale, Triple


@dataclass(frozen=True)
class Settings:
    """One section of a processor's JSON; `name` is how errors call it."""

    name: str
    values: Mapping[str, Any]

    def flag(self, key: str, default: bool) -> bool:
        """A true or false value."""
        return bool(self._get(key, default, bool))

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default it must be there."""
        return int(self._get(key, default, int))

    def text(self, key: str, default: str) -> str:
        """A string, or a token written as a table with its content."""
        value = self._get(key, default, (str, Mapping))
        return str(value.get("content", default) if isinstance(value, Mapping) else value)

    def number(self, key: str, default: float) -> float:
        """A number."""
        return float(self._get(key, default, (int, float)))

    def triple(self, key: str, default: Triple) -> Triple:
        """One number for each of three channels; a lone number stands for all three."""
        value = self._get(key, default, (list, tuple, int, float))
        numbers = [value] * 3 if isinstance(value, int | float) else list(value)
        if len(numbers) != 3:
            raise InputError(f"{self.name} has {key} = {value}; it must have three numbers.")
        return float(numbers[0]), float(numbers[1]), float(numbers[2])

    def size(self, key: str, default: Mapping[str, int], number_means: str = "square") -> dict[str, int]:
        """A size as named edges; a lone number means a square or, with `number_means`, that edge."""
        value = self._get(key, default, (Mapping, list, tuple, int))
        if isinstance(value, Mapping):
            return {edge: int(length) for edge, length in value.items() if length is not None}
        if isinstance(value, int):
            return {"height": value, "width": value} if number_means == "square" else {number_means: value}
        if len(value) != 2:
            raise InputError(f"{self.name} has {key} = {value}; it must be a height and a width.")
        return {"height": int(value[0]), "width": int(value[1])}

    def pixel_scale(self, mean: Triple, std: Triple) -> PixelScale:
        """The rescale and normalize steps, with the class's default mean and std."""
        normalized = self.flag("do_normalize", True)
        return PixelScale(
            factor=self.number("rescale_factor", 1 / 255) if self.flag("do_rescale", True) else None,
            mean=self.triple("image_mean", mean) if normalized else None,
            std=self.triple("image_std", std) if normalized else None,
        )

    def _get(self, key: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self.name} has no {key}; add it to the checkpoint's processor_config.json.")
        if not isinstance(value, kind):
            raise InputError(f"{self.name} has {key} = {value!r}, which is not of the kind this setting needs.")
        return value
