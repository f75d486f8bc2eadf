"""What is asked, as the messages that a chat template renders: words alone, or a conversation of several turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msao_compile.errors import PromptError

Prompt = str | Sequence[Mapping[str, Any]]
"""The user's words, or messages: `role` and `content`, which is text or parts of type `text` and `image`."""


def conversation(prompt: Prompt, pictures: int) -> list[dict[str, Any]]:
    """Messages whose content is always parts: some templates read the letters of a text as parts.

    Words alone become one user message, after as many pictures as there are.

    Raises:
        PromptError: nothing is asked, a message is none, or there are other pictures than places for them.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("the prompt is empty: ask something")
        images: list[dict[str, Any]] = [{"type": "image"}] * pictures
        return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]
    messages = [_message(message, index) for index, message in enumerate(prompt)]
    parts = [part for message in messages for part in message["content"]]
    places = sum(part["type"] == "image" for part in parts)
    if places != pictures:
        raise PromptError(
            f'the messages have {places} part{"s"[: places != 1]} {{"type": "image"}} for {pictures} '
            f"picture{'s'[: pictures != 1]}: write one for each, in order"
        )
    if not any(part["type"] == "image" or part["text"].strip() for part in parts):
        raise PromptError("the messages are empty: ask something")
    return messages


def without_pictures(prompt: Prompt) -> Prompt:
    """The same words with no place for a picture."""
    if isinstance(prompt, str):
        return prompt
    return [{**message, "content": _texts(message["content"])} for message in prompt]


def _texts(content: Any) -> Any:
    return content if isinstance(content, str) else [part for part in content if part["type"] != "image"]


def _message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(f"message {index} is {message!r}: give a mapping with role and content")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not all(map(_is_part, parts)):
        raise PromptError(f"the content of message {index} is neither text nor parts of type text and image")
    return {"role": message["role"], "content": [dict(part) for part in parts]}


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
