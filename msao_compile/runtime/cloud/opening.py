"""How a session begins: what crossed becomes a request, encoders run, and the prompt goes into a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.cloud.rows import Apart, Row, Rows
from msao_compile.runtime.device import Work
from msao_compile.runtime.mas.payload import grown
from msao_compile.runtime.preprocess.decode import MAX_PIXELS, decode
from msao_compile.runtime.session import Conversation, ModelSession, Request
from msao_compile.runtime.wire.contract import PICTURE, Prefill
from msao_compile.runtime.wire.message import Message

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_AXES = 4


@dataclass
class Opening:
    """What a session begins with: `length` prompt tokens, `limit` new ones, and a request or merged embeddings."""

    length: int
    limit: int = 0
    pictures: int = 0
    request: Request | None = None
    encoded: Arrays | None = None
    known: Arrays = field(default_factory=dict)
    positions: tuple[np.ndarray, tuple[float, ...]] | None = None


def prepared(session: ModelSession, fields: Prefill, message: Message, clock: Clock, most_pixels: int) -> Opening:
    """Text and pixels of what crossed; refused where it cannot fit.

    Raises:
        InputError: arrays are missing or not what the model takes. CapacityExceeded: too long. PromptError,
            PictureError: as `ModelSession.prepare`.
    """
    opening = _read(session, fields, message, clock, most_pixels)
    opening.limit = session.room(opening.length, fields.limit)
    return opening


def _read(session: ModelSession, fields: Prefill, message: Message, clock: Clock, most_pixels: int) -> Opening:
    tensors = dict(message.tensors)
    if fields.form == "prompt":
        strange = next((name for name in tensors if not name.startswith(PICTURE)), None)
        if strange is not None:
            raise InputError(
                f"prefill: an array {strange!r} does not belong to a prompt: send pictures as {PICTURE}000"
            )
        with clock.module("preprocess"):
            files = [np.asarray(value, np.uint8).tobytes() for _, value in sorted(tensors.items())]
            pictures = [decode(file, most_pixels) for file in files]
            if fields.shown:
                pictures = _shown(pictures, fields.shown, most_pixels)
            request = session.prepare(fields.prompt, pictures)
        return Opening(len(request.ids), pictures=len(pictures), request=request)
    if fields.form == "embeds":
        return _embedded(session, fields, tensors)
    names = [session.facts.tokens, *fields.encoded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"prefill: encoded names {twice}, which is there already: name what encoders made, once each")
    missing = next((name for name in names if name not in tensors), None)
    if missing is not None:
        raise InputError(f"prefill: {missing} is missing: send it with features")
    ids = tensors.pop(session.facts.tokens)
    if ids.dtype != np.int64 or ids.ndim != 1 or not ids.size:
        raise InputError(f"prefill: {session.facts.tokens} is {ids.dtype} of shape {ids.shape}; send int64 [tokens]")
    if ids.min() < 0 or ids.max() >= session.facts.vocab_size:
        raise InputError(f"prefill: {session.facts.tokens} has a token that is not below {session.facts.vocab_size}")
    encoded = {name: tensors.pop(name) for name in fields.encoded}
    return Opening(len(ids), request=Request(ids, tensors), encoded=encoded)


def _embedded(session: ModelSession, fields: Prefill, tensors: Arrays) -> Opening:
    """Merged embeddings and positions, which another process of this build made."""
    for name in ("inputs_embeds", "position_ids"):
        if name not in tensors:
            raise InputError(f"prefill: {name} is missing: send it with embeds")
    width, embeds, places = session.facts.hidden_size, tensors["inputs_embeds"], tensors.pop("position_ids")
    if embeds.ndim != 3 or embeds.shape[0] != 1 or embeds.shape[2] != width or not embeds.shape[1]:
        raise InputError(f"prefill: inputs_embeds has shape {embeds.shape} where this model takes (1, tokens, {width})")
    if embeds.dtype not in (np.float32, np.float16):
        raise InputError(f"prefill: inputs_embeds is {embeds.dtype}: send float32 or float16")
    length, axes = embeds.shape[1], places.shape[0] if places.ndim == 3 else 1
    if places.dtype != np.int64 or places.ndim not in (2, 3) or places.shape[-2:] != (1, length):
        told = f"{places.dtype} of shape {places.shape}"
        raise InputError(f"prefill: position_ids is {told}: send int64 of (1, {length}), or one such for each axis")
    if places.min() < 0 or places.max() >= 2**31:
        raise InputError("prefill: position_ids has one that is negative or beyond 2^31: send those of the prompt")
    if axes > MOST_AXES or len(fields.offset) != axes or any(not abs(offset) < 2**31 for offset in fields.offset):
        raise InputError(f"prefill: offset has {len(fields.offset)} numbers: send a finite one for each of {axes} axes")
    return Opening(length, known=tensors, positions=(places, tuple(fields.offset)))


def _shown(pictures: Sequence[Image], sides: Sequence[int], most_pixels: int) -> list[Image]:
    """Pictures in the sizes in which they are to be seen."""
    if len(sides) != 2 * len(pictures):
        raise InputError(f"prefill: shown has {len(sides)} sides for {len(pictures)} pictures: send two for each")
    sizes = list(zip(sides[::2], sides[1::2], strict=True))
    wrong = next((size for size in sizes if bool(size[0]) != bool(size[1]) or size[0] * size[1] > most_pixels), None)
    if wrong is not None:
        raise InputError(f"prefill: a picture to be seen as {wrong[0]} x {wrong[1]}: send 1 to {most_pixels} pixels")
    return [grown(one, size) if all(size) else one for one, size in zip(pictures, sizes, strict=True)]


def prefilled(
    session: ModelSession, rows: Rows, row: Row, opening: Opening, clock: Clock
) -> Iterator[tuple[Work, int, Callable[[], Any]]]:
    """The work that fills a row, piece by piece, so that steps of others go in between; the last gives logits [V]."""
    if opening.positions is not None:
        positions = opening.positions
        yield "prefill", opening.length, lambda: rows.prefill_embeds(row, opening.known, positions, clock)
        return
    request = opening.request
    assert request is not None  # one of the two
    encoded = dict(opening.encoded or {})
    if opening.encoded is None and opening.pictures:
        yield "encode", opening.pictures, lambda: encoded.update(session.encode(request.tensors, clock))
    yield "prefill", opening.length, lambda: rows.prefill(row, request, encoded, clock)


def go_on(session: ModelSession, message: Message, limit: int, clock: Clock) -> tuple[np.ndarray, Conversation]:
    """What the cloud makes of a prefill message without a session: logits [1, V] after the prompt, and what follows.

    Raises:
        InputError, CapacityExceeded: as `prepared`.
    """
    model = session.model
    given = {"session": "proof-of-cut", "modules": dict(model.components), "tokenizer": model.tokenizer_digest}
    fields = Prefill.model_validate({**given, "limit": limit, **message.fields})
    opening, rows = prepared(session, fields, message, clock, MAX_PIXELS), Apart(session, 1)
    row = Row()
    logits = [work() for _, _, work in prefilled(session, rows, row, opening, clock)][-1]
    assert row.talk is not None  # the last piece of work fills it
    return logits[None], row.talk
