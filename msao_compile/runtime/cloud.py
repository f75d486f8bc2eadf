"""The cloud's side of the routes: requests as messages in, tokens as messages out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.generate import tokens
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import Conversation, ModelSession, Request
from msao_compile.runtime.wire.message import Message


class CloudSide:
    """Serves one model. Requests: `prompt` (text and picture bytes), `features` (ids and encoder output), `embeds`
    (merged embeddings and positions). Replies: `begun` with the tokens of prompt and answer, a `token` each, `done`
    with the module times."""

    def __init__(self, session: ModelSession) -> None:
        self.session = session

    def handle(self, message: Message) -> Iterator[Message]:
        """Answer one request.

        Raises:
            InputError: the kind is unknown or the modules are not the ones the client has.
        """
        if message.fields.get("modules") != self.session.model.components:
            raise InputError("the cloud serves other modules than the edge expects: deploy the same build on both")
        clock = Clock()
        limit, parameters = message.fields["limit"], SamplingParameters(**message.fields["sampling"])
        logits, talk = self.prefill(message, limit, clock)
        prompt_tokens = talk.cache.length
        limit = self.session.room(prompt_tokens, limit)
        yield Message("begun", {"prompt_tokens": prompt_tokens, "limit": limit})
        for token in tokens(self.session, logits[-1], talk, parameters, limit):
            clock.token()
            yield Message("token", {"id": token})
        yield Message("done", {"modules_ms": clock.modules_ms})

    def prefill(self, message: Message, limit: int | None, clock: Clock) -> tuple[np.ndarray, Conversation]:
        """Go on from what crossed: logits [1, vocabulary] after the prompt, and the conversation.

        Raises:
            InputError: the kind is unknown; CapacityExceeded before anything runs.
        """
        session = self.session
        if message.kind == "embeds":
            known = dict(message.tensors)
            positions = known.pop("position_ids")
            session.room(known["inputs_embeds"].shape[1], limit)
            return session.prefill_embeds(known, (positions, tuple(message.fields["offset"])), clock)
        if message.kind == "features":
            tensors = dict(message.tensors)
            request = Request(tensors.pop(session.facts.tokens), tensors)
            encoded = {name: tensors.pop(name) for name in message.fields["encoded"]}
            session.room(len(request.ids), limit)
            return session.prefill(request, encoded, clock)
        if message.kind != "prompt":
            raise InputError(f"a request of kind {message.kind!r} is not known; known: prompt, features, embeds")
        pictures = [value.tobytes() for _, value in sorted(message.tensors.items())]
        with clock.module("preprocess"):
            request = session.prepare(message.fields["prompt"], pictures)
        session.room(len(request.ids), limit)
        return session.prefill(request, session.encode(request.tensors, clock), clock)
