"""Encoders of a request: its pictures, clips and sounds to features, one at a time where sizes matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from msao_compile.errors import InputError
from msao_compile.manifest.schema import Encoder, HostCall, Model
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, Engine
from msao_compile.runtime.feed import feed, unfit
from msao_compile.runtime.host import FUNCTIONS
from msao_compile.runtime.host.anyres import anyres_tiles

TEXT_ENCODERS = ("text_encoder", "encoder")
STRIP = "target_sizes"
"""Rows and columns of what lies side by side in one strip of patches."""
COUNTS = "num_local_patches"
"""How many crops each picture has beside the view of all of it."""
COUNTED = "biu"
"""Kinds of whole numbers and of masks, which stand for one another."""
SHOWN = 12
"""So many numbers of an input are shown in a message."""
MASK, TILED = "pixel_attention_mask", 5
"""Of a picture cut into tiles [pictures, tiles, colours, height, width]: which pixels are no padding, all where it is
not told."""


def encode(model: Model, engines: Mapping[str, Engine], tensors: Mapping[str, np.ndarray], clock: Clock) -> Arrays:
    """What the encoders make of a request's tensors, by name; empty for text alone: no encoder runs for it.

    A text that comes without its mask has no padding.

    Raises:
        InputError: an array is missing or has another shape than the model takes.
    """
    found: Arrays = {}
    for encoder in model.encoders:
        if encoder.inputs[0] in tensors:
            found |= _features(encoder, engines[encoder.component], tensors, clock)
    for component in TEXT_ENCODERS:
        if component in engines and any(name in tensors for name in engines[component].inputs):
            engine = engines[component]
            shape = next(np.shape(tensors[name]) for name in engine.inputs if name in tensors)
            known = {"attention_mask": np.ones(shape), "token_type_ids": np.zeros(shape), **tensors, **found}
            with clock.module(component):
                found |= engine.run(feed(engine, known, (1, shape[-1])))
    return found


def _features(encoder: Encoder, engine: Engine, tensors: Mapping[str, np.ndarray], clock: Clock) -> Arrays:
    given = {name: np.asarray(tensors[name]) for name in encoder.inputs if name in tensors}
    if COUNTS in encoder.inputs and not np.all(given.get(COUNTS, 0)):
        raise InputError(
            f"a picture comes without crops ({COUNTS}): the graphs of this model take the view of all of a picture and "
            "at least one crop of it"
        )
    for name in encoder.inputs:
        if name == MASK and name not in given and given[encoder.inputs[0]].ndim == TILED:
            given[name] = np.ones((*given[encoder.inputs[0]].shape[:2], *given[encoder.inputs[0]].shape[3:]), bool)
        if name not in given:
            raise InputError(f"{encoder.inputs[0]} comes without {name}: give everything that the processor makes")
        _check(name, given[name], engine)
    parts: list[Arrays] = []
    with clock.module(encoder.component):
        for item in items(given) if encoder.each else [given]:
            item = _own_tiles(encoder.host, item)
            _check_lengths(item, engine)
            known = {**item, **host_inputs(encoder.host, item)}
            parts.append(engine.run(feed(engine, known, (1, 0))))
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _own_tiles(calls: tuple[HostCall, ...], item: Arrays) -> Arrays:
    """A picture's own tiles, without those that others in its request have more."""
    packed = next((call for call in calls if call.function == "anyres_index"), None)
    pixels = item.get("pixel_values")
    if packed is None or pixels is None or pixels.ndim != TILED:
        return item
    settings = packed.settings
    size = item["image_sizes"][0].tolist()
    count = anyres_tiles(size, settings["grid_pinpoints"], settings["tile_size"]) if settings["tiled"] else 1
    return {**item, "pixel_values": pixels[:, :count]}


