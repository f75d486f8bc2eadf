"""What a model is asked to do while it is looked at and traced: requests of two sizes, and what each input is."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast
from unittest.mock import patch

import numpy as np
import torch
from transformers import GenerationMixin

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.alone import refuse_heard_along, refuse_other_ways
from msao_compile.families.examples import Medium, medium, modalities, request
from msao_compile.families.examples.kinds import FAULTS
from msao_compile.families.examples.request import run
from msao_compile.families.host_calls import HostCalls, refuse_alike
from msao_compile.families.known_sizes import SIZED, KnownSize, known_sizes
from msao_compile.families.shared_place import joined, shared_inputs
from msao_compile.manifest.schema import ENCODERS, Encoder, HostCall
from msao_compile.runtime.host.lengths import lengths
from msao_compile.runtime.host.rope import VARIANTS
from msao_compile.symbolic import NO_CHECKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tensors = dict[str, torch.Tensor]
TEXT = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
WORDS = (7, 10)
BATCH = (2, 3)
BOUNDS = 2
"""Of one window: where it begins and where it ends."""


@dataclass(frozen=True)
class Description:
    """A model and how to run it: what the graph code needs, free of any family's name.

    `examples` are the named inputs of one forward at two sizes; `names[input]` names its axes; `needs[input]` says what
    depends on it (`image`, `video`, `audio`, `ids`, `text`, `step`). `tokens` is the input whose positions are decoded,
    None where nothing is. `bound(values)` patches the model for one call and takes from `values` what is no argument.
    """

    model: PreTrainedModel
    examples: tuple[Tensors, Tensors]
    names: dict[str, tuple[str, ...]]
    needs: dict[str, str]
    tokens: str | None
    outputs: tuple[str, ...]
    encoders: tuple[Encoder, ...]
    position: str | None
    bound: Callable[[Tensors], contextlib.AbstractContextManager[Tensors]]


def describe(model: PreTrainedModel, exclude: tuple[str, ...] = (), fixed: bool = False) -> Description:
    """How to run this model; `exclude` names components that are left out.

    `fixed`: pictures of one size, also where the model's config would allow others.

    Raises:
        UnsupportedFamily: no example of what it takes could be made; the message lists what was tried.
    """
    known = [modality for modality in modalities(model) if ENCODERS[modality] not in exclude]
    tokens = decoded(model)
    calls_made = HostCalls(model)
    pairs = {modality: _pair(model, modality, calls_made, fixed) for modality in known}
    media = [(one, other) for one, other, _ in pairs.values()]
    if tokens == "input_ids":
        refuse_heard_along(type(model).__name__, [one for one, _ in media])
    owners = {name: one.modality for pair in media for one in pair for name in one.inputs}
    shared = shared_inputs(media)
    examples, full = _asked(model, calls_made, media, tokens)
    if _is_few(calls_made.calls, full):
        counted = {owners.get(source.partition(":")[0]) for call in calls_made.calls for source in call.inputs.values()}
        media = [(other, one) if one.modality in counted else (one, other) for one, other in media]
        examples, full = _asked(model, calls_made, media, tokens)
    position = _position(model, examples[0])
    if tokens is not None:
        refuse_other_ways(
            model,
            lambda: _forward(model, examples[0], shared),
            {pair[0].modality: partial(_forward, model, _only(model, pair[0], tokens)) for pair in media},
        )
    refuse_alike(type(model).__name__, calls_made.calls, full)
    taken = _taken(calls_made.calls)
    sizes = [size for pair in media for size in known_sizes(pair, taken)]
    full = [_with_lengths(example, sizes) for example in full]
    made = [*calls_made.calls, *(size.call for size in sizes if size.call is not None)]
    for call in made:
        owner = owners[next(iter(call.inputs.values())).partition(":")[0]]
        owners |= dict.fromkeys(call.outputs, owner)
    needs = {name: _need(name, owners, tokens, made) for name in full[0]}
    return Description(
        model=model,
        examples=(full[0], full[1]),
        names={
            name: _axes(name, value, tokens) or (() if name in owners else _over_tokens(name, tokens, full))
            for name, value in full[0].items()
        },
        needs=needs,
        tokens=tokens,
        outputs=_outputs(model, examples[0]) if tokens is None else ("logits",),
        encoders=tuple(_encoder(one, each, made, owners) for one, _, each in pairs.values()),
        position=position,
        bound=lambda values: _bound(calls_made, sizes, shared, values),
    )


def _asked(
    model: PreTrainedModel, calls: HostCalls, media: Sequence[tuple[Medium, Medium]], tokens: str | None
) -> tuple[list[Tensors], list[Tensors]]:
    """Two requests with all media, and both with what the host makes of them, whose calls are written down."""
    examples = [_with_positions(model, example, tokens) for example in _unlike(model, media, tokens)]
    return examples, [_recorded(model, calls, example, shared_inputs(media)) for example in examples]


def _is_few(calls: Sequence[HostCall], full: Sequence[Tensors]) -> bool:
    """Whether the first example has one of something that the host counts, such as windows, and the other several.

    Torch takes the two bounds of a single window for a number that never changes.
    """
    shapes = [(full[0][name].shape, full[1][name].shape) for call in calls for name in call.outputs]
    return any(size <= BOUNDS < more for pair in shapes for size, more in zip(*pair, strict=True))


def _unlike(model: PreTrainedModel, media: Sequence[tuple[Medium, Medium]], tokens: str | None) -> list[Tensors]:
    """A request with each of the media; they differ in length, also where fewer features stand beside more words."""

    def asked(which: int, words: int) -> Tensors:
        plain = request(model, [pair[which] for pair in media], words, _chance(which))
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in plain.items()}

    one, other = (asked(which, words) for which, words in enumerate(WORDS))
    if tokens is not None and one[tokens].shape[-1] == other[tokens].shape[-1]:
        other = asked(1, WORDS[1] + 1)
    return [one, other]


def _pair(model: PreTrainedModel, modality: str, calls: HostCalls, fixed: bool) -> tuple[Medium, Medium, bool]:
    """Examples of two sizes, and whether the medium is encoded one at a time.

    Of what has one size only the first is several; sounds also differ in length.
    """
    kind = cast(Literal["image", "video", "audio"], modality)
    made = [medium(model, kind, variant, _chance(variant)) for variant in (0, 1, 2)]
    sized = any(SIZED.search(name) for name in made[0].inputs)
    if sized or (modality == "audio" and calls.has("chunk_and_pad_features")):
        return made[0], made[1], True
    other = made[0] if modality == "image" and (fixed or _one_size(made[0], made[1])) else made[1]
    alike = all(len(value) == len(other.inputs[name]) for name, value in made[2].inputs.items())
    if modality == "audio" and alike:  # as many windows of a long sound as there are short sounds
        return made[1], made[0], False
    return made[2], other, False


def _one_size(one: Medium, other: Medium) -> bool:
    return all(value.shape[1:] == other.inputs[name].shape[1:] for name, value in one.inputs.items())


def _taken(calls: Sequence[HostCall]) -> set[str]:
    """Inputs that the host reads whole: their numbers are not asked for again."""
    return {
        source.partition(":")[0]
        for call in calls
        for source in call.inputs.values()
        if call.function == "anyres_index" or not source.startswith("target_sizes")
    }


def _chance(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def decoded(model: PreTrainedModel) -> str | None:
    """The input whose positions are decoded one after another, None where nothing is.

    Raises:
        UnsupportedFamily: the model writes, and in another way.
    """
    parameters = inspect.signature(model.forward).parameters
    if model.config.is_encoder_decoder and "decoder_input_ids" in parameters:
        return "decoder_input_ids"
    if "input_ids" not in parameters:
        return None
    kind = type(model)
    if issubclass(kind, GenerationMixin) or not kind.__module__.startswith("transformers."):
        return "input_ids" if model.can_generate() or model.get_output_embeddings() is not None else None
    if hasattr(kind, "generate"):
        raise UnsupportedFamily(f"{kind.__name__} has a way of its own to write, and not one token after another")
    return None


def _with_positions(model: PreTrainedModel, example: Tensors, tokens: str | None) -> Tensors:
    """Positions always come from outside, wherever the model takes them."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(item.kind == item.VAR_KEYWORD for item in parameters.values())
    own = any(hasattr(part, "create_position_ids_from_input_ids") for part in model.modules())  # not counted from 0
    if tokens != "input_ids" or own or not (open_ended or "position_ids" in parameters):
        return example
    batch, sequence = example[tokens].shape
    positions = torch.arange(sequence).expand(batch, sequence).contiguous()
    if _rope_owner(model) is not None:
        positions = positions + torch.arange(_rope_axes(model))[:, None, None]  # unlike: tables mix the axes
    given = {**example, "position_ids": positions}
    if "position_ids" not in parameters and run(model, given) is not None and run(model, example) is None:
        return example  # what forward does not name reaches another part than the decoder
    return given


