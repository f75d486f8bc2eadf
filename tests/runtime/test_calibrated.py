"""`calibrated`: never without its bound, and no cloud for answers that stand by what was fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pairs
import pytest
import served
import tiny

from msao_compile.cli.answer import account
from msao_compile.errors import DeploymentError, LinkDown
from msao_compile.manifest.mas import Mas
from msao_compile.runtime import load
from msao_compile.runtime.answer import Answer
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.calibrated import GUESS_LEFT, Calibration, Packing
from msao_compile.runtime.session import ModelSession

W1, W2 = 1, 2
"""Tokens of the words w1 and w2."""
BOUND = {
    "epsilon": 0.01,
    "mean": 0.001,
    "upper": 0.008,
    "confidence": 0.95,
    "method": "clopper-pearson",
    "samples": 900,
}


def mas(base: float = 0.0, alone: float | None = 0.5, bound: bool = True, **changed: Any) -> dict[str, Any]:
    """A fit: an answer is sure by `base` (log odds) and its words alone; pictures go with `w1`, and w2 needs them."""
    thresholds = {"rho": 1.0, "kappa_min": 0.0, "s_star": 1.0, "tau_drop": 0.2, "tau_alone": alone,
                  "tau_confidence": 0.3, "gamma_max": 4}  # fmt: skip
    found = {
        "task": "words", "drafter": "edge", "verifier": "cloud",
        "probes": [{"name": "words", "weights": [0.0, 0.0, 1.0], "coefficients": [0.0, 0.0, 0.0, 1.0], "ece": 0.01}],
        "words": {"tokens": [W1, W2], "weights": [-4.0, 4.0]},
        "sure": {"words": [W1, W2], "base": [base, 0.0, 0.0, 0.0, 0.0, 0.0], "of_word": [3.0, -3.0],
                 "of_word_least": [0.0, 0.0], "prior_base": 0.0, "prior_of_word": [3.0, -3.0], "ece": 0.01,
                 "prior_ece": 0.01},
        "thresholds": thresholds, "reduction": {"shrink": 4, "quality": 85, "fill": [84, 96, 112]},
        "reduced": ["drop"] if bound else [], "bound": BOUND if bound else None,
        "samples": {"fit_sha256": "0" * 64, "fit": 100, "held_out_sha256": "1" * 64, "held_out": 100},
        "seeds": {"split": 1},
    }  # fmt: skip
    return {**found, **changed}


def fitted(base: float = 0.0, alone: float | None = 0.5, **changed: Any) -> Mas:
    return Mas.model_validate(mas(base, alone, **changed))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ModelSession:
    return tiny.session(tmp_path_factory.mktemp("edge"), "edge", shaken=0.12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "words"


def ask(runtime: Runtime, route: str = "auto", words: str = "w5 w6") -> Answer:
    return runtime.generate(words, route=route, max_new_tokens=12)


def test_nothing_fitted_or_shown_is_no_calibration(session: ModelSession) -> None:
    for given in (None, fitted(alone=None, bound=False)):
        with pytest.raises(
            DeploymentError, match="nothing is what was shown of the loss: allow more, or run `msao-compile fit"
        ):
            Calibration(given, 0.01, session)


def test_words_in_the_place_of_a_probe_that_was_too_slow_send_no_thumbnails(session: ModelSession) -> None:
    """`stages.fit.outcomes` counts what they lose where what they take for needed crosses whole."""
    told = mas(reduced=["drop", "thumbnail"])
    told["thresholds"]["probe"] = "classical"
    fit = Calibration(Mas.model_validate(told), 0.01, session)
    assert fit.read("w2", 1).rung == "thumbnail"
    fit.reader.name = "words"
    assert fit.read("w2", 1).rung == "full" and fit.read("w1", 1).rung == "drop"


def test_less_loss_than_was_shown_cannot_be_asked_for(session: ModelSession) -> None:
    with pytest.raises(DeploymentError, match=r"calibrated\(0\.007\) is asked for and 0\.008 is what was shown"):
        Calibration(fitted(), 0.007, session)
    assert Calibration(fitted(), 0.008, session).mas.bound is not None


@pytest.mark.parametrize(
    ("words", "pictures", "drop"), [("w1 w5", 1, True), ("w2 w5", 1, False), ("w5", 1, False), ("w1 w5", 0, False)]
)
def test_pictures_go_where_the_words_do_not_need_them(
    session: ModelSession, words: str, pictures: int, drop: bool
) -> None:
    found = Calibration(fitted(), 0.01, session).read(words, pictures)
    assert found.rung == ("drop" if drop else "full")
    assert found.judge is not None and not found.judge.first


def test_pictures_stay_where_dropping_them_was_not_shown(session: ModelSession) -> None:
    assert Calibration(fitted(reduced=[]), 0.01, session).read("w1", 1).rung == "full"
    other = [{**mas()["probes"][0], "name": "early"}]
    assert Calibration(fitted(probes=other), 0.01, session).read("w1", 1).rung == "full"


@pytest.mark.parametrize(("words", "enough"), [("w1", True), ("w5", True), ("w2", False), ("w1 w2", True)])
def test_an_answer_stands_by_its_words_and_threshold(session: ModelSession, words: str, enough: bool) -> None:
    judge = Calibration(fitted(), 0.01, session).read(words, 0).judge
    assert judge is not None
    assert judge.enough([0.9, 0.8]) is enough
    assert judge.hopeless([0.9]) is not enough


def test_no_threshold_is_no_judge(session: ModelSession) -> None:
    assert Calibration(fitted(alone=None), 0.01, session).read("w1", 0).judge is None


@pytest.mark.parametrize(("words", "stands"), [("w1", 0.95), ("w5", 0.5), ("w2", 0.05)])
def test_the_words_tell_how_likely_the_edges_answer_stands(session: ModelSession, words: str, stands: float) -> None:
    assert Calibration(fitted(), 0.01, session).read(words, 0).stands == pytest.approx(stands, abs=0.003)
    assert Calibration(fitted(alone=None), 0.01, session).read(words, 0).stands == 0.0


def test_what_reducing_pictures_took_and_left_is_foretold_by_what_was_seen() -> None:
    packing = Packing()
    assert packing.foretold("full", 900) == (900, 0.0) and packing.foretold("drop", 900) == (0, 0.0)
    assert packing.foretold("thumbnail", 900) == (900 * GUESS_LEFT, 0.0)
    packing.learn("thumbnail", 1000, 100, 700.0)  # loads what it needs
    assert packing.foretold("thumbnail", 900) == (90, 0.0)
    packing.learn("thumbnail", 1000, 100, 7.0)
    assert packing.foretold("thumbnail", 900) == (90, 7.0)
    assert packing.foretold("regions", 900) == (900 * GUESS_LEFT, 0.0)


def test_a_runtime_that_may_not_lose_anything_is_strict_and_one_that_may_needs_the_bound(folder: Path) -> None:
    pairs.write(folder, mas=mas(alone=None, bound=False))
    assert ask(load(folder), "speculate").verified
    with pytest.raises(DeploymentError, match="run `msao-compile fit"):
        ask(load(folder, calibrated=0.01), "speculate")
    pairs.write(folder)
    with pytest.raises(DeploymentError, match="nothing is what was shown .* run `msao-compile fit"):
        load(folder, calibrated=0.01)
    pairs.write(folder, mas=mas(base=9.0))
    assert ask(load(folder), "speculate").verified
    with pytest.raises(DeploymentError, match="is what was shown"):
        load(folder, calibrated=0.001)


def test_a_bound_is_kept_to_without_a_cloud_in_another_process_too(folder: Path) -> None:
    """By itself `auto` is the edge there, whose answers nothing bounds."""
    pairs.write(folder, mas=mas(base=-9.0))
    assert ask(load(folder), "auto").route == "edge"
    found = ask(load(folder, calibrated=0.01), "auto")
    assert (found.route, found.verified) == ("speculate", True)


def test_answers_that_stand_need_no_cloud_and_are_told_as_unverified(folder: Path) -> None:
    """The cloud's time is dear here, so the edge is asked first; there is no cloud that could be asked."""
    times = [pairs.times("edge", 1.0, 1.0), pairs.times("cloud", 40.0, 44.0, prefill_ms=1000.0)]
    told = [one.model_dump(mode="json") for one in times]
    pairs.write(folder, mas=mas(base=9.0), primitives=told, fallback=())
    with load(folder, cloud=f"grpc://127.0.0.1:{served.free_port()}", calibrated=0.01) as runtime:
        found = ask(runtime, "speculate")
        assert found.token_ids == ask(runtime, "edge").token_ids
        assert (found.verified, found.timing.bytes_up) == (False, 0)
        assert found.drafts is not None and found.drafts["unverified"] == len(found.token_ids)
        assert found.alone and found.prompt_tokens  # the edge's, since the cloud was not asked
        assert "the edge is sure of its own answer" in account(found)
        with pytest.raises(LinkDown):  # asked for by name: the cloud's own answer it is
            ask(runtime, "cloud")


def test_answers_that_do_not_stand_are_the_clouds(folder: Path) -> None:
    pairs.write(folder, mas=mas(base=-9.0))
    with load(folder, calibrated=0.01) as runtime:
        for words in ("w5 w6", "w7 w8 w9"):
            found = ask(runtime, "speculate", words)
            assert found.verified and found.token_ids == ask(runtime, "cloud", words).token_ids
            assert not found.alone