def _check(name: str, value: np.ndarray, engine: Engine) -> None:
    """Numbers of another kind or rank were not prepared by the processor: bytes of a picture are no pixels."""
    shape = engine.inputs.get(name)
    if shape is not None and value.ndim != len(shape):
        raise unfit(name, value, shape)
    wanted = engine.types.get(name, str(value.dtype))
    both_counted = value.dtype.kind in COUNTED and np.dtype(wanted).kind in COUNTED
    if value.dtype != wanted and not both_counted:
        raise InputError(
            f"{name} has type {value.dtype} where this model takes {wanted}: give what its processor makes"
        )


def _check_lengths(item: Arrays, engine: Engine) -> None:
    """A length that two tensors of a picture share is the same in both."""
    seen: dict[str, tuple[int, str]] = {}
    for name, value in item.items():
        for size, found in zip(engine.inputs.get(name, ()), value.shape, strict=False):
            wanted, other = seen.setdefault(size, (found, name)) if isinstance(size, str) else (found, name)
            if found != wanted:
                raise InputError(
                    f"{name} has shape {value.shape} where {other} has {wanted} for {size}: give what the processor "
                    "makes of the same picture"
                )


def host_inputs(calls: tuple[HostCall, ...], item: Mapping[str, np.ndarray]) -> Arrays:
    """What the host computes for one picture, clip or sound from its sizes; a call may read an earlier one's."""
    found: Arrays = {}
    for call in calls:
        arrays = {name: _derived(source, {**item, **found}) for name, source in call.inputs.items()}
        try:
            results = FUNCTIONS[call.function](**arrays, **call.settings)
        except (ValueError, IndexError) as error:
            said = ", ".join(f"{name} {value.tolist()}" for name, value in arrays.items() if value.size <= SHOWN)
            raise InputError(
                f"{call.function} has no answer for {said}: give what the model's processor makes"
            ) from error
        if call.function == "vision_merged_shape":  # read as lengths: a tensor that has them
            results = (np.zeros([int(size) for size in results], np.float32),)
        found |= dict(zip(call.outputs, results, strict=False))
    return found


def _derived(source: str, item: Mapping[str, np.ndarray]) -> np.ndarray:
    name, _, how = source.partition(":")
    value = np.asarray(item[name])
    if how == "first":
        return np.asarray(value[0])
    if how == "frames":  # a clip as so many pictures
        frames = np.repeat(value, value[:, 0], axis=0)
        frames[:, 0] = 1
        return frames
    if how.startswith("times"):  # a grid of tokens as one of patches
        return np.asarray(value * np.array(how.split()[1:], np.int64))
    if how.startswith("lengths"):  # of a mask: how much of each row is real, or of each piece of it
        piece = int(how.partition(" ")[2] or value.shape[-1])
        return np.asarray(value.reshape(-1, piece).sum(-1))
    if how == "joined":  # one sound [bins, frames] without its padding
        mask = next((held for other, held in item.items() if other.endswith("_mask") and held.ndim == 2), None)
        real = value.shape[-1] if mask is None else int(mask[0].sum())
        return np.asarray(value[0, :, :real])
    return np.pad(value, ((0, 0), (1, 0)), constant_values=1) if how == "still" else value


def items(given: Mapping[str, np.ndarray]) -> Iterator[Arrays]:
    """The tensors of each picture, clip or sound alone, without padding.

    Raises:
        InputError: sizes and contents do not agree.
    """
    grid = next((value for name, value in given.items() if name.endswith("grid_thw")), None)
    if grid is not None:
        yield from _packed(given, grid)
        return
    main = next(iter(given.values()))
    strip = next((name for name in given if name.startswith(STRIP) and main.ndim == 4), None)
    if strip is not None:
        yield from _side_by_side(given, strip)
        return
    crops = _crops(given)
    ends = given[COUNTS].cumsum() if crops else np.zeros(0, np.int64)
    for index in range(len(main)):
        alone = {name: value[index : index + 1] if len(value) == len(main) else value for name, value in given.items()}
        own = {name: given[name][ends[index] - given[COUNTS][index] : ends[index]] for name in crops}
        yield _without_padding({**alone, **own})


