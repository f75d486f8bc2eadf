"""Which component each parameter of a model belongs to, found from the model's structure without its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHER = "other"
"""What answers no request that this project knows, such as the part of a model that paints pictures."""
ORDER = ("vision_encoder", "video_encoder", "audio_encoder", "text_encoder", "encoder", "embed_tokens", "decoder",
         "classifier", OTHER)  # fmt: skip
FEATURES = {
    "get_image_features": "vision_encoder",
    "get_image_tokens": "vision_encoder",
    "get_audio_features": "audio_encoder",
    "get_video_features": "video_encoder",
    "get_text_features": "text_encoder",
}
MODALITIES = {"image": "vision_encoder", "audio": "audio_encoder"}
NAMED = (
    (re.compile("^generation_"), OTHER),
    (re.compile("video"), "video_encoder"),
    (re.compile("audio|speech|sound"), "audio_encoder"),
    (re.compile("vision|visual|image|img"), "vision_encoder"),
    (re.compile("text"), "text_encoder"),
)
CONNECTOR = re.compile("projector|connector|aligner|merger|resampler|qformer")
ENCODERS = ("vision_encoder", "video_encoder", "audio_encoder", "text_encoder")
READ_INSIDE = ("decoder", "encoder")
TAKES = {"pixel_values": "vision_encoder", "flattened_patches": "vision_encoder", "input_features": "audio_encoder",
         "input_values": "audio_encoder"}  # fmt: skip
"""What an encoder's main input says of it; another one reads text."""
LAYERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
QUANTISABLE_DIMENSIONS = 2
"""Parameters of fewer dimensions (norms, biases) keep 16 bits in every precision below that."""


@dataclass(frozen=True)
class Part:
    """One component: its parameters (of tied ones the name that is counted), and how it was found."""

    component: str
    parameters: tuple[str, ...]
    params: int
    matrix_params: int
    """Of `params` those in matrices: what int8 and int4 shrink."""
    found_by: str


@dataclass(frozen=True)
class Place:
    """Where a parameter belongs and what told so."""

    component: str
    found_by: str


def bytes_of(params: int, matrix_params: int) -> dict[str, int]:
    """Bytes by precision. int4 has blocks of 32 with a 16-bit scale each, 4.5 bits a weight.

    The scales of int8, one a row, are too few to count.
    """
    vectors = 2 * (params - matrix_params)
    return {
        "fp32": 4 * params,
        "fp16": 2 * params,
        "bf16": 2 * params,
        "int8": matrix_params + vectors,
        "int4": (matrix_params * 9 + 15) // 16 + vectors,
    }


def outline(model: PreTrainedModel) -> tuple[Part, ...]:
    """The components of a model, every parameter in exactly one; tied parameters count once, as the embedding."""
    places = _Anatomy(model).places()
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    held: dict[str, list[str]] = {}
    for group in names.values():
        first = min(group, key=lambda name: places[name].component != "embed_tokens")
        held.setdefault(places[first].component, []).append(first)
    return tuple(_part(model, component, held[component], places) for component in ORDER if component in held)


def _part(model: PreTrainedModel, component: str, names: list[str], places: Mapping[str, Place]) -> Part:
    parameters = [model.get_parameter(name) for name in names]
    matrices = [one.numel() for one in parameters if one.dim() >= QUANTISABLE_DIMENSIONS]
    ways = dict.fromkeys(places[name].found_by for name in names)
    return Part(component, tuple(names), sum(one.numel() for one in parameters), sum(matrices), ", ".join(ways))


