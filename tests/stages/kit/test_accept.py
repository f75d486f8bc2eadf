"""Receipts: what they prove is taken in, and what is not of this deployment or claims too much is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import DamagedFile, DeploymentError, InputError
from msao_compile.manifest.schema import Deployment, FileRef
from msao_compile.runtime.backends import engine_file
from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.kit.accept import engine_files, evidence_files, kept_receipts, merged, read_receipt, remaining

REFERENCE = {"receipt-l4": FileRef(path="evidence/receipt-l4.json", sha256="d" * 64, size_bytes=1)}
Change = Callable[[dict[str, Any]], object]


def accepted(orders: Path, returned: Path, change: Change | None = None) -> Deployment:
    path = returned / "receipt.json"
    if change is not None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    receipt, deployment = read_receipt(path), read_manifest(orders)
    found = merged(deployment, receipt, REFERENCE)
    assert set(engine_files(deployment, receipt, returned)) <= {module.name for module in receipt.modules}
    return found


def decoder(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["modules"][2]
    assert found["name"] == "edge/decoder"
    return found


def as_on_a_gpu(content: dict[str, Any], status: str) -> None:
    """As if the engines themselves had run; the distances stay those of the stand-in."""
    content["runner"] = "engine"
    content["device"] |= {"gpu_architecture": "sm89", "gpu_name": "NVIDIA L4", "cuda": "13.0", "driver": "580.65.06"}
    for module in content["modules"]:
        module["status"] = status


def test_what_was_built_is_taken_in_with_what_the_device_told(orders: Path, returned: Path) -> None:
    found = accepted(orders, returned)
    assert {engine.status for engine in found.engines} == {"built"}
    for engine in found.engines:
        assert engine.file is not None and engine.file.path.startswith("engines/edge/")
        assert (engine.compatibility.tensorrt, engine.compatibility.os) == (version("tensorrt-rtx"), "linux")
        assert engine.compatibility.gpu_architecture == "sm89"
        assert engine.reason == "the stand-in runner says nothing of an engine"
    assert found.evidence["receipt-l4"] == REFERENCE["receipt-l4"]
    assert set(found.all_files()) >= {engine.file.path for engine in found.engines if engine.file is not None}


def test_a_receipt_taken_in_twice_changes_nothing_more(orders: Path, returned: Path) -> None:
    once = accepted(orders, returned)
    assert merged(once, read_receipt(returned / "receipt.json"), REFERENCE) == once


def test_parity_and_times_of_the_engine_itself_qualify_it(orders: Path, returned: Path) -> None:
    found = accepted(orders, returned, lambda content: as_on_a_gpu(content, "qualified"))
    assert {(engine.status, engine.reason) for engine in found.engines} == {("qualified", None)}
    assert found.engines[0].compatibility.gpu_name == "NVIDIA L4"


def test_without_times_parity_is_as_far_as_it_goes(orders: Path, returned: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        as_on_a_gpu(content, "parity")
        for module in content["modules"]:
            module["phases"]["measure"] = {"verdict": "not run", "reason": "interrupted", "facts": {}}

    found = accepted(orders, returned, change)
    assert {(engine.status, engine.reason) for engine in found.engines} == {("parity", "interrupted")}


def test_what_was_proven_already_is_not_lost_by_a_receipt_that_proves_less(orders: Path, returned: Path) -> None:
    path = returned / "receipt.json"
    content = json.loads(path.read_text())
    failed = {"verdict": "failed", "reason": "out of memory", "facts": {}}
    for module in content["modules"]:
        module |= {"engine": None, "status": "deferred", "phases": {"build": failed}}
    path.write_text(json.dumps(content))
    before = read_manifest(orders)
    assert {engine.reason for engine in merged(before, read_receipt(path), REFERENCE).engines} == {"out of memory"}
    built = tuple(engine.model_copy(update={"status": "built"}) for engine in before.engines)
    after = merged(before.model_copy(update={"engines": built}), read_receipt(path), REFERENCE)
    assert {engine.status for engine in after.engines} == {"built"}


def test_a_receipt_of_some_modules_leaves_the_others_deferred(orders: Path, returned: Path) -> None:
    found = accepted(orders, returned, lambda content: content["modules"].pop(0))
    assert [engine.status for engine in found.engines] == ["deferred", "built", "built"]


def test_of_an_earlier_receipt_the_engines_remain_that_no_newer_one_names(returned: Path) -> None:
    before = read_receipt(returned / "receipt.json")
    newest = before.model_copy(update={"modules": before.modules[:1]})
    left = remaining(before, newest, {"edge/vision_encoder"})
    assert left is not None
    assert [module.name for module in left.modules] == ["edge/embed_tokens", "edge/decoder"]
    assert remaining(before, before, [module.name for module in before.modules]) is None
    without = tuple(module.model_copy(update={"engine": None}) for module in before.modules)
    assert remaining(before.model_copy(update={"modules": without}), newest, ()) is None
    other = newest.model_copy(update={"device": {**newest.device, "tensorrt": "9.9"}})
    said = f"says tensorrt {version('tensorrt-rtx')} where the newer receipt for l4 says 9.9, so the engines of edge/d"
    with pytest.raises(DeploymentError, match=re.escape(said)):
        remaining(before, other, ("edge/vision_encoder", "edge/embed_tokens"))


def test_receipts_of_a_folder_come_newest_first(tmp_path: Path) -> None:
    names = ["receipt-l4", "earlier-1-receipt-l4", "earlier-2-receipt-l4", "earlier-10-receipt-l4"]
    (tmp_path / "evidence").mkdir()
    for name in [*names[::-1], "earlier-x-receipt-l4", "parity"]:
        (tmp_path / f"evidence/{name}.json").write_text("{}")
    assert [path.stem for path in kept_receipts(tmp_path)] == names


def forged(content: dict[str, Any]) -> None:
    as_on_a_gpu(content, "qualified")
    for case in decoder(content)["phases"]["parity"]["facts"]["cases"].values():
        case["min_cosine"] = 0.2  # and the verdict still says done


def skipped(content: dict[str, Any]) -> None:
    as_on_a_gpu(content, "qualified")
    decoder(content)["phases"]["run"] |= {"verdict": "not run", "reason": "there was no memory"}


def unmeasured(content: dict[str, Any]) -> None:
    as_on_a_gpu(content, "qualified")
    decoder(content)["phases"]["measure"]["facts"] = {}


def engineless(content: dict[str, Any]) -> None:
    decoder(content)["engine"] = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(deployment="other"), "its deployment is other where the deployment has small"),
        (lambda content: content.update(kit="e" * 64), f"its kit is {'e' * 64} where the deployment has"),
        (lambda content: content.update(target="orin"), "--target orin: no such target"),
        (lambda content: decoder(content).update(module="e" * 64),
         f"edge/decoder: module is {'e' * 64} where the deployment has {'c' * 64}"),
        (lambda content: decoder(content).update(graph="e" * 64), f"edge/decoder: graph is {'e' * 64} where"),
        (lambda content: decoder(content).update(data=["e" * 64]), f"edge/decoder: weights is {'e' * 64} where"),
        (lambda content: decoder(content).update(precision="fp16"), "precision is fp16 where the deployment has fp32"),
        (lambda content: decoder(content).update(name="edge/encoder"), "module edge/encoder where the kit for l4 has"),
        (lambda content: content["device"].update(gpu_architecture="sm86"),
         "device: gpu_architecture is sm86 where the deployment has sm89"),
        (lambda content: content["device"].update(temperature=40), "device.temperature"),
        (lambda content: decoder(content).update(status="qualified"),
         "claims qualified for edge/decoder where its own phases prove built"),
        (forged, "claims qualified for edge/decoder where its own phases prove ran"),
        (skipped, "claims qualified for edge/decoder where its own phases prove built"),
        (unmeasured, "claims qualified for edge/decoder where its own phases prove parity"),
        (lambda content: as_on_a_gpu(content, "built"),
         "claims built for edge/vision_encoder where its own phases prove qualified"),
        (lambda content: content["device"].update(tensorrt="9.9"),
         f"says library_version {version('tensorrt-rtx')} where the receipt has 9.9"),
        (lambda content: decoder(content).update(component="encoder"), "component is encoder where the deployment has"),
        (engineless, "claims built for edge/decoder where its own phases prove deferred"),
    ],
)  # fmt: skip
def test_a_receipt_that_was_tampered_with_is_refused_and_both_sides_are_named(
    orders: Path, returned: Path, change: Change, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        accepted(orders, returned, change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(format="receipt/2"), "format"),
        (lambda content: content.pop("kit"), "kit: Field required"),
        (lambda content: content.update(more=1), "more: Extra inputs"),
        (lambda content: decoder(content)["engine"].update(path="../../etc/passwd"), "leaves the deployment folder"),
        (lambda content: content.update(modules=[]), "modules"),
        (lambda content: content.update(kit_sha256="0" * 64), "kit_sha256: Extra inputs"),
        (lambda content: content.update(written_at="tomorrow"), "written_at: .*'tomorrow' is no time in UTC"),
        (lambda content: content.update(versions={}), "versions.python: Field required"),
        (lambda content: content["modules"].append(decoder(content)), "modules has edge/decoder more than once"),
        (lambda content: decoder(content)["phases"]["run"].update(reason="there is no driver"),
         "a phase that is 'done' has the reason 'there is no driver'"),
        (lambda content: decoder(content)["phases"]["run"].update(verdict="failed"),
         "a phase that is 'failed' has the reason None"),
        (lambda content: content.update(runner="engine"), "run of edge/.* is done where the device tells of no GPU"),
    ],
)  # fmt: skip
def test_what_is_no_receipt_is_refused_with_the_field(orders: Path, returned: Path, change: Change, said: str) -> None:
    with pytest.raises(DeploymentError, match=said):
        accepted(orders, returned, change)


def test_a_file_that_is_no_receipt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="cannot be read"):
        read_receipt(tmp_path / "receipt.json")
    (tmp_path / "receipt.json").write_text("{")
    with pytest.raises(DeploymentError, match="not valid JSON"):
        read_receipt(tmp_path / "receipt.json")


def test_an_engine_that_is_missing_or_changed_is_refused(orders: Path, returned: Path) -> None:
    receipt = read_receipt(returned / "receipt.json")
    engine = next(returned.glob("engines/edge/decoder*"))
    engine.write_bytes(engine.read_bytes() + b"?")
    with pytest.raises(DamagedFile, match="where the receipt says"):
        engine_files(read_manifest(orders), receipt, returned)
    engine.unlink()
    with pytest.raises(DeploymentError, match="named by the receipt but missing"):
        engine_files(read_manifest(orders), receipt, returned)


def put(returned: Path, engine: Path, content: bytes) -> None:
    """Other bytes in an engine's place, and a receipt that says that they are the right ones."""
    engine.write_bytes(content)
    path = returned / "receipt.json"
    said = json.loads(path.read_text())
    for module in said["modules"]:
        if module["engine"]["path"] == engine.relative_to(returned).as_posix():
            module["engine"] |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    path.write_text(json.dumps(said))


