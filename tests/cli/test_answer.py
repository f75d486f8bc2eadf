"""`run`: the answer on stdout, the account on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msao_compile.cli.answer import account, show
from msao_compile.errors import StageError
from msao_compile.runtime.answer import Answer, Piece, Timing
from msao_compile.runtime.policy import Wishes

from .conftest import Cli

TIMING = Timing(38.2, 6.14, 118.0, {"vision_encoder": 21.3, "embed_tokens": 0.0, "decoder": 14.1}, 0, 0)
ANSWER = Answer("a red circle", tuple(range(14)), "edge", "no cloud", False, TIMING)


class Spoken:
    """Stands where the runtime stands, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.loaded: dict[str, Any] = {}
        self.closed = False

    def __enter__(self) -> Spoken:
        return self

    def __exit__(self, *raised: object) -> None:
        self.closed = True

    def stream(self, prompt: str, **options: Any) -> Iterator[Piece]:
        """The answer in two pieces."""
        self.asked = {"prompt": prompt, **options}
        yield Piece("a red ")
        yield Piece("circle", ANSWER)

    def generate(self, prompt: str, **options: Any) -> Answer:
        """The answer at once."""
        self.asked = {"prompt": prompt, **options}
        return ANSWER


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Spoken:
    """What `load` gives."""
    spoken = Spoken()

    def load(folder: Path, **options: Any) -> Spoken:
        spoken.loaded = options
        return spoken

    monkeypatch.setattr("msao_compile.runtime.load", load, raising=False)
    return spoken


def test_the_account_says_where_the_time_went() -> None:
    assert account(ANSWER) == (
        "edge · first token 38 ms (vision_encoder 21, embed_tokens 0, decoder 14) · 6.1 ms/token · 14 tokens · 0 B sent"
    )


def test_the_account_says_why_the_edge_answered_where_nobody_asked_for_it() -> None:
    alone = replace(ANSWER, reason="auto: edge takes 17 ms, and no cloud can be counted on")
    assert account(alone).startswith("edge, not verified: edge takes 17 ms, and no cloud can be counted on · ")
    assert account(replace(alone, verified=True)).startswith("edge · ")
    assert account(replace(alone, reason="asked for")).startswith("edge · ")


def test_the_account_of_one_token_has_no_time_per_token() -> None:
    timing = Timing(38.2, None, 38.2, {}, 245_900, 310)
    answer = Answer("a", (1,), "split", "", True, timing)
    assert account(answer) == "split · first token 38 ms · 1 token · 246 kB sent, 310 B received"


def test_the_answer_alone_is_on_stdout(cli: Cli, runtime: Spoken) -> None:
    ran = cli(
        "run",
        "d",
        "--prompt",
        "what is it?",
        "--image",
        "p.png",
        "--route",
        "edge",
        "--max-new-tokens",
        "5",
        "--task",
        "t",
    )
    assert (ran.code, ran.out) == (0, "a red circle\n")
    assert ran.err == account(ANSWER) + "\n"
    assert runtime.asked == {
        "prompt": "what is it?",
        "image": "p.png",
        "route": "edge",
        "task": "t",
        "max_new_tokens": 5,
        "temperature": 0.0,
        "seed": 0,
    }


def test_quiet_leaves_out_the_account(cli: Cli, runtime: Spoken) -> None:
    assert cli("run", "d", "--prompt", "x", "--quiet").err == ""


def test_as_json_the_whole_answer_is_one_object(cli: Cli, runtime: Spoken) -> None:
    facts = cli("run", "d", "--prompt", "x", "--json").json
    assert (facts["text"], facts["route"], facts["timing"]["modules_ms"]["decoder"]) == ("a red circle", "edge", 14.1)
    assert runtime.asked["image"] is None


def test_a_stream_without_an_answer_is_an_error() -> None:
    with pytest.raises(StageError, match="ended without an answer"):
        show([Piece("a")])


@pytest.mark.parametrize("route", ["clowd", "text"])
def test_a_route_that_no_build_makes_is_refused_with_those_that_are(cli: Cli, route: str) -> None:
    ran = cli("run", "d", "--prompt", "x", "--route", route)
    assert ran.code == 2
    assert "one of 'auto', 'edge', 'cloud', 'split', 'speculate';" in ran.err


def test_a_folder_without_a_manifest_is_wrong_input(cli: Cli, tmp_path: object) -> None:
    ran = cli("run", tmp_path, "--prompt", "x")
    assert ran.code == 2
    assert "no deployment.json" in ran.err


def test_an_empty_picture_path_stays_empty(cli: Cli, runtime: Spoken) -> None:
    cli("run", "d", "--prompt", "x", "--image", "")
    assert runtime.asked["image"] == ""