class _Anatomy:
    """What a model's methods and attribute names say of its modules.

    Three things tell where a module belongs, the first that knows it: a method of the model that returns it
    (`get_encoder`, `get_decoder`, `get_input_embeddings`), its name or a features method that uses it, and the module
    around it. Names are read outside encoders and outside repeated layers only.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.embedding = self._returned("get_input_embeddings")
        config = model.config
        texts = (config, config.get_text_config(decoder=True))
        self.is_sequence_to_sequence = any(getattr(one, "is_encoder_decoder", False) for one in texts)
        self.is_dual = self._returned("get_output_embeddings") is None and hasattr(model, "get_text_features")
        self.known: dict[str, Place] = {}
        self._learn_returned()

    def places(self) -> dict[str, Place]:
        """Where each parameter belongs, by every name it has."""
        found: dict[str, Place | None] = {}
        self._walk("", self.model, self.known.get(""), found)
        rest = self._rest({place.component for place in found.values() if place is not None})
        return {name: place or rest for name, place in found.items()}

    def _walk(self, path: str, module: nn.Module, around: Place | None, found: dict[str, Place | None]) -> None:
        is_read = (around is None or around.component in READ_INSIDE) and not isinstance(module, LAYERS)
        uses = _uses(type(module)) if is_read else {}
        for name, parameter in module._parameters.items():
            if parameter is not None:
                told = self._told(name, uses) if is_read else None
                found[f"{path}.{name}".lstrip(".")] = told or around
        for name, child in module._modules.items():
            if child is None:
                continue
            inner = f"{path}.{name}".lstrip(".")
            told = self._told(name, uses) if is_read and not self._holds_text(inner) else None
            self._walk(inner, child, self.known.get(inner) or told or around, found)

    def _told(self, name: str, uses: Mapping[str, str]) -> Place | None:
        """What a name and the features methods beside it say."""
        method = uses.get(name)
        by_name = next((component for words, component in NAMED if words.search(name)), None)
        if by_name is None and method is None and CONNECTOR.search(name):
            by_name = self._modal[0] if self._modal else None
        if by_name == "text_encoder" and not self.is_dual:
            by_name = None
        if method is not None:
            return Place(by_name or FEATURES[method], method)
        return Place(by_name, f"the name {name}") if by_name is not None else None

    @cached_property
    def _modal(self) -> list[str]:
        """The kinds of encoder that the attribute names at the top speak of."""
        names = [name for module in (self.model, self.model.base_model) for name in module._modules]
        return [
            component
            for words, component in reversed(NAMED)
            if component in ENCODERS[:3] and any(words.search(name) for name in names)
        ]

    def _rest(self, found: Set[str]) -> Place:
        """What nothing is known of: the only encoder's, unless features methods would have used it."""
        encoders = sorted(found & {*ENCODERS, "encoder"})
        if self.is_dual:
            return Place("classifier", "beside the encoders")
        if not encoders:
            return Place("decoder", "no encoder")
        methods = any(hasattr(module, method) for module in (self.model, self.model.base_model) for method in FEATURES)
        if len(encoders) == 1 and (self.is_sequence_to_sequence or not methods):
            return Place(encoders[0], "the only encoder")
        return Place(OTHER, "no features method uses it")

    def _learn_returned(self) -> None:
        """What the model's own methods return."""
        if not self.is_dual:
            self._learn_decoder()
            head = self._returned("get_output_embeddings")
            if head is not None and head != self.embedding:
                self.known[head] = Place("decoder", "get_output_embeddings")
            encoder = self._returned("get_encoder")
            if self.is_sequence_to_sequence and encoder:
                takes = getattr(self.model.get_submodule(encoder), "main_input_name", "input_ids")
                self.known[encoder] = Place(TAKES.get(takes, "encoder"), "get_encoder")
        for modality, component in MODALITIES.items():
            path = self._returned("get_encoder", modality=modality)
            if path and path not in self.known and not self._holds_text(path):
                self.known[path] = Place(component, f"get_encoder({modality!r})")
        if self.embedding and not self.is_dual:
            self._learn_embeddings(self.embedding)

    def _learn_decoder(self) -> None:
        """The largest module around what get_decoder gives that holds no encoder; the base model itself at most."""
        path = self._returned("get_decoder")
        if path is None:
            return
        modal = [self._returned("get_encoder", modality=modality) for modality in MODALITIES]
        encoders = [
            one for one in (*modal, self._returned("get_encoder") if self.is_sequence_to_sequence else None) if one
        ]
        stop = self.paths[id(self.model.base_model)]
        above = path.rpartition(".")[0]
        while above and above != stop and not any(_holds(above, encoder) for encoder in encoders):
            path, above = above, above.rpartition(".")[0]
        self.known[path] = Place("decoder", f"get_decoder: {path or 'the model'}")

    def _learn_embeddings(self, path: str) -> None:
        above, _, name = path.rpartition(".")
        place = Place("embed_tokens", "get_input_embeddings")
        for other, module in self.model.get_submodule(above)._modules.items():
            if isinstance(module, nn.Embedding) and other.startswith(name):  # beside it a table for every layer
                self.known[f"{above}.{other}".lstrip(".")] = place
        self.known[path] = place

    def _holds_text(self, path: str) -> bool:
        return not self.is_dual and self.embedding is not None and _holds(path, self.embedding)

    def _returned(self, method: str, **arguments: str) -> str | None:
        """The path of what a method of the model returns; None where it has none to return.

        Transformers says so in three ways: no such attribute inside, not implemented, or no such argument.
        """
        try:
            return self.paths.get(id(getattr(self.model, method)(**arguments)))
        except (AttributeError, NotImplementedError, TypeError):
            return None


def _holds(path: str, inner: str) -> bool:
    return not path or inner == path or inner.startswith(f"{path}.")


def _uses(kind: type[nn.Module]) -> Mapping[str, str]:
    """Attributes that a class's features methods use, also through methods of its own, and the first that does."""
    found: dict[str, str] = {}
    for method in FEATURES:
        waiting, seen = [method], set()
        while waiting:
            name = waiting.pop()
            seen.add(name)
            for used in _mentioned(getattr(kind, name, None)):
                if inspect.isfunction(getattr(kind, used, None)):
                    waiting.extend({used} - seen)
                else:
                    found.setdefault(used, method)
    return found


def _mentioned(function: object) -> Set[str]:
    try:
        source = inspect.getsource(inspect.unwrap(function)) if inspect.isfunction(function) else ""
    except OSError:  # a class that was made at run time has no source
        return frozenset()
    return frozenset(re.findall(r"\bself\.(\w+)", source))
