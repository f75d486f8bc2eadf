"""What a chat request may hold: OpenAI's fields as far as a deployment can honour them, and `route`."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError

from msao_compile.manifest.frozen import Frozen
from msao_compile.runtime.serve.edge.errors import Fault, Refusal

MOST = 2**31 - 1
TAGS = ("one", "several", "text", "image_url")
Zero = Annotated[float, Field(ge=0, le=0)]


class TextPart(Frozen):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(Frozen):
    """Where a picture is: in the URL itself, or in a file that the server may read."""

    url: str
    detail: Literal["auto"] = "auto"


class ImagePart(Frozen):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _number(given: Any) -> str:
    return "one" if isinstance(given, str) else "several"


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("one")] | Annotated[tuple[Part, ...], Tag("several")], Discriminator(_number)
]  # fmt: skip
Sequences = Annotated[
    Annotated[str, Field(min_length=1), Tag("one")]
    | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=16), Tag("several")],
    Discriminator(_number),
]


class Message(Frozen):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class StreamOptions(Frozen):
    """What a stream carries beside the answer."""

    include_usage: bool = False


class ChatRequest(Frozen):
    """The body of `/v1/chat/completions`.

    Fields that cannot be honoured are here where their neutral value is often sent; `user` has no effect.
    """

    model: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stop: Sequences | None = None
    route: Annotated[str, Field(min_length=1, max_length=40)] = "auto"
    user: Annotated[str, Field(max_length=512)] | None = None
    n: Literal[1] = 1
    frequency_penalty: Zero = 0.0
    presence_penalty: Zero = 0.0
    logprobs: Literal[False] = False

    @property
    def limit(self) -> int | None:
        """At most so many new tokens; None takes as many as fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        Refusal: it is not JSON, or not a request that can be honoured; names the first field at fault.
    """
    try:
        content = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refusal(Fault(400, f"the body is not JSON ({error}): send an object", None, "invalid_json")) from error
    if not isinstance(content, dict):
        raise Refusal(
            Fault(400, "the body is not a JSON object: send one with model and messages", code="invalid_json")
        )
    try:
        request = ChatRequest.model_validate(_without_nulls(content))
    except ValidationError as error:
        raise Refusal(_fault(error)) from error
    if request.stream_options is not None and not request.stream:
        said = "stream_options is for streams: leave it out, or set stream to true"
        raise Refusal(Fault(400, said, "stream_options", "invalid_value"))
    return request


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _without_nulls(content: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's null says that a field is absent, in a request and in its messages (as clients send answers back)."""
    found = {name: value for name, value in content.items() if value is not None}
    messages = found.get("messages")
    if isinstance(messages, list):
        found["messages"] = [
            {name: value for name, value in message.items() if value is not None}
            if isinstance(message, dict)
            else message
            for message in messages
        ]
    return found


def _fault(error: ValidationError) -> Fault:
    first = error.errors(include_url=False, include_input=False)[0]
    param = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return Fault(400, f"{param} is not supported by this server: leave it out", param, "unsupported_parameter")
    if first["type"] == "missing":
        return Fault(400, f"{param} is missing: give it", param, "missing_required_parameter")
    said = re.sub(r"^Input should be ", "it should be ", first["msg"])
    return Fault(400, f"{param} cannot be taken as it is: {said}", param, "invalid_value")


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].text`, without the names that pydantic gives to alternatives."""
    parts = []
    for index, step in enumerate(location):
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif not (step in TAGS and index and (step in ("one", "several") or isinstance(location[index - 1], int))):
            parts.append(f".{step}")
    return "".join(parts).lstrip(".")
