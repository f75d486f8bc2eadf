"""What each side sees: in `strict` the cloud everything, in `calibrated` what was shown to be enough."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msao_compile.errors import InputError
from msao_compile.manifest.mas import Mas
from msao_compile.runtime import load
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.calibrated import Calibration, Packing, Reduced
from msao_compile.runtime.cloud.opening import prepared
from msao_compile.runtime.mas.payload import Form, grown
from msao_compile.runtime.mas.reader import Reader, Seen
from msao_compile.runtime.policy import Decision, Wishes
from msao_compile.runtime.preprocess import decode
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.views import Question, View, calibrated, reduced, strict
from msao_compile.runtime.wire.contract import Prefill
from msao_compile.runtime.wire.message import Message
from tests.manifest.test_mas import BOUND
from tests.runtime.mas.test_reader import fitted

FORM = Form(4, 85, (84, 96, 112))


@pytest.fixture(scope="module")
def session(deployment: Path) -> ModelSession:
    return load(deployment).session("edge")


def photo(side: int = 160) -> bytes:
    """A picture that is smaller as a thumbnail, and has a corner with more in it."""
    values = np.random.default_rng(3).normal(0, 6, (side, side, 3)) + np.linspace(60, 160, side)[:, None, None]
    values[: side // 3, : side // 3] += np.random.default_rng(4).normal(0, 60, (side // 3, side // 3, 3))
    file = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def question(*pictures: Any, words: str = "what is it?") -> Question:
    return Question(words, pictures, 8, SamplingParameters())


def shown_fit(session: ModelSession, probe: str, reduced: list[str], **changed: Any) -> Calibration:
    whole = fitted(probe, **changed).model_dump(mode="json")
    thresholds = {**whole["thresholds"], "tau_alone": 0.9}
    mas = Mas.model_validate({**whole, "thresholds": thresholds, "reduced": reduced, "bound": BOUND})
    return Calibration(mas, 0.01, session)


def calibrated_view(
    one: Question, fit: Calibration, seen: Seen, packing: Packing, **taken: Any
) -> tuple[View, Reduced]:
    """What is seen where the least is taken that may be, unless `taken` says something else."""
    left = fit.read(one.prompt, len(one.pictures), seen)
    decision = Decision("speculate", taken.pop("payload", left.rung), "said", **taken)
    return calibrated(one, fit, left, decision, packing, seen), left


def test_without_a_fit_or_a_picture_both_sides_see_everything(session: ModelSession) -> None:
    one = question(photo())
    view = strict(one, None)
    assert view.here is view.there is one and view.reader is None
    text = question()
    assert strict(text, Reader(fitted("early"), session)).there is text


def test_in_strict_the_cloud_sees_all_of_what_the_drafter_leaves_out(session: ModelSession) -> None:
    said = int(session.prepare("what is it?", ()).ids[-3])
    one = question(photo())
    view = strict(one, Reader(fitted("words", word=said), session))
    assert view.here.pictures == () and view.there is one and not view.prunes and view.lessened
    assert view.why.endswith("not drafted from")
    view = strict(one, Reader(fitted("early"), session))
    assert view.here is view.there is one and view.prunes and view.lessened
    assert view.why == "drafted from what probe early keeps of the pictures"
    view = strict(one, Reader(fitted("words"), session))
    assert view.here is one and view.why.endswith(": drafted from") and not view.lessened


def test_in_calibrated_what_is_not_needed_is_seen_by_neither(session: ModelSession) -> None:
    said = int(session.prepare("what is it?", ()).ids[-3])
    one = question(photo())
    view, left = calibrated_view(one, shown_fit(session, "words", ["drop"], word=said), Seen(), Packing())
    assert view.here.pictures == view.there.pictures == () and left.rung == view.payload == "drop"
    assert view.why == f"pictures needed with a chance of {left.needed:.2f}: left out"
    assert view.alone is not None and not view.alone.picture_given  # type: ignore[attr-defined]
    view, left = calibrated_view(one, shown_fit(session, "words", [], word=said), Seen(), Packing())
    assert view.there is one and left.rung == "full" and view.why.endswith("sent whole")


def test_of_what_is_not_needed_the_edge_judges_its_own_answer_to_the_words_whatever_the_cloud_sees(
    session: ModelSession,
) -> None:
    """Where nothing can be counted on, or the link is no hindrance, the picture crosses whole all the same."""
    said, one = int(session.prepare("what is it?", ()).ids[-3]), question(photo())
    view, left = calibrated_view(
        one, shown_fit(session, "words", ["drop"], word=said), Seen(), Packing(), payload="full"
    )
    assert (left.rung, view.payload, view.there) == ("drop", "full", one)
    assert view.here.pictures == () and not view.alone.picture_given and view.lessened  # type: ignore[union-attr]


def test_pictures_that_no_rung_makes_smaller_are_told_as_sent_whole(session: ModelSession) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (1, 2, 3)).save(file, "PNG", optimize=True)
    one = question(file.getvalue())
    view, left = calibrated_view(one, shown_fit(session, "words", ["thumbnail"]), Seen(), Packing())
    assert left.rung == "thumbnail" and view.there is one
    assert view.payload == "full" and view.why.endswith("sent whole")


def test_a_picture_without_words_is_nothing_that_a_probe_reads(session: ModelSession) -> None:
    alone = [{"role": "user", "content": [{"type": "image"}]}]
    one = Question(alone, (photo(),), 8, SamplingParameters())
    view = strict(one, Reader(fitted("early"), session))
    assert view.here is view.there is one and not view.lessened
    view, left = calibrated_view(one, shown_fit(session, "words", ["drop", "thumbnail"]), Seen(), Packing())
    assert view.there is one and left.judge is None and left.rung == "full"


@pytest.mark.parametrize("wrong", [5, "/none.png", "long" * 2000, np.zeros((4, 4, 3)), bytearray(b"x"), None])
def test_what_is_no_picture_has_no_size(wrong: Any) -> None:
    assert question(wrong).sizes == [0]


@pytest.mark.parametrize("first", [True, False])
def test_the_judge_is_told_whether_the_edge_is_asked_first_and_what_it_sees(session: ModelSession, first: bool) -> None:
    fit = shown_fit(session, "words", [])
    view, _ = calibrated_view(question(photo()), fit, Seen(), Packing(), first=first)
    assert view.alone is not None and view.alone.first is first
    assert view.alone.picture_given  # type: ignore[attr-defined]
    view, _ = calibrated_view(question(), fit, Seen(), Packing(), first=first)
    assert view.why == "" and not view.alone.picture_given  # type: ignore[union-attr]


@pytest.mark.parametrize(("shown", "rung"), [
    (["regions"], "regions"), (["thumbnail"], "thumbnail"), (["regions", "thumbnail"], "regions"), ([], "full"),
])  # fmt: skip
def test_less_crosses_of_what_is_needed_where_that_was_shown_and_the_drafter_sees_all(
    session: ModelSession, shown: list[str], rung: str
) -> None:
    one, seen = question(photo()), Seen()
    fit = shown_fit(session, "classical", shown)
    for _, _, work in fit.reader.pieces(one.prompt, one.pictures, seen, Clock()):
        work()
    packing = Packing()
    view, left = calibrated_view(one, fit, seen, packing)
    assert left.rung == view.payload == rung and view.here is one
    sizes = [len(bytes(picture)) for picture in view.there.pictures]  # type: ignore[arg-type]
    assert (sizes[0] < len(photo())) is (rung != "full")
    assert view.there.shown == ((160, 160) if rung == "thumbnail" else ())
    assert packing.foretold(rung, len(photo()))[0] == sizes[0]  # type: ignore[arg-type]
    whole, _ = calibrated_view(one, fit, seen, packing, payload="full")
    assert whole.there is one and whole.payload == "full"


def test_the_cloud_sees_a_thumbnail_in_the_size_that_the_picture_had(session: ModelSession) -> None:
    one = reduced(question(photo(), photo(64)), "thumbnail", Seen(), FORM)
    assert one.shown == (160, 160, 64, 64)
    files = {f"picture{place:03}": np.frombuffer(file, np.uint8) for place, file in enumerate(one.pictures)}  # type: ignore[arg-type]
    opening = prepared(session, prefill(session, shown=one.shown), Message("prefill", {}, files), Clock(), 10**6)
    pictures = [grown(decode(file), size) for file, size in zip(one.pictures, ((160, 160), (64, 64)), strict=True)]
    wanted = session.prepare("what is it?", pictures)
    assert opening.request is not None
    assert np.array_equal(opening.request.ids, wanted.ids)
    assert all(np.array_equal(opening.request.tensors[name], value) for name, value in wanted.tensors.items())


@pytest.mark.parametrize(("shown", "said"), [
    ((8, 8, 8, 8), "shown has 4 sides for 1 pictures"), ((2000, 2000), "seen as 2000 x 2000: send 1 to 1000000 pixels"),
    ((8, 0), "seen as 8 x 0"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused(session: ModelSession, shown: Any, said: str) -> None:
    files = {"picture000": np.frombuffer(photo(), np.uint8)}
    with pytest.raises(InputError, match=said):
        prepared(session, prefill(session, shown=shown), Message("prefill", {}, files), Clock(), 10**6)


def prefill(session: ModelSession, **fields: Any) -> Prefill:
    model = session.model
    given = {"session": "session-a", "form": "prompt", "prompt": "what is it?", "modules": dict(model.components),
             "tokenizer": model.tokenizer_digest, "limit": 8}  # fmt: skip
    return Prefill.model_validate({**given, **fields})


def test_a_runtime_sends_thumbnails_and_drafts_from_the_whole(copy: Path) -> None:
    """One model on both sides here: what the cloud says of the thumbnail is what it says when it is asked about it."""
    path = copy / "deployment.json"
    content = json.loads(path.read_text())
    task = content["tasks"][0]["name"]
    name = content["models"][0]["name"]
    speculation = {"task": task, "drafter": name, "verifier": name, "rule": "greedy", "draft_tokens": 4,
                   "confidence": 0.1, "confidence_min": 0.05, "confidence_max": 0.9,
                   "acceptance": {"from_confidence": [0.0], "chance": [0.9]}}  # fmt: skip
    route = {**content["routes"][0], "name": "speculate", "task": task, "model": name, "fallback": [],
             "hosts": dict.fromkeys(content["models"][0]["components"], "cloud")}  # fmt: skip
    mas = {**fitted("classical").model_dump(mode="json"), "task": task, "drafter": name, "verifier": name,
           "reduced": ["thumbnail"], "bound": BOUND}  # fmt: skip
    content.update(speculation=[speculation], routes=[*content["routes"], route], mas=mas, schema_version="2.4")
    path.write_text(json.dumps(content))
    runtime = load(copy, calibrated=0.01, wishes=Wishes(byte_price=0.01))
    less = reduced(question(photo()), "thumbnail", Seen(), FORM)
    pictures = [grown(decode(file), (160, 160)) for file in less.pictures]
    asked = {"route": "speculate", "max_new_tokens": 8, "ignore_eos": True}
    found = runtime.generate("what is it?", [photo()], **asked)
    assert found.token_ids == load(copy).generate("what is it?", pictures, route="edge", max_new_tokens=8,
                                                  ignore_eos=True).token_ids  # fmt: skip
    assert found.timing.bytes_up < len(photo()) and "probe" in found.timing.modules_ms
    assert found.payload == "thumbnail" and found.reason.endswith(": sent as thumbnails")
    whole = load(copy, calibrated=0.01).generate("what is it?", [photo()], **asked)
    assert whole.payload == "full" and whole.reason.endswith(": sent whole")  # nothing is quicker than this link
    strictly = load(copy).generate("what is it?", [photo()], **asked)
    assert strictly.drafts is not None and not strictly.drafts["unverified"]
    assert strictly.timing.bytes_up > len(photo())
    assert strictly.token_ids == load(copy).generate("what is it?", [photo()], route="edge", max_new_tokens=8,
                                                     ignore_eos=True).token_ids  # fmt: skip
