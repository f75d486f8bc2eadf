"""Words and messages become what a chat template renders, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from msao_compile.errors import PromptError
from msao_compile.runtime.conversation import conversation, without_pictures

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "what?"}


def test_words_alone_follow_their_pictures() -> None:
    assert conversation("what?", 2) == [{"role": "user", "content": [IMAGE, IMAGE, TEXT]}]


def test_the_text_of_a_message_becomes_a_part() -> None:
    given = [{"role": "system", "content": "be short"}, {"role": "user", "content": [TEXT, IMAGE]}]
    assert conversation(given, 1) == [
        {"role": "system", "content": [{"type": "text", "text": "be short"}]},
        {"role": "user", "content": [TEXT, IMAGE]},
    ]


@pytest.mark.parametrize(
    ("prompt", "pictures", "words"),
    [
        (" \n", 0, "the prompt is empty"),
        ([], 0, "the messages are empty"),
        ([{"role": "user", "content": " "}], 0, "the messages are empty"),
        ([{"role": "user", "content": "what?"}], 1, '0 parts {"type": "image"} for 1 picture:'),
        ([{"role": "user", "content": [IMAGE, TEXT]}], 0, '1 part {"type": "image"} for 0 pictures'),
        (["what?"], 0, "message 0 is 'what?'"),
        ([{"content": "what?"}], 0, "message 0 is"),
        ([{"role": "user", "content": 3}], 0, "the content of message 0"),
        ([{"role": "user", "content": [{"type": "sound"}]}], 0, "the content of message 0"),
        ([{"role": "user", "content": [{"type": "text"}]}], 0, "the content of message 0"),
    ],
)
def test_what_asks_nothing_or_does_not_fit_its_pictures_is_refused(prompt: Any, pictures: int, words: str) -> None:
    with pytest.raises(PromptError) as caught:
        conversation(prompt, pictures)
    assert words in str(caught.value)


def test_without_pictures_the_words_are_the_same() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert without_pictures("What?") == "What?"
    found = without_pictures(messages)
    assert conversation(found, 0) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
    ]
    assert len(parts) == 3  # what was given is left as it is
