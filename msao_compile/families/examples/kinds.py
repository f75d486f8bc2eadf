"""What an example needs to know of a model: its inputs by name, which method counts features, its sizes and ids."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Modality = Literal["image", "video", "audio"]
Arrays = dict[str, np.ndarray]

# What a model's own code raises over inputs it cannot take. A trial ends with one of these, never the program.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

# Where a model may keep the method that turns raw media into features, the nearest first.
OWNERS = ("model", "", "thinker", "thinker.model", "model.encoder", "encoder")
MEDIA = {
    "image": ("pixel_values", "image_pixel_values", "pixel_values_images", "flattened_patches"),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "input_values", "audio_input_features", "audio_input_ids"),
}
PLACEHOLDERS = {
    "image": ("image_token_id", "image_token_index", "image_patch_id", "media_placeholder_token_id"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
}
PARTS = ("vision_config", "vq_config", "encoder", "encoder_config", "audio_config", "text_config")


@dataclass(frozen=True)
class Trial:
    """Inputs that may be what a family's processor makes of `items` pictures, clips or sounds.

    `runs` is known only where the family says so itself: () where media take no place in the text. `frames` is how many
    pictures in time one clip is cut into.
    """

    label: str
    inputs: Arrays
    items: int
    runs: tuple[int, ...] | None = None
    frames: int = 1

    def shapes(self) -> str:
        """The inputs as one line for people."""
        return f"{self.label} " + ", ".join(f"{name} {list(value.shape)}" for name, value in self.inputs.items())


@dataclass(frozen=True)
class Sight:
    """One model as the examples see it: its parameter names and where its facts are."""

    model: PreTrainedModel
    forward: tuple[str, ...]

    @property
    def config(self) -> PretrainedConfig:
        """The config that the model was built from."""
        return self.model.config

    @property
    def vision(self) -> Any:
        """The config with the sizes of pictures: the vision tower's, else the whole."""
        return self.part("vision_config", "vq_config", "encoder")

    @property
    def audio(self) -> Any:
        """The config with the sizes of sounds: the audio tower's, else the whole."""
        return self.part("audio_config", "encoder_config", "encoder")

    def part(self, *names: str) -> Any:
        """The first of these parts that the config, or its encoder's, has; else the whole config."""
        holders = (self.config, getattr(self.config, "encoder", None), getattr(self.config, "thinker_config", None))
        found = (getattr(holder, name, None) for name in names for holder in holders)
        return next((part for part in found if hasattr(part, "to_dict")), self.config)

    @property
    def dual(self) -> bool:
        """Whether it compares texts with pictures or sounds and writes nothing."""
        return "return_loss" in self.forward or hasattr(self.model, "get_text_features")

    @property
    def encoder_decoder(self) -> bool:
        """Whether its forward takes the answer's ids apart from the question's."""
        config = self.config
        nested = bool(getattr(getattr(config, "text_config", None), "is_encoder_decoder", False))
        return "decoder_input_ids" in self.forward and (bool(getattr(config, "is_encoder_decoder", False)) or nested)

    def features(self, modality: str) -> tuple[Callable[..., Any], tuple[str, ...]] | None:
        """The method that gives a modality's features, and its parameter names."""
        for path in OWNERS:
            owner: Any = self.model
            for name in filter(None, path.split(".")):
                owner = getattr(owner, name, None)
            method: Callable[..., Any] | None = getattr(owner, f"get_{modality}_features", None)
            names = parameters(method) if method is not None else ()
            if method is not None and any(
                name in names for name in (*MEDIA["image"], *MEDIA["video"], *MEDIA["audio"])
            ):
                return method, names
        return None

    def takes(self, modality: str) -> tuple[str, ...]:
        """The inputs of a modality, by name: its features method's that forward takes too, else forward's own."""
        method = self.features(modality)
        if method is None:
            return self.forward
        return tuple(name for name in method[1] if name in self.forward)

    def number(self, *names: str, default: int, of: Any = None) -> int:
        """The first of these that the given part or the whole config says, a pair read by its first number."""
        for config in (of, self.config):
            for name in names:
                value = getattr(config, name, None)
                value = value[0] if isinstance(value, (list, tuple)) and value else value
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    return int(value)
        return default

    def placeholder(self, modality: str) -> int | None:
        """The id that stands for one feature of this modality in the text."""
        parts = [self.config, *(getattr(self.config, name, None) for name in PARTS)]
        for part in parts:
            for name in PLACEHOLDERS[modality]:
                value = getattr(part, name, None)
                if isinstance(value, int):
                    return value
        vocabulary = getattr(getattr(self.model, "model", None), "vocabulary_mapping", None)
        found = getattr(vocabulary, f"{modality}_token_id", None)
        return int(found) if isinstance(found, int) else None


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names a function takes."""
    return tuple(name for name in inspect.signature(function).parameters if name not in ("self", "args", "kwargs"))


def look(model: PreTrainedModel) -> Sight:
    """The model as the examples see it."""
    return Sight(model, parameters(model.forward))


def special_ids(config: PretrainedConfig) -> set[int]:
    """Every token id that a config gives a meaning to."""

    def walk(node: Any, name: str) -> Iterator[int]:
        if isinstance(node, Mapping):
            for key, value in node.items():
                yield from walk(value, "token_id" if name == "vocabulary_map" else str(key))
        elif isinstance(node, (list, tuple)):
            for value in node:
                yield from walk(value, name)
        elif isinstance(node, int) and not isinstance(node, bool) and re.search(r"(_id|_ids|token_index)$", name):
            yield node

    return set(walk(config.to_dict(), ""))


def plain_ids(sight: Sight) -> np.ndarray:
    """The ids of plain text: inside every table that is looked up by them, and none with a meaning."""
    text = sight.config.get_text_config(decoder=True) if sight.encoder_decoder else sight.config.get_text_config()
    sizes = [getattr(text, name, None) for name in ("vocab_size", "vocab_size_per_layer_input")]
    parts = [getattr(sight.config, name, None) for name in ("text_config", "decoder")]
    sizes += [getattr(part, "vocab_size", None) for part in (*parts, sight.config)]
    size = min([size for size in sizes if isinstance(size, int) and size > 1], default=100)
    return np.setdiff1d(np.arange(min(4, size - 1), size), np.array(sorted(special_ids(sight.config)), np.int64))


def text_ids(sight: Sight, count: int, chance: np.random.Generator) -> list[int]:
    """`count` random ids of plain text; the last plain id is kept for media that have no id of their own."""
    return [int(token) for token in chance.choice(plain_ids(sight)[:-1], count)]


def noise(chance: np.random.Generator, *shape: int) -> np.ndarray:
    """Random float32 of this shape: what a normalised picture or sound looks like to code that only computes."""
    return chance.standard_normal(shape).astype(np.float32)


def whole(values: Any) -> np.ndarray:
    """Whole numbers as int64, the type every processor gives."""
    return np.asarray(values, np.int64)


def tensors(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays as torch tensors of their own: a forward may write into what it is given."""
    import torch

    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def rows(features: Any) -> int:
    """How many feature vectors are in whatever a features method gave."""
    import torch

    if features is None:
        return 0
    if torch.is_tensor(features):
        return features.numel() // features.shape[-1]
    mask = getattr(features, "attention_mask", None)
    pooled = getattr(features, "pooler_output", None)
    if torch.is_tensor(mask) and torch.is_tensor(pooled) and mask.shape == pooled.shape[:-1]:
        return int(mask.sum())
    last = getattr(features, "last_hidden_state", None)
    layers = getattr(features, "deepstack_features", None)
    if pooled is not None:
        return rows(pooled)
    if last is not None:
        return rows(last)
    if layers:
        return rows(layers[0][1]) if isinstance(layers[0], (list, tuple)) else rows(layers[0])
    return sum(rows(item) for item in features) if isinstance(features, (list, tuple)) else 0
