"""A runtime with a cloud at an address: what it loads, which route it takes as the link is, and how it finds out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pairs
import pytest
import served
import tiny

from msao_compile.bench.shape import Shape
from msao_compile.errors import ContractMismatch, DeploymentError, LinkDown
from msao_compile.runtime import clouds, load
from msao_compile.runtime.answer import Answer
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.wire.kserve.options import LinkOptions

HELPED = [pairs.times("edge", 1.0, 1.0), pairs.times("cloud", 10.0, 11.0)]
"""A cloud so slow that drafts help it where it is near, as its manifest says."""
SLOW = [pairs.times("edge", 30.0, 30.0), pairs.times("cloud", 300.0, 330.0)]
"""One so slow that whatever a busy machine adds to a round trip is little beside it."""
UNHELPED = [pairs.times("edge", 1.0, 1.0), pairs.times("cloud", 0.5, 0.6)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A deployment of a pair that speculates."""

    def write(primitives: list[pairs.Primitives] = SLOW, **more: object) -> Path:
        told = [times.model_dump(mode="json") for times in primitives]
        return pairs.write(tmp_path_factory.mktemp("words"), primitives=told, **more)

    return write


@pytest.fixture(scope="module")
def words(made: Callable[..., Path]) -> Path:
    return made()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloud that is away is tried again at once."""
    monkeypatch.setattr(clouds, "AGAIN_S", 0.05)


def ask(runtime: Runtime, seed: int = 0, route: str = "auto") -> Answer:
    return runtime.generate(tiny.prompt(seed), route=route, max_new_tokens=12)


def test_an_edge_has_no_need_of_the_clouds_modules(words: Path, made: Callable[..., Path]) -> None:
    """They are not even there."""
    bare = made()
    for file in (bare / "cloud").glob("*.onnx"):
        file.unlink()
    wanted = [ask(load(words), seed, "cloud").token_ids for seed in range(3)]
    with served.inside(words) as cloud, load(bare, cloud=f"grpc://127.0.0.1:{cloud.port}") as runtime:
        for route in ("cloud", "speculate", "auto"):
            assert [ask(runtime, seed, route).token_ids for seed in range(3)] == wanted
        with pytest.raises(DeploymentError):
            runtime.session("cloud")
    with pytest.raises(DeploymentError):
        ask(load(bare), route="cloud")


def test_modules_elsewhere_tell_what_they_take_and_do_nothing(words: Path) -> None:
    runtime = load(words)
    shell = runtime.engines.shell(runtime.deployment.model("cloud"))
    assert (
        shell.prepare(tiny.prompt(0), ()).ids.tolist()
        == runtime.session("cloud").prepare(tiny.prompt(0), ()).ids.tolist()
    )
    decoder = shell.decoder
    assert set(decoder.inputs) == {
        "inputs_embeds", "attention_mask", "position_ids", "logits_positions", "write_indices",
        "past_key_values.0.key", "past_key_values.0.value",
    }  # fmt: skip
    for use in (lambda: decoder.run({}), lambda: decoder.new_cache(8)):
        with pytest.raises(DeploymentError, match="decoder runs in the cloud on this route and is not loaded here"):
            use()


@pytest.mark.parametrize(
    ("primitives", "rtt_ms", "route"),
    [(SLOW, 1.0, "speculate"), (HELPED, 300.0, "cloud"), (UNHELPED, 1.0, "cloud")],
)
def test_auto_takes_the_route_that_suits_the_link(
    made: Callable[..., Path], primitives: list[pairs.Primitives], rtt_ms: float, route: str
) -> None:
    folder = made(primitives)
    with (
        served.inside(folder) as cloud,
        served.shaped(cloud.port, Shape(mbps=100.0, rtt_ms=rtt_ms)) as proxy,
        load(folder, cloud=f"grpc://127.0.0.1:{proxy.port}") as runtime,
    ):
        found = ask(runtime)
        assert found.route == route, found.reason
        assert found.verified and f"auto: {route} is expected to take" in found.reason
        assert runtime.clouds is not None
        known = runtime.clouds.adviser(runtime.deployment.speculation[0])
        assert 0.9 * rtt_ms <= known.link.rtt.mean < rtt_ms + 5000  # whoever waits for a thread waits longer
        assert known.answer_tokens.count == 1


def test_auto_without_any_cloud_answers_at_the_edge_soon_and_says_why(words: Path) -> None:
    patient = LinkOptions(connect_s=600.0)
    with load(words, cloud=f"grpc://127.0.0.1:{served.free_port()}", cloud_options=patient) as runtime:
        for seed in range(3):
            began_s = time.perf_counter()
            found = ask(runtime, seed)
            assert time.perf_counter() - began_s < 60
            assert (found.route, found.verified) == ("edge", False)
            assert "no cloud can be counted on" in found.reason
            assert found.token_ids == ask(runtime, seed, "edge").token_ids


@pytest.mark.usefixtures("soon")
def test_auto_goes_to_the_edge_while_a_cloud_is_away_and_back_when_it_is_back(words: Path) -> None:
    port = served.free_port()
    with load(words, cloud=f"grpc://127.0.0.1:{port}") as runtime:
        assert ask(runtime).route == "edge"
        for _ in range(2):
            with served.inside(words, port):
                assert came(runtime, "speculate").verified
            assert not came(runtime, "edge").verified


def came(runtime: Runtime, route: str) -> Answer:
    """The first answer that takes a route."""
    end_s = time.perf_counter() + 120
    while (found := ask(runtime)).route != route:
        assert time.perf_counter() < end_s, found.reason
        time.sleep(0.1)
    return found


@pytest.mark.usefixtures("soon")
def test_nobody_waits_while_a_cloud_is_tried_again(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = LinkOptions(connect_s=600.0)
    with load(words, cloud=f"grpc://127.0.0.1:{served.free_port()}", cloud_options=patient) as runtime:
        ask(runtime)
        assert runtime.clouds is not None
        begun, held = threading.Semaphore(0), asyncio.Event()

        async def slowly(model: str) -> None:
            begun.release()
            await held.wait()
            raise LinkDown("away")

        monkeypatch.setattr(runtime.clouds, "_reached", slowly)
        time.sleep(0.1)
        for _ in range(3):
            assert ask(runtime).route == "edge"  # while the cloud is tried, and does not answer
        assert begun.acquire(timeout=60) and not begun.acquire(blocking=False)
        bridge().loop.call_soon_threadsafe(held.set)
        while not begun.acquire(timeout=0.1):  # that try is over: there is another one
            ask(runtime)


def test_a_route_without_a_fallback_says_that_the_cloud_is_away(made: Callable[..., Path]) -> None:
    with load(made(fallback=()), cloud=f"grpc://127.0.0.1:{served.free_port()}") as runtime:
        for route in ("cloud", "speculate"):
            with pytest.raises(LinkDown):
                ask(runtime, route=route)


def test_another_build_is_refused_at_once(words: Path, made: Callable[..., Path]) -> None:
    other = pairs.write(made().parent / "other", seed=5)
    with served.inside(other) as cloud, load(words, cloud=f"grpc://127.0.0.1:{cloud.port}") as runtime:
        for route in ("cloud", "speculate", "auto", "auto"):
            with pytest.raises(ContractMismatch, match="same build"):
                ask(runtime, route=route)


def test_a_closed_runtime_can_be_used_on(words: Path) -> None:
    with served.inside(words) as cloud:
        runtime = load(words, cloud=f"http://127.0.0.1:{cloud.http_port}")
        first = ask(runtime, route="cloud")
        runtime.close()
        assert ask(runtime, route="cloud").token_ids == first.token_ids
        runtime.close()


def test_who_asks_while_the_cloud_is_greeted_for_the_first_time_waits_for_that_as_well(words: Path) -> None:
    with (
        served.inside(words) as cloud,
        served.shaped(cloud.port, Shape(mbps=100.0, rtt_ms=200.0)) as proxy,
        load(words, cloud=f"grpc://127.0.0.1:{proxy.port}") as runtime,
    ):
        found: list[Answer] = []
        asking = [threading.Thread(target=lambda: found.append(ask(runtime))) for _ in range(3)]
        for one in asking:
            one.start()
        for one in asking:
            one.join()
        assert len(found) == 3 and all(one.verified for one in found), [one.reason for one in found]
