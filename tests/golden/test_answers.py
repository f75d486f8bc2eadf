"""Token for token what transformers answers, on held-out questions, whichever way the request takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from calibration.shapes.dataset import Sample
from msao_compile.runtime.api import Runtime

from .conftest import NEW_TOKENS, QUESTIONS, Tokens

pytestmark = pytest.mark.golden


@pytest.mark.parametrize(("route", "model"), [("edge", "edge"), ("cloud", "cloud"), ("split", "cloud")])
def test_greedy_tokens_equal_transformers_on_every_question(
    runtime: Runtime, greedy: Callable[[str], list[Tokens]], questions: list[Sample], route: str, model: str
) -> None:
    wanted = greedy(model)
    answers = [
        runtime.generate(row.question, image=row.image, route=route, max_new_tokens=NEW_TOKENS) for row in questions
    ]
    for row, answer, tokens in zip(questions, answers, wanted, strict=True):
        assert answer.token_ids == tokens, row.id
    assert len(answers) == QUESTIONS >= 200
    assert len(set(wanted)) > 50  # the models do look at question and picture


def test_answers_are_the_words_of_their_tokens_and_stop_by_themselves(
    runtime: Runtime, greedy: Callable[[str], list[Tokens]], questions: list[Sample]
) -> None:
    tokenizer = runtime.session("edge").tokenizer
    assert not {token for tokens in greedy("edge") for token in tokens} & set(tokenizer.eos_token_ids)
    assert sum(len(tokens) < NEW_TOKENS for tokens in greedy("edge")) > QUESTIONS / 2
    row, tokens = questions[0], greedy("edge")[0]
    answer = runtime.generate(row.question, image=row.image, route="edge", max_new_tokens=NEW_TOKENS)
    assert answer.text == tokenizer.decode(list(tokens))


def test_a_draw_follows_its_seed_and_leaves_the_greedy_path(runtime: Runtime, questions: list[Sample]) -> None:
    def drawn(seed: int, temperature: float = 2.0) -> list[Tokens]:
        options = {"route": "edge", "temperature": temperature, "seed": seed}
        return [runtime.generate(row.question, image=row.image, **options).token_ids for row in questions[:6]]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(1)), tuple(drawn(2)), tuple(drawn(1, temperature=0.0))}) == 3