def _rope_axes(model: PreTrainedModel) -> int:
    """How many axes positions have; three where the config does not say how it shares the rotation among them."""
    said = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return len(said.get("mrope_section") or (1, 1, 1))


def _rope_owner(model: PreTrainedModel) -> Any:
    for part in (model, getattr(model, "model", None)):
        if part is not None and hasattr(part, "get_rope_index"):
            return part
    return None


def _position(model: PreTrainedModel, example: Tensors) -> str | None:
    """`rope` where positions count up, a name of `runtime.host.rope` where they have several axes."""
    if "position_ids" not in example:
        return None
    if _rope_owner(model) is None:
        return "rope"
    kind = rope_kind(model)
    if kind not in VARIANTS:
        raise UnsupportedFamily(
            f"{kind}: positions of several axes (get_rope_index) of an unknown kind; known are {', '.join(VARIANTS)}"
        )
    return VARIANTS[kind][0]


def rope_kind(model: PreTrainedModel) -> str:
    """The family whose positions these are: the config's, or else the one whose modeling file the model is from."""
    kind, home = str(model.config.model_type), type(_rope_owner(model)).__module__.split(".")[-2:][0]
    return home if kind not in VARIANTS and home in VARIANTS else kind


def turned(description: Description) -> Description:
    """The same with its examples exchanged: what is equal in one by chance is seen to differ in the other."""
    one, other = description.examples
    return replace(description, examples=(other, one))


