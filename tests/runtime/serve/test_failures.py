"""Real clouds that are killed, stall, are others or want another token, while an edge asks them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pairs
import pytest
import served
import tiny
from building import run

from msao_compile.bench.proxy import Proxy
from msao_compile.bench.shape import Shape
from msao_compile.errors import DeadlineExceeded, LinkDown
from msao_compile.runtime import load
from msao_compile.runtime.answer import Answer, Piece
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.wire.kserve.options import LinkOptions

pytestmark = pytest.mark.whole
SLOW = Shape(mbps=0.05, rtt_ms=20.0)
"""So that a token is 30 ms on its way, and an answer more than a second."""
LIMIT, SEED = 40, 0
KINDS = pytest.mark.parametrize("kind", ["grpc", "http"])
ROUTES = pytest.mark.parametrize("route", ["cloud", "speculate"])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs.write(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its routes to the cloud have no fallback."""
    return pairs.write(tmp_path_factory.mktemp("alone"), fallback=())


@pytest.fixture(scope="module")
def own(words: Path) -> tuple[int, ...]:
    """The cloud model's own answer, which is long enough to be disturbed."""
    found = load(words).generate(tiny.prompt(SEED), route="cloud", max_new_tokens=LIMIT).token_ids
    assert len(found) == LIMIT
    return found


@pytest.fixture(scope="module")
def standby(words: Path) -> Iterator[served.Cloud]:
    """A cloud that nothing happens to."""
    with served.cloud(words) as cloud:
        yield cloud


@contextmanager
def meeting(folder: Path, kind: str = "grpc", **options: Any) -> Iterator[tuple[served.Cloud, Proxy, Runtime]]:
    """A cloud, a slow link to it, and an edge at its other end."""
    with (
        served.cloud(folder) as cloud,
        served.shaped(cloud.port if kind == "grpc" else cloud.http_port, SLOW) as proxy,
        load(folder, cloud=f"{kind}://127.0.0.1:{proxy.port}", **options) as runtime,
    ):
        yield cloud, proxy, runtime


def pieces(runtime: Runtime, route: str) -> Iterator[Piece]:
    return runtime.stream(tiny.prompt(SEED), route=route, max_new_tokens=LIMIT)


def rest(answering: Iterator[Piece]) -> Answer:
    found = [piece.answer for piece in answering if piece.answer is not None]
    return found[0]


def some(answering: Iterator[Piece], count: int = 5) -> None:
    """So many tokens of it."""
    for _ in range(count):
        assert next(answering).answer is None


def kill(cloud: served.Cloud, proxy: Proxy) -> None:
    """What is on its way is lost as well."""
    cloud.process.kill()
    served.later(0.0, proxy.cut)
    cloud.process.wait()


@ROUTES
def test_a_killed_cloud_that_is_there_again_changes_nothing_of_an_answer(
    words: Path, own: tuple[int, ...], standby: served.Cloud, route: str
) -> None:
    with meeting(words) as (cloud, proxy, runtime):
        answering = pieces(runtime, route)
        some(answering)
        proxy.target = ("127.0.0.1", standby.port)  # what is started anew knows nothing
        kill(cloud, proxy)
        found = rest(answering)
    assert found.token_ids == own
    assert found.verified


@ROUTES
@KINDS
def test_a_killed_cloud_that_starts_again_on_its_port_changes_nothing_of_an_answer(
    alone: Path, own: tuple[int, ...], route: str, kind: str
) -> None:
    """Nobody else could finish it: its routes have no fallback."""
    with meeting(alone, kind) as (cloud, proxy, runtime):
        answering = pieces(runtime, route)
        some(answering)
        kill(cloud, proxy)
        with served.cloud(alone, port=cloud.port, http_port=cloud.http_port) as again:
            assert again.process.pid != cloud.process.pid
            found = rest(answering)
    assert (found.token_ids, found.verified) == (own, True)


@ROUTES
def test_a_killed_cloud_that_stays_away_leaves_the_rest_to_the_edge_which_says_so(
    words: Path, own: tuple[int, ...], route: str
) -> None:
    with meeting(words) as (cloud, proxy, runtime):
        answering = pieces(runtime, route)
        some(answering)
        kill(cloud, proxy)
        began_s = time.perf_counter()
        found = rest(answering)
        assert time.perf_counter() - began_s < 60
    assert len(found.token_ids) == LIMIT and found.token_ids[:5] == own[:5]
    assert found.token_ids != own and not found.verified


@ROUTES
def test_without_a_fallback_a_cloud_that_stays_away_is_an_error(alone: Path, route: str) -> None:
    with meeting(alone, cloud_options=LinkOptions(patience_s=0.5)) as (cloud, proxy, runtime):
        answering = pieces(runtime, route)
        some(answering)
        kill(cloud, proxy)
        with pytest.raises(LinkDown):
            rest(answering)


