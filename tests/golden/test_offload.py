"""Drafted by the shipped edge model and verified by the shipped cloud model over a link that fails in every way: the
answer is the cloud model's own, token for token, on every held-out question."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from asking import EVERYTHING, Asker, alone, at_once, faulty, in_virtual_time, plan_for

from calibration.shapes.dataset import Sample, samples
from calibration.shapes.questions import KINDS
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.routes import crossing
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession, Request
from msao_compile.runtime.wire.message import Message

pytestmark = pytest.mark.golden
QUESTIONS, LIMIT, LENGTHS = 510, 24, (1, 4, 8)
WARM = 3.0  # below it the cloud model is so sure that a draw is its greedy answer


@dataclass(frozen=True)
class Prepared:
    """One question: what crosses, what the drafter sees, and what the cloud model alone says of it."""

    sample: Sample
    crosses: Message
    request: Request
    greedy: list[int]
    drawn: list[int]


@pytest.fixture(scope="module")
def models(runtime: Runtime) -> tuple[ModelSession, ModelSession]:
    return runtime.session("edge"), runtime.session("cloud")


@pytest.fixture(scope="module")
def prepared(models: tuple[ModelSession, ModelSession]) -> list[Prepared]:
    """Both ways to send a question in turn: its picture as a file, and what the encoder made of it."""
    edge, cloud = models
    found = []
    for index, sample in enumerate(samples("heldout", QUESTIONS)):
        request = cloud.prepare(sample.question, [sample.image])
        if index % 2:
            crosses = crossing(cloud, request, {"vision_encoder"}, Clock())
        else:
            file = io.BytesIO()
            sample.image.save(file, "PNG")
            fields = {"form": "prompt", "prompt": sample.question}
            crosses = Message("prefill", fields, {"picture000": np.frombuffer(file.getvalue(), np.uint8)})
        own = alone(cloud, request, LIMIT, [SamplingParameters(), drawing(index)])
        found.append(Prepared(sample, crosses, edge.prepare(sample.question, [sample.image]), *own))
    return found


def drawing(index: int) -> SamplingParameters:
    """At a temperature, with a seed of its own."""
    return SamplingParameters(temperature=WARM, seed=index)


async def drafted(asker: Asker, cloud: ModelSession, one: Prepared, sampling: SamplingParameters, drafts: int) -> bool:
    """Whether the drafted answer is the cloud model's own."""
    rule = "greedy" if sampling.greedy else "gumbel"
    model = cloud.model
    fields = {**one.crosses.fields, "modules": dict(model.components), "tokenizer": model.tokenizer_digest,
              "limit": LIMIT, "sampling": vars(sampling), "rule": rule}  # fmt: skip
    message = Message("prefill", fields, one.crosses.tensors)
    asked = await asker.drafted(message, one.request, plan_for(asker.edge, drafts, LIMIT), sampling)
    assert asked.account.unverified == 0
    return asked.tokens == (one.greedy if sampling.greedy else one.drawn)


def test_held_out_questions_are_of_every_kind_and_the_answers_differ(prepared: list[Prepared]) -> None:
    kinds = Counter(one.sample.kind for one in prepared)
    assert set(kinds) == set(KINDS)
    assert len(prepared) >= 500
    assert len({tuple(one.greedy) for one in prepared}) > 100
    assert sum(one.greedy != one.drawn for one in prepared) > 250


@pytest.mark.parametrize("drafts", LENGTHS)
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_answers_are_the_clouds_own_under_faults(
    models: tuple[ModelSession, ModelSession], prepared: list[Prepared], drawn: bool, drafts: int
) -> None:
    async def run() -> None:
        edge, cloud = models
        link, _ = faulty(cloud, EVERYTHING, seed=drafts + 90 * drawn, sessions=16, idle_ms=500.0)
        asker = Asker(edge, link)

        async def one(index: int) -> bool:
            sampling = drawing(index) if drawn else SamplingParameters()
            return await drafted(asker, cloud, prepared[index], sampling, drafts)

        same = await at_once(QUESTIONS, one)
        assert [prepared[index].sample.id for index in range(QUESTIONS) if not same[index]] == []
        assert sum(link.seen.values()) > 300

    in_virtual_time(run())