def with_rows(description: Description, media: bool = False) -> Description:
    """The same with several rows of text, with `media` each with its own: where the model runs that, rows are an axis
    that varies.
    """
    text = {name for name, need in description.needs.items() if need in ("ids", "step", "text")}
    single = {
        name for name in description.names if all(example[name].shape[:1] == (1,) for example in description.examples)
    }
    own = single - text if media else set()
    pairs = zip(description.examples, BATCH, strict=True)
    one, other = (_repeated(example, text | own, count) for example, count in pairs)
    names = {name: ("batch_size", *axes[1:]) if name in own else axes for name, axes in description.names.items()}
    return replace(description, examples=(one, other), names=names)


def _repeated(example: Tensors, names: set[str], count: int) -> Tensors:
    def rows(name: str, value: torch.Tensor) -> torch.Tensor:
        axis = 1 if name == "position_ids" and value.ndim == 3 else 0
        return value.repeat_interleave(count, axis).contiguous() if name in names else value

    return {name: rows(name, value) for name, value in example.items()}


def _only(model: PreTrainedModel, one: Medium, tokens: str) -> Tensors:
    """A request of one medium."""
    plain = request(model, [one], WORDS[0], _chance(0))
    return _with_positions(model, {name: torch.from_numpy(value) for name, value in plain.items()}, tokens)


def _forward(model: PreTrainedModel, example: Tensors, shared: Sequence[str] = ()) -> None:
    with torch.no_grad(), joined(model, example, shared) as inputs:
        model(**inputs)