def _crops(given: Mapping[str, np.ndarray]) -> list[str]:
    """Inputs that hold the crops of all pictures, as many for each as its count says.

    Raises:
        InputError: there are more or fewer than the counts say.
    """
    counts = given.get(COUNTS)
    if counts is None:
        return []
    found = [name for name in given if name.endswith("_local")]
    wrong = [name for name in found if counts.ndim != 1 or len(given[name]) != int(counts.sum())]
    if wrong:
        raise InputError(f"{wrong[0]} has {len(given[wrong[0]])} crops where {COUNTS} says {counts.tolist()}")
    return found


def _packed(given: Mapping[str, np.ndarray], grid: np.ndarray) -> Iterator[Arrays]:
    whole = grid.ndim == 2 and grid.shape[1] == 3 and grid.dtype.kind in "iu" and bool((grid > 0).all())
    counts = grid.prod(-1) if whole else np.zeros(1, np.int64)
    rows = len(next(iter(given.values())))
    if not whole or int(counts.sum()) != rows:
        raise InputError(
            f"a grid of shape {grid.shape} does not describe the {rows} patches it comes with: give frames, rows and "
            "columns of patches for each picture"
        )
    ends = counts.cumsum()
    for index, (start, end) in enumerate(zip(ends - counts, ends, strict=True)):
        yield {
            name: value[index : index + 1] if len(value) == len(grid) != rows else value[start:end]
            for name, value in given.items()
        }


def _side_by_side(given: Mapping[str, np.ndarray], named: str) -> Iterator[Arrays]:
    """Each picture or frame of a strip [1, colours, side, patches x side] alone."""
    main, sizes = next(iter(given)), given[named]
    strip = given[main]
    whole = sizes.ndim == 2 and sizes.shape[1] == 2 and sizes.dtype.kind in "iu" and bool((sizes > 0).all())
    widths = sizes.prod(-1) * strip.shape[2] if whole else np.zeros(1, np.int64)
    if not whole or int(widths.sum()) != strip.shape[3]:
        raise InputError(
            f"{named} of shape {sizes.shape} does not describe the strip {strip.shape} it comes with: give rows and "
            "columns of patches for each picture"
        )
    ends = widths.cumsum()
    for index, (start, end) in enumerate(zip(ends - widths, ends, strict=True)):
        yield {main: strip[..., start:end], named: sizes[index : index + 1]}


def _without_padding(item: Arrays) -> Arrays:
    """One picture as it is alone: what was added to make several of one size is cut off again."""
    pixels = item.get("pixel_values")
    sizes = item.get("image_sizes")
    places = next((value for name, value in item.items() if name.endswith("position_ids") and value.ndim == 3), None)
    if places is not None:  # padding has no column and no row
        keep = (places >= 0).all(-1).any(0)
        return {name: value[:, keep] if value.shape[1:2] == keep.shape else value for name, value in item.items()}
    if pixels is None:
        return item
    if sizes is not None and pixels.ndim == 4:
        height, width = (int(size) for size in sizes[0])
        return {**item, "pixel_values": pixels[..., :height, :width]}
    shapes = item.get("spatial_shapes")
    if shapes is not None:
        count = int(shapes[0].prod())
        return {
            name: value if name == "spatial_shapes" or value.ndim < 2 else value[:, :count]
            for name, value in item.items()
        }
    mask = item.get("pixel_attention_mask")
    if mask is not None and pixels.ndim == 5:
        real = np.asarray(pixels[0].reshape(pixels.shape[1], -1).any(-1))
        keep = real if real.any() else np.ones(len(real), bool)
        return {**item, "pixel_values": pixels[:, keep], "pixel_attention_mask": mask[:, keep]}
    return item