def test_without_a_fallback_a_cloud_has_time_to_start_again(
    alone: Path, own: tuple[int, ...], standby: served.Cloud
) -> None:
    with meeting(alone) as (cloud, proxy, runtime):
        answering = pieces(runtime, "cloud")
        some(answering)
        proxy.target = ("127.0.0.1", served.free_port())
        kill(cloud, proxy)
        served.later(2.0, lambda: setattr(proxy, "target", ("127.0.0.1", standby.port)))
        found = rest(answering)
    assert (found.token_ids, found.verified) == (own, True)


@ROUTES
@pytest.mark.parametrize("fallback", [True, False])
def test_a_stalled_cloud_is_waited_for_as_long_as_the_link_may_be_silent(
    request: pytest.FixtureRequest, own: tuple[int, ...], route: str, fallback: bool
) -> None:
    folder = request.getfixturevalue("words" if fallback else "alone")
    options = LinkOptions(silence_s=0.5, connect_s=1.0, patience_s=2.0)
    with meeting(folder, cloud_options=options) as (cloud, proxy, runtime):
        answering = pieces(runtime, route)
        if route == "cloud":  # that was written long before its tokens are here: the next one stalls
            assert rest(answering).token_ids == own
            answering = pieces(runtime, route)
        else:
            some(answering)
        cloud.process.send_signal(signal.SIGSTOP)
        if route == "speculate":  # of this one nothing that was written arrives any more
            served.later(0.0, proxy.cut)
        began_s = time.perf_counter()
        if fallback:
            found = rest(answering)
            assert len(found.token_ids) == LIMIT and not found.verified
        else:
            with pytest.raises((LinkDown, DeadlineExceeded)):
                rest(answering)
        assert time.perf_counter() - began_s < 60


@ROUTES
@KINDS
@pytest.mark.parametrize("fallback", [True, False])
def test_a_cloud_that_stalls_on_an_open_connection_costs_an_answer_its_patience_and_no_more(
    request: pytest.FixtureRequest, own: tuple[int, ...], route: str, kind: str, fallback: bool
) -> None:
    """Stopped in the middle for good; without a fallback it is waited for three times so long."""
    folder = request.getfixturevalue("words" if fallback else "alone")
    with meeting(folder, kind, cloud_options=LinkOptions(patience_s=1.5)) as (cloud, proxy, runtime):
        answering = pieces(runtime, route)
        some(answering)
        cloud.process.send_signal(signal.SIGSTOP)
        served.later(0.0, proxy.cut)  # all of the answer was written long ago, and is on its way
        began_s = time.perf_counter()
        if fallback:
            found = rest(answering)
            assert len(found.token_ids) == LIMIT and found.token_ids[:5] == own[:5]
            assert not found.verified
        else:
            with pytest.raises((LinkDown, DeadlineExceeded)):
                rest(answering)
        took_s = time.perf_counter() - began_s
    assert (1.0 if fallback else 4.0) < took_s < 12


def test_a_cloud_that_goes_on_after_a_stall_finishes_its_answer(words: Path, own: tuple[int, ...]) -> None:
    with meeting(words, cloud_options=LinkOptions(silence_s=1.0)) as (cloud, _, runtime):
        answering = pieces(runtime, "speculate")
        some(answering)
        cloud.process.send_signal(signal.SIGSTOP)
        served.later(1.5, lambda: cloud.process.send_signal(signal.SIGCONT))
        found = rest(answering)
    assert (found.token_ids, found.verified) == (own, True)


def test_a_cloud_of_another_build_is_the_users_mistake(standby: served.Cloud, tmp_path: Path) -> None:
    other = pairs.write(tmp_path / "other", seed=7)
    for route in ("cloud", "speculate", "auto"):
        ran = run("run", other, "--prompt", "w1 w2", "--cloud", standby.address, "--route", route, "--json")
        assert ran.returncode == 2, ran.stderr
        error = json.loads(ran.stdout)["error"]
        assert error["class"] == "ContractMismatch" and "same build" in error["message"]


def test_a_wrong_token_is_refused_and_the_right_one_let_in(words: Path, tmp_path: Path) -> None:
    for name, content in (("right", "0123456789abcdef"), ("wrong", "fedcba9876543210")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    asked = ["run", words, "--prompt", "w1 w2", "--json", "--cloud"]
    with served.cloud(words, "--token-file", tmp_path / "right") as cloud:
        for kind in (cloud.address, cloud.http):
            for more in (["--cloud-token-file", tmp_path / "wrong"], []):
                ran = run(*asked, kind, *more)
                assert ran.returncode == 4, ran.stdout + ran.stderr
                assert json.loads(ran.stdout)["error"]["class"] == "Refused"
        ran = run(*asked, cloud.address, "--cloud-token-file", tmp_path / "right", "--route", "cloud")
        assert (ran.returncode, json.loads(ran.stdout)["verified"]) == (0, True)


def test_auto_with_no_cloud_to_reach_answers_at_the_edge_and_says_why(words: Path) -> None:
    began_s = time.perf_counter()
    ran = run("run", words, "--prompt", "w1 w2", "--cloud", f"grpc://127.0.0.1:{served.free_port()}", "--json")
    assert time.perf_counter() - began_s < 60
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["route"], told["verified"]) == ("edge", False)
    assert "no cloud can be counted on" in told["reason"]