def other(header: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {name: value for name, value in header.items() if not name.startswith("plan_")} | changed


CHANGED_FACTS = [
    ({"module": "e" * 64}, f"says module {'e' * 64} where the deployment has {'c' * 64}"),
    ({"component": "encoder"}, "says component encoder where the deployment has decoder"),
    ({"precision": "fp16"}, "says precision fp16 where the deployment has fp32"),
    ({"dialect": "scatter"}, "says dialect scatter where the deployment has portable"),
    ({"backend": "trt"}, "says backend trt where the deployment has trt_rtx"),
    ({"graph_sha256": "e" * 64}, f"says graph_sha256 {'e' * 64} where the deployment has"),
    ({"order": {"backend": "trt_rtx"}}, "says order {\"backend\":\"trt_rtx\"} where the deployment has {"),
    ({"gpu_architectures": ["sm120"]}, "says gpu_architectures [\"sm120\"] where the deployment has [\"sm89\"]"),
    ({"library_version": "9.9"}, f"says library_version 9.9 where the receipt has {version('tensorrt-rtx')}"),
    ({"target": "b200"}, "says target b200 where the receipt has l4"),
    ({"kit": "e" * 64}, f"says kit {'e' * 64} where the receipt has"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), CHANGED_FACTS)
def test_an_engine_of_something_else_is_refused_though_the_receipt_has_its_digest(
    orders: Path, returned: Path, changed: dict[str, Any], said: str
) -> None:
    engine = next(returned.glob("engines/edge/decoder*"))
    plan = bytes(engine_file.read_plan(engine))
    engine_file.write(engine, other(engine_file.read_header(engine), **changed), plan)
    put(returned, engine, engine.read_bytes())
    with pytest.raises(DeploymentError, match=re.escape(said)):
        accepted(orders, returned)


def test_what_is_no_engine_or_has_another_plan_is_refused_though_the_receipt_has_its_digest(
    orders: Path, returned: Path
) -> None:
    engine = next(returned.glob("engines/edge/decoder*"))
    whole = engine.read_bytes()
    put(returned, engine, whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DamagedFile, match="the plan's SHA-256 is"):
        accepted(orders, returned)
    put(returned, engine, b"vtrt")
    with pytest.raises(DamagedFile, match="is a bare plan of TensorRT-RTX"):
        accepted(orders, returned)
    put(returned, engine, next(returned.glob("engines/edge/vision_encoder*")).read_bytes())
    with pytest.raises(DeploymentError, match="another engine: its header says module"):
        accepted(orders, returned)


def test_a_signature_is_kept_beside_its_receipt(returned: Path) -> None:
    path = returned / "receipt.json"
    assert list(evidence_files(read_receipt(path), path)) == ["receipt-l4"]
    (returned / "receipt.json.sig").write_text("{}")
    assert {place for place, _ in evidence_files(read_receipt(path), path).values()} == {
        "evidence/receipt-l4.json", "evidence/receipt-l4.json.sig",
    }  # fmt: skip
    assert "earlier-2-receipt-l4-signature" in evidence_files(read_receipt(path), path, newer=2)