def _recorded(model: PreTrainedModel, calls: HostCalls, example: Tensors, shared: Sequence[str]) -> Tensors:
    with (
        torch.no_grad(),
        patch.dict(os.environ, NO_CHECKS),
        calls.recording(example),
        joined(model, example, shared) as inputs,
    ):
        try:
            model(**inputs)
        except FAULTS as fault:
            said = " ".join(str(fault).split())
            raise UnsupportedFamily(
                f"{type(model).__name__} does not run on examples of its inputs "
                f"({', '.join(f'{name} {list(value.shape)}' for name, value in example.items())}): {said}"
            ) from fault
    return {**example, **calls.results}


@contextlib.contextmanager
def _bound(
    calls: HostCalls, sizes: Sequence[KnownSize], shared: Sequence[str], values: Tensors
) -> Iterator[dict[str, Any]]:
    """Patch the model for one call; gives the values that are arguments of its forward."""
    host = {name for call in calls.calls for name in call.outputs}
    host |= {name for size in sizes if size.call is not None for name in size.call.outputs}
    known = {size.name: size.of(values) for size in sizes}
    with calls.answering({name: value for name, value in values.items() if name in host}):
        arguments = {name: known.get(name, value) for name, value in values.items() if name not in host}
        with joined(calls.model, arguments, shared) as inputs:
            yield inputs


def _with_lengths(example: Tensors, sizes: Sequence[KnownSize]) -> Tensors:
    """The example and the tensors that stand for its sizes."""
    found = dict(example)
    for call in [size.call for size in sizes if size.call is not None]:
        arrays = lengths(example[call.inputs["sizes"]].numpy())
        found |= {name: torch.from_numpy(array) for name, array in zip(call.outputs, arrays, strict=True)}
    return found


def _need(name: str, owners: Mapping[str, str], tokens: str | None, calls: Sequence[HostCall]) -> str:
    if name in owners:
        return owners[name]
    for call in calls:
        if name in call.outputs:
            return owners[next(iter(call.inputs.values())).partition(":")[0]]
    if name == tokens or name.endswith("_position_mask"):
        return "ids"
    if tokens != "input_ids" and name in TEXT:
        return "text"
    return "step"


def _axes(name: str, value: torch.Tensor, tokens: str | None) -> tuple[str, ...]:
    if name == tokens or (tokens == "input_ids" and name in TEXT):
        last = "total_sequence_length" if name == "attention_mask" else "sequence_length"
        return ("batch_size", last) if value.ndim == 2 else ("", "batch_size", "sequence_length")
    if name in TEXT:
        return ("batch_size" if tokens is None else "num_texts", "text_sequence_length")
    if name.startswith("pixel_values") and value.ndim == 2:
        return ("num_patches",)
    if name.startswith("pixel_values"):
        return ("num_images",)
    return ()


def _over_tokens(name: str, tokens: str | None, examples: Sequence[Tensors]) -> tuple[str, ...]:
    """Axes of what says something of each token: as long as the tokens in every example."""
    if tokens is None:
        return ()
    pairs = [(example[name].shape, example[tokens].shape[1]) for example in examples]
    count = pairs[0][1]
    varies = any(length != count for _, length in pairs)
    own = [varies and all(shape[axis] == length for shape, length in pairs) for axis in range(len(pairs[0][0]))]
    return tuple("sequence_length" if over else "" for over in own)


def _outputs(model: PreTrainedModel, example: Tensors) -> tuple[str, ...]:
    """Names of the tensors that a model which decodes nothing gives."""
    with torch.no_grad():
        found = model(**example)
    return tuple(name for name, value in found.items() if isinstance(value, torch.Tensor))


def _encoder(example: Medium, each: bool, calls: Sequence[HostCall], owners: Mapping[str, str]) -> Encoder:
    own = [
        call for call in calls
        if owners.get(next(iter(call.inputs.values())).partition(":")[0]) == example.modality
    ]  # fmt: skip
    return Encoder(
        component=ENCODERS[example.modality],
        modality=example.modality,
        inputs=tuple(example.inputs),
        each=each or bool(own),
        host=tuple(own),
        placeholder=example.placeholder,
    )
