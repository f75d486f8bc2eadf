"""The table of targets: what a row says of an engine, and what the page says was never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import manifests
import pytest

from msao_compile.manifest.evidence import ParityRow, StageRun
from msao_compile.manifest.schema import Deployment
from tests.bench.targets import Row, markdown, rows

ENGINE, OTHER_ENGINE = "c" * 64, "d" * 64
ABOUT: dict[str, Any] = {
    "command": "python -m tests.bench.targets", "commit": "0" * 12, "machine": {"load_average": "0.10", "cpu": "a CPU"},
    "versions": {"tensorrt_rtx": "1.7.1"},
}  # fmt: skip


def engine(target: str, device: str, sms: list[int], sha256: str | None, precision: str = "fp16") -> dict[str, Any]:
    file = None if sha256 is None else {"path": f"engines/{target}", "sha256": sha256, "size_bytes": 900}
    order = {"backend": "trt_rtx" if sms else "trt", "profiles": [], "compute_capabilities": sms}
    return {
        "module": manifests.MODULE, "target": target, "backend": order["backend"], "precision": precision,
        "dialect": "portable", "order": order, "status": "deferred" if file is None else "built", "file": file,
        "compatibility": {"target_id": device, "platform_kind": "discrete"},
    }  # fmt: skip


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """One decoder for a CPU, for two targets of one file, for another in bf16, and for a device that builds it."""
    content = manifests.content(tmp_path)
    [module] = content["modules"]
    [fused] = module["graphs"]
    half = manifests.reference(tmp_path, "modules/edge/half.data", bytes(32))
    module["graphs"] += [
        {**fused, "dialect": "portable", "precision": kind, "data": [half]} for kind in ("fp16", "bf16")
    ]
    content["engines"] += [
        engine("a10", "nvidia-a10", [80, 86], ENGINE), engine("a100", "nvidia-a100-40gb", [80, 86], ENGINE),
        engine("l4", "nvidia-l4", [89], OTHER_ENGINE, "bf16"), engine("orin", "jetson-orin-nano-8gb", [], None),
    ]  # fmt: skip
    return Deployment.model_validate_json(manifests.json.dumps(content))


def parity(subject: str, precision: str, cosine: float) -> ParityRow:
    return ParityRow(
        model="edge", subject=subject, dialect="portable", backend="ort", precision=precision, verdict="PASS",
        max_abs=0.0, min_cosine=cosine, argmax_agreement=0.5, compared=7, bound="",
    )  # fmt: skip


def table(deployment: Deployment, compared: list[ParityRow]) -> dict[str, Row]:
    stages = [StageRun(stage="engine", subject="edge/decoder for a10", record="", seconds=4.0, peak_rss_bytes=500)]
    return {row.target: row for row in rows(deployment, stages, compared)}


def test_a_file_that_serves_two_targets_was_built_once_and_both_say_so(deployment: Deployment) -> None:
    found = table(deployment, [])
    assert [found[name].build_s for name in ("a10", "a100", "l4", "orin")] == [4.0, 4.0, None, None]
    assert (found["a100"].peak_rss_bytes, found["a100"].engine_bytes, found["a100"].sms) == (500, 900, (80, 86))


def test_weights_are_those_of_the_graph_of_its_precision(deployment: Deployment) -> None:
    found = table(deployment, [])
    assert {name: row.weight_bytes for name, row in found.items()} == {
        "edge": 64, "a10": 32, "a100": 32, "l4": 32, "orin": 32,
    }  # fmt: skip


def test_a_module_is_vouched_for_by_itself_else_by_its_whole_model_else_by_nothing(deployment: Deployment) -> None:
    found = table(deployment, [parity("whole", "fp16", 0.9), parity("decoder", "int8", 0.1)])
    assert (found["a10"].compared, found["a10"].min_cosine) == ("whole", 0.9)
    assert (found["l4"].compared, found["l4"].verdict) == (None, None)
    found = table(deployment, [parity("whole", "fp16", 0.9), parity("decoder", "fp16", 0.99)])
    assert (found["a10"].compared, found["a10"].min_cosine) == ("module", 0.99)


def test_the_page_says_what_was_not_run_and_shows_every_engine(deployment: Deployment) -> None:
    text = markdown(ABOUT, list(table(deployment, []).values()), [parity("whole", "fp16", 0.9)])
    assert "**No engine in this table was run on a GPU.**" in text
    assert "jetson-orin-nano-8gb" in text.partition("## What this machine only defers")[2]
    lines = [line for line in text.splitlines() if line.startswith("| edge/decoder")]
    assert len(lines) == 5
    assert [cell.strip() for cell in lines[-1].split("|")[2:8]] == [
        "orin",
        "87",
        "fp16",
        "portable",
        "deferred",
        "0.00",
    ]
    busy = {**ABOUT, "machine": {**ABOUT["machine"], "load_average": "7.00"}}
    assert "not to be quoted" in markdown(busy, [], [])
    assert "not to be quoted" not in text
