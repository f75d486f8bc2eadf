"""A cloud server as a process: it drains, and a client survives its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from answering import begun, prefill, said
from building import ROOT

from msao_compile.errors import LinkDown
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.kserve.connect import connect, greet
from msao_compile.runtime.wire.kserve.options import LinkOptions


@contextmanager
def process(port: int = 0, drain_s: float = 60.0) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """The process and its ports."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, str(Path(__file__).with_name("cloud_process.py")), str(port), str(drain_s)]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as started:
        try:
            assert started.stdout is not None
            grpc, http = json.loads(started.stdout.readline())
            yield started, grpc, http
        finally:
            started.kill()


def ready(http: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready", timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_sigterm_turns_readiness_off_finishes_what_runs_and_exits_0() -> None:
    async def whole(served: subprocess.Popen[str], grpc: int, http: int) -> None:
        link = await connect(f"grpc://127.0.0.1:{grpc}")
        running = await begun(link, prefill("session-1", stream=20, prompt="0.1"))
        served.send_signal(signal.SIGTERM)
        while await asyncio.to_thread(ready, http) != 503:
            assert not running.done()
        with pytest.raises(LinkDown, match="stopping"):
            await said(link, prefill("session-2"))
        assert len(await running) == 22
        await link.close()
        assert await asyncio.to_thread(served.wait, 60) == 0

    with process() as (served, grpc, http):
        assert ready(http) == 200
        asyncio.run(whole(served, grpc, http))
        lines = [json.loads(line) for line in (served.stderr or []) if line.startswith("{")]
    told = next(line for line in lines if line.get("session") == "session-1")
    assert (told["operation"], told["outcome"]) == ("prefill", "ok")
    assert lines[-1]["message"] == "stopped"


def test_a_drain_has_its_bound_and_still_exits_0() -> None:
    async def whole(served: subprocess.Popen[str], grpc: int) -> None:
        link = await connect(f"grpc://127.0.0.1:{grpc}")
        running = await begun(link, prefill("session-1", stream=1000, prompt="0.5"))
        served.send_signal(signal.SIGTERM)
        with pytest.raises(LinkDown):
            await running
        await link.close()
        assert await asyncio.to_thread(served.wait, 60) == 0

    with process(drain_s=0.5) as (served, grpc, _):
        asyncio.run(whole(served, grpc))


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_link_outlives_a_killed_cloud_and_sends_nothing_twice(kind: str) -> None:
    async def killed(served: subprocess.Popen[str], ports: dict[str, int]) -> None:
        link = await connect(f"{kind}://127.0.0.1:{ports[kind]}", LinkOptions(connect_s=1))
        seen = 0
        with pytest.raises(LinkDown):
            async for _ in link.call(prefill("session-1", stream=1000, prompt="0.02"), Traffic()):
                seen += 1
                if seen == 5:
                    served.kill()
                    await asyncio.to_thread(served.wait)
        assert 5 <= seen < 1000
        with pytest.raises(LinkDown):
            await greet(link)
        if kind == "http":
            return  # its port is chosen anew
        with process(ports["grpc"]) as (_, _, _):
            for _ in range(600):
                try:
                    welcome = await greet(link)
                    break
                except LinkDown:
                    await asyncio.sleep(0.1)
            assert welcome.limits.sessions == 0
        await link.close()

    with process() as (served, grpc, http):
        asyncio.run(asyncio.wait_for(killed(served, {"grpc": grpc, "http": http}), 120))


def test_a_stalled_cloud_is_told_as_lost_and_the_link_goes_on_after_it() -> None:
    async def stalled(served: subprocess.Popen[str], grpc: int) -> None:
        link = await connect(f"grpc://127.0.0.1:{grpc}", LinkOptions(connect_s=1, keepalive_s=10, silence_s=1.0))
        served.send_signal(signal.SIGSTOP)
        with pytest.raises(LinkDown, match=r"silent for 1 s"):
            await greet(link)
        served.send_signal(signal.SIGCONT)
        assert (await greet(link)).model == "m"
        await link.close()

    with process() as (served, grpc, _):
        asyncio.run(asyncio.wait_for(stalled(served, grpc), 120))