def test_nothing_said_of_a_cloud_asks_for_none_and_the_runtime_is_closed(cli: Cli, runtime: Spoken) -> None:
    cli("run", "d", "--prompt", "x")
    assert runtime.loaded == {"cloud": None, "cloud_options": None, "calibrated": None, "wishes": Wishes()}
    assert runtime.closed


def test_a_cloud_its_token_and_the_loss_allowed_are_handed_on(cli: Cli, runtime: Spoken, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    asked = ["run", "d", "--prompt", "x", "--cloud", "grpc://c:1", "--calibrated", 0.01, "--cloud-token-file"]
    cli(*asked, tmp_path / "token")
    options = runtime.loaded["cloud_options"]
    assert (runtime.loaded["cloud"], runtime.loaded["calibrated"]) == ("grpc://c:1", 0.01)
    assert (options.token, options.roots, options.patience_s) == ("secret", None, 30.0)
    cli(*asked, tmp_path / "empty")
    assert runtime.loaded["cloud_options"].token is None
    cli("run", "d", "--prompt", "x", "--cloud", "grpc://c:1", "--cloud-patience", 2.5)
    assert runtime.loaded["cloud_options"].patience_s == 2.5


def test_what_is_weighed_beside_time_is_handed_on(cli: Cli, runtime: Spoken) -> None:
    asked = ("run", "d", "--prompt", "x", "--cloud", "grpc://c:1")
    cli(*asked, "--wish", "within=300", "--wish", "cloud=0.5", "--wish", "byte=0.001")
    assert runtime.loaded["wishes"] == Wishes(deadline_ms=300.0, cloud_price=0.5, byte_price=0.001)
    cli(*asked, "--wish", "edge=2")
    assert runtime.loaded["wishes"] == Wishes(edge_price=2.0)


@pytest.mark.parametrize(
    "wishes", [["cloud"], ["cloud="], ["cloud=-1"], ["cloud=nan"], ["fast=1"], ["cloud=1", "cloud=2"]]
)
def test_a_wish_that_cannot_be_read_is_wrong_input(cli: Cli, runtime: Spoken, wishes: list[str]) -> None:
    given = [word for wish in wishes for word in ("--wish", wish)]
    ran = cli("run", "d", "--prompt", "x", "--cloud", "grpc://c:1", *given)
    assert ran.code == 2 and "give each of within, cloud, edge, byte once at most" in ran.err


def test_what_belongs_to_a_cloud_is_refused_without_one(cli: Cli, runtime: Spoken, tmp_path: Path) -> None:
    for option in ("--cloud-token-file", "--cloud-roots"):
        ran = cli("run", "d", "--prompt", "x", option, tmp_path / "file")
        assert ran.code == 2 and "give --cloud as well" in ran.err
    assert cli("run", "d", "--prompt", "x", "--cloud-patience", 5).code == 2
    assert cli("run", "d", "--prompt", "x", "--wish", "cloud=1").code == 2
    ran = cli("run", "d", "--prompt", "x", "--cloud", "grpc://c:1", "--cloud-token-file", tmp_path / "none")
    assert ran.code == 2 and "cannot be read as text" in ran.err


@pytest.mark.parametrize("content", ["one\ntwo", "with blanks in it", "\u00e9t\u00e9"])
def test_a_token_that_no_header_carries_is_wrong_input(cli: Cli, runtime: Spoken, content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content, encoding="utf-8")
    ran = cli("run", "d", "--prompt", "x", "--cloud", "grpc://c:1", "--cloud-token-file", tmp_path / "token")
    assert ran.code == 2 and "give one token" in ran.err and str(tmp_path / "token") in ran.err


@pytest.mark.parametrize(
    ("route", "verified", "drafts", "told"),
    [
        ("cloud", False, None, "cloud, not verified: the edge model finished it · "),
        ("cloud", True, None, "cloud · "),
        ("speculate", True, {"drafted": 8, "accepted": 6, "rounds": 1, "unverified": 0},
         "speculate, verified by the cloud model, 6 of 8 drafts kept in 1 round · "),
        ("speculate", False, {"drafted": 8, "accepted": 6, "rounds": 2, "unverified": 3},
         "speculate, not verified, 6 of 8 drafts kept in 2 rounds · "),
    ],
)  # fmt: skip
def test_the_account_says_whose_tokens_these_are(
    route: str, verified: bool, drafts: dict[str, int] | None, told: str
) -> None:
    assert account(replace(ANSWER, route=route, verified=verified, drafts=drafts)).startswith(told)
