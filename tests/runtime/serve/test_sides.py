"""A deployment's model answers the same in this process, behind the cloud server, and inside the real Triton."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from answering import said
from building import ROOT
from tritons import serving

from msao_compile.errors import ContractMismatch
from msao_compile.runtime.cloud.service import CloudLimits
from msao_compile.runtime.serve.cloud.opening import open_deployment
from msao_compile.runtime.wire.base import Link
from msao_compile.runtime.wire.contract import DRAFTS, TOKENS, Prefill, Verify, prefix_hash, write
from msao_compile.runtime.wire.kserve.connect import connect, greet
from msao_compile.runtime.wire.kserve.options import LinkOptions
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.stages.triton import write_repository

SERVE = """
import sys
from pathlib import Path
from msao_compile.cli.serve_cloud import CloudAsked, serve_cloud
asked = CloudAsked(Path(sys.argv[1]), "edge", "127.0.0.1", 0, 0, None, None, None, 4, 1 << 24, 1 << 24, 8, 60, 5)
serve_cloud(asked, True)
"""
MODEL_HEAD = f"import sys\n\nsys.path[:0] = {[str(ROOT)]!r}\n"

pytestmark = pytest.mark.whole


async def answered(link: Link, picture: bytes) -> tuple[list[int], list[int]]:
    """Tokens that a cloud streams for a picture and a question, and those of a verified round."""
    welcome = await greet(link)
    given = {
        "form": "prompt",
        "modules": welcome.modules,
        "tokenizer": welcome.tokenizer,
        "limit": 12,
        "prompt": "What?",
    }
    pictures = {"picture000": np.frombuffer(picture, np.uint8)}
    streamed = await said(link, write("prefill", Prefill(session="streamed", stream=12, **given), pictures))
    tokens = [reply.fields["id"] for reply in streamed if reply.kind == "token"]
    (ready,) = await said(link, write("prefill", Prefill(session="verified", **given), pictures))
    first = ready.tensors[TOKENS].tolist()
    round_of = Verify(session="verified", round=1, base=1, prefix=prefix_hash(first))
    drafts = np.asarray([*(first + tokens)[1:4], 1, 1], np.int64)
    (verified,) = await said(link, write("verify", round_of, {DRAFTS: drafts}))
    wrong = write("prefill", Prefill(session="mismatch", **{**given, "modules": {"decoder": "ab" * 32}}), pictures)
    with pytest.raises(ContractMismatch, match="same build"):
        await said(link, wrong)
    return first + tokens, first + verified.tensors[TOKENS].tolist()


@pytest.fixture(scope="module")
def here(deployment: Path, picture: Path) -> tuple[list[int], list[int]]:
    """What the model says in this process."""

    async def whole() -> tuple[list[int], list[int]]:
        service, _ = open_deployment(deployment, "edge", CloudLimits())
        return await answered(Loopback(service.handle), picture.read_bytes())

    return asyncio.run(whole())


@pytest.fixture
def process(deployment: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A served deployment and its addresses."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(deployment)], env=environment, stdout=-1, stderr=-1, text=True
    ) as started:
        try:
            assert started.stdout is not None
            yield started, json.loads(started.stdout.readline())
        finally:
            started.kill()


def over(address: str, picture: Path) -> tuple[list[int], list[int]]:
    async def whole() -> tuple[list[int], list[int]]:
        link = await connect(address, LinkOptions(model="edge"))
        try:
            return await answered(link, picture.read_bytes())
        finally:
            await link.close()

    return asyncio.run(asyncio.wait_for(whole(), 60))


def test_a_served_deployment_answers_as_this_process_does(
    here: tuple[list[int], list[int]], process: tuple[subprocess.Popen[str], dict[str, str]], picture: Path
) -> None:
    served, told = process
    assert len(here[0]) == 12
    assert here[1][: len(here[1]) - 1] == here[0][: len(here[1]) - 1]
    assert over(told["grpc"], picture) == here
    assert over(told["http"], picture) == here
    served.send_signal(signal.SIGTERM)
    assert served.wait(10) == 0


def test_triton_answers_as_this_process_does(
    here: tuple[list[int], list[int]], deployment: Path, picture: Path, tmp_path: Path
) -> None:
    folder = write_repository(deployment, "edge", tmp_path / "repository")
    model = folder / "1" / "model.py"
    model.write_text(MODEL_HEAD + model.read_text())  # the tests' source in place of an installed package
    with serving(tmp_path / "repository", tmp_path) as port:
        assert over(f"grpc://127.0.0.1:{port}", picture) == here
