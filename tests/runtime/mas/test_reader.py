"""A probe at work reads each request once, on the drafter's device, and gives way to the words where it is too slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from msao_compile.manifest.mas import Mas
from msao_compile.runtime import load
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.mas.reader import ENOUGH, Reader, Seen
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.drafter import Drafter
from tests.manifest.test_mas import GOOD
from tests.runtime.mas.test_probes import watched

QUESTION = "what color is the circle?"


@pytest.fixture(scope="module")
def session(deployment: Path) -> ModelSession:
    return load(deployment).session("edge")


@pytest.fixture(scope="module")
def shown() -> Image.Image:
    picture = Image.new("RGB", (144, 144), (90, 100, 110))
    ImageDraw.Draw(picture).ellipse((6, 6, 42, 42), fill=(215, 40, 40))
    return picture


def fitted(probe: str, needed: float = 0.0, word: int = 3) -> Mas:
    """Pictures are needed with these log odds, 9 less where the prompt has a word; a few cells are kept."""
    probes = [{"name": name, "weights": [0.3, 0.3, 0.4], "coefficients": [needed, 0.0, 0.0, 1.0], "ece": 0.01}
              for name in ("early", "classical", "words")]  # fmt: skip
    thresholds = {**GOOD["thresholds"], "rho": 0.5, "kappa_min": 0.1, "tau_drop": 0.01, "probe": probe}
    words = {"tokens": [word], "weights": [-9.0]}
    return Mas.model_validate({**GOOD, "probes": probes, "thresholds": thresholds, "words": words})


def looked(reader: Reader, picture: Image.Image, clock: Clock) -> tuple[Seen, list[str]]:
    seen, kinds = Seen(), []
    for kind, _, work in reader.pieces(QUESTION, (picture,), seen, clock):
        kinds.append(str(kind))
        work()
    return seen, kinds


def text_ids(session: ModelSession) -> np.ndarray:
    return session.prepare(QUESTION, ()).ids


def test_the_words_are_read_without_a_look(session: ModelSession, shown: Image.Image) -> None:
    reader = Reader(fitted("words"), session)
    seen, kinds = looked(reader, shown, Clock())
    assert kinds == [] and seen.request is None
    assert reader.action(text_ids(session), 1, seen)[0] == "full"
    said = int(text_ids(session)[-3])
    assert Reader(fitted("words", word=said), session).action(text_ids(session), 1, seen)[0] == "drop"
    assert Reader(fitted("words", word=said), session).action(text_ids(session), 0, seen) == ("full", 1.0)


@pytest.mark.parametrize(("probe", "kinds"), [("early", ["prepare", "encode"]), ("classical", ["prepare", "probe"])])
def test_what_a_probe_made_is_not_made_again_for_drafts(
    session: ModelSession, shown: Image.Image, probe: str, kinds: list[str]
) -> None:
    ours, clock = watched(session), Clock()
    reader = Reader(fitted(probe), ours)
    seen, told = looked(reader, shown, clock)
    assert told == kinds and "probe" in clock.modules_ms
    drafter = Drafter(ours, "greedy", SamplingParameters())
    rest = []
    for kind, _, work in drafter.opening(lambda: pytest.fail("prepared twice"), 1, clock, seen):
        rest.append(kind)
        work()
    assert rest == (["prefill"] if probe == "early" else ["encode", "prefill"])
    assert ours.engines["vision_encoder"].runs == 1  # type: ignore[attr-defined]
    plain = Drafter(session, "greedy", SamplingParameters())
    plain.prefill(seen.request, session.encode(seen.request.tensors, Clock()), Clock())  # type: ignore[union-attr, arg-type]
    answer: list[int] = []
    for _ in range(4):
        assert drafter.draft(answer) == plain.draft(answer)
        answer.append(plain.draft(answer).token)


def test_a_drafter_that_prunes_has_a_shorter_prompt_and_takes_its_drafts_back_all_the_same(
    session: ModelSession, shown: Image.Image
) -> None:
    reader = Reader(fitted("early"), session)
    seen, _ = looked(reader, shown, Clock())
    reading = seen.readings.of["image"]
    assert reading.action == "reduce"
    kept = int(np.concatenate([cells.reshape(-1) for cells in reading.kept]).sum())
    whole, pruned = (Drafter(session, "greedy", SamplingParameters()) for _ in range(2))
    for drafter, prunes in ((whole, False), (pruned, True)):
        for _, _, work in drafter.opening(lambda: pytest.fail("prepared twice"), 1, Clock(), seen, prunes):
            work()
    assert pruned.room - whole.room == 9 - kept > 0
    first = pruned.draft([]).token
    answers = [[], [first], [first, 5, 6], [first, 5], [7]]
    again = {tuple(answer): pruned.draft(answer) for answer in answers}
    for answer in reversed(answers):
        found, before = pruned.draft(answer), again[tuple(answer)]
        assert found.token == before.token and found.confidence == pytest.approx(before.confidence, rel=1e-4)


@pytest.mark.parametrize(("share", "left"), [(0.019, "early"), (0.021, "words")])
def test_a_probe_that_takes_more_than_its_share_gives_way_to_the_words(
    session: ModelSession, share: float, left: str
) -> None:
    reader = Reader(fitted("early"), session)
    taken = Clock(modules_ms={"probe": share * 100, "vision_encoder": 80.0, "decoder": 20.0 - share * 100,
                              "cloud/decoder": 900.0})  # fmt: skip
    for _ in range(ENOUGH - 1):
        reader.learn(taken)
    assert reader.name == "early"
    reader.learn(taken)
    assert reader.name == left
    assert bool(list(reader.pieces(QUESTION, (), Seen(), Clock()))) is False
