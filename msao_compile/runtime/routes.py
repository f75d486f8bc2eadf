"""The ways to answer: all modules here, or a part of them and the rest behind a link."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from msao_compile.manifest.schema import Route
from msao_compile.runtime.answer import Clock, Extent
from msao_compile.runtime.conversation import Prompt
from msao_compile.runtime.generate import tokens
from msao_compile.runtime.preprocess.decode import decode, read
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ROPE_INPUTS, ModelSession, Request
from msao_compile.runtime.tokens import Tokenizer
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.message import Message

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | Image


@dataclass(frozen=True)
class Question:
    """What a user asked; `limit` None takes as many tokens as fit."""

    prompt: Prompt
    pictures: tuple[Picture, ...]
    limit: int | None
    sampling: SamplingParameters


@dataclass(frozen=True)
class RouteRun:
    """A request under way: draw `tokens`, then read `clock`, `traffic` and `extent`."""

    tokens: Iterator[int]
    tokenizer: Tokenizer
    clock: Clock
    verified: bool
    traffic: Traffic = field(default_factory=Traffic)
    extent: Extent = field(default_factory=Extent)


def edge(session: ModelSession, question: Question, clock: Clock) -> RouteRun:
    """Every module here."""
    with clock.module("preprocess"):
        request = session.prepare(question.prompt, question.pictures)
    limit = session.room(len(request.ids), question.limit)

    def run() -> Iterator[int]:
        logits, talk = session.prefill(request, session.encode(request.tensors, clock), clock)
        for token in tokens(session, logits[-1], talk, question.sampling, limit):
            clock.token()
            yield token

    verified = session.model.role == "target"
    return RouteRun(run(), session.tokenizer, clock, verified, extent=Extent(len(request.ids), limit))


def remote(session: ModelSession, question: Question, clock: Clock, link: Link, route: Route) -> RouteRun:
    """The modules that `route.hosts` puts in the cloud run there; what crosses is the smallest thing that can."""
    message = _outgoing(session, question, clock, route)
    message.fields.update(modules=session.model.components, limit=question.limit, sampling=vars(question.sampling))
    traffic, extent = Traffic(), Extent()

    def run() -> Iterator[int]:
        for reply in link.call(message, traffic):
            if reply.kind == "token":
                clock.token()
                yield int(reply.fields["id"])
            elif reply.kind == "begun":
                extent.prompt_tokens, extent.limit = int(reply.fields["prompt_tokens"]), int(reply.fields["limit"])
            else:
                clock.modules_ms |= {f"cloud/{name}": ms for name, ms in reply.fields["modules_ms"].items()}

    return RouteRun(run(), session.tokenizer, clock, session.model.role == "target", traffic, extent)


def _outgoing(session: ModelSession, question: Question, clock: Clock, route: Route) -> Message:
    here = {component for component, host in route.hosts.items() if host == "edge"}
    if not here:
        with clock.module("preprocess"):
            files = {
                f"picture{index:03}": np.frombuffer(_bytes(picture), np.uint8)
                for index, picture in enumerate(question.pictures)
            }
        return Message("prompt", {"prompt": question.prompt}, files)
    with clock.module("preprocess"):
        request = session.prepare(question.prompt, question.pictures)
    session.room(len(request.ids), question.limit)
    return crossing(session, request, here, clock)


def crossing(session: ModelSession, request: Request, here: Set[str], clock: Clock) -> Message:
    """Run the modules that are `here`, the encoder at least; what the cloud needs to go on."""
    encoded = session.encode(request.tensors, clock)
    session.check_placeholders(request, encoded)
    held = session.context(request.tensors)
    if "embed_tokens" in here:
        positions, offset = session.positions(request)
        embeds = session.embed(request.ids[None], {**held, **encoded}, clock)
        known = {**held, **encoded}
        crossed = {name: value for name, value in known.items() if name in session.decoder.inputs}
        crossed = {**session.later(known), **crossed}  # the cloud embeds the tokens of the answer
        return Message("embeds", {"offset": offset}, {**crossed, **embeds, "position_ids": positions})
    read = {name: value for name, value in request.tensors.items() if name in (*ROPE_INPUTS, "input_ids")}
    tensors = {session.facts.tokens: request.ids, **held, **read, **encoded}
    return Message("features", {"encoded": list(encoded)}, tensors)


def _bytes(picture: Picture) -> bytes:
    """The compressed picture as it is; one without a file upright and in RGB, as every route sees it, and lossless."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return read(picture)
    buffer = io.BytesIO()
    decode(picture).save(buffer, "PNG")
    return buffer.getvalue()
