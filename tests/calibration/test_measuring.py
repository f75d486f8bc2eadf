"""Rules of the measurements."""

import json
from pathlib import Path

import pytest

from calibration.evaluate.intervals import wilson
from calibration.evaluate.measure import auroc, weight_digests
from calibration.evaluate.report import BEGIN, END, insert, tables
from calibration.evaluate.speculation import Tally, speculate

CALIBRATION = Path(__file__).parents[2] / "calibration"


def test_wilson_matches_published_values() -> None:
    """81 of 263: Newcombe (1998), table I, method 3."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_an_impossible_share_is_refused() -> None:
    for right, asked in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            wilson(right, asked)


def test_full_agreement_yields_five_tokens_a_verify() -> None:
    assert speculate([True] * 10, gamma=4) == Tally(drafted=8, accepted=8, verifies=2, produced=10)


def test_no_agreement_yields_one_token_a_verify() -> None:
    assert speculate([False] * 5, gamma=4) == Tally(drafted=4 + 4 + 3 + 2 + 1, accepted=0, verifies=5, produced=5)


def test_a_disagreement_ends_the_round_with_the_verifiers_token() -> None:
    assert speculate([True, True, False, True], gamma=4) == Tally(drafted=5, accepted=3, verifies=2, produced=4)


def test_auroc_counts_ordered_pairs() -> None:
    assert auroc([0.9, 0.8, 0.3], [True, False, True]) == 0.5
    assert auroc([0.9, 0.2], [True, False]) == 1.0
    assert auroc([0.9, 0.2], [True, True]) is None


def test_a_readme_without_marks_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the marks"):
        insert(readme, "table")


def test_the_readme_shows_the_committed_measurement() -> None:
    result = json.loads((CALIBRATION / "evaluation.json").read_text())
    written = (CALIBRATION / "README.md").read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert written.strip() == tables(result)


def test_the_committed_measurement_meets_the_demands() -> None:
    result = json.loads((CALIBRATION / "evaluation.json").read_text())
    share = {
        (name, mode, group): right / asked
        for name, modes in result["models"].items()
        for mode, groups in modes.items()
        for group, (right, asked) in groups.items()
    }
    assert result["questions"] >= 2000
    assert share["cloud", "shown", "all"] >= 0.90
    assert 0.65 <= share["edge", "shown", "all"] <= share["cloud", "shown", "all"] - 0.06
    assert share["cloud", "same_when_blank", "needs no picture"] >= 0.99
    assert share["edge", "same_when_blank", "needs no picture"] >= 0.99
    blind, asked = result["blind"]["needs the picture"]
    for name in ("edge", "cloud"):
        assert (
            share[name, "blank", "needs the picture"]
            <= blind / asked + 0.05
            < share[name, "shown", "needs the picture"]
        )


def test_the_committed_measurement_is_of_the_committed_weights() -> None:
    result = json.loads((CALIBRATION / "evaluation.json").read_text())
    assert result["weights_sha256"] == weight_digests(CALIBRATION / "models")
