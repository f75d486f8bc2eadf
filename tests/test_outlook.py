"""What is to be expected of engines: by what a store remembers, held against devices, and refused in time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from building import SHAPES_EDGE

from msao_compile.engine_steps import Walk
from msao_compile.errors import GateError, RecipeError
from msao_compile.manifest.schema import FileRef, Graph, Module
from msao_compile.outlook import Costs, build_run, holdings, outlooks, refuse, shortage
from msao_compile.recipe.ledger import PEAKS, BuildRun
from msao_compile.recipe.read import read_recipe
from msao_compile.recipe.room import GIB
from msao_compile.runner import Options, Runner
from msao_compile.stages import build
from msao_compile.stages.compose import ModelParts
from msao_compile.store.key import Key
from msao_compile.store.record import Record
from msao_compile.store.store import Store

LAYERS, HEADS, WIDTH, CAPACITY, BATCH = 2, 4, 32, 512, 8


def walk(folder: Path, targets: str, weights: dict[str, int], models: tuple[str, ...] = ("edge",)) -> Walk:
    """A walk that has split models with a decoder; `weights`: bytes of each component in fp32."""
    named = "".join(f'[models.{name}]\ncheckpoint = "{SHAPES_EDGE}"\nrole = "draft"\n' for name in models)
    tasks = "".join(f'[tasks.{name}]\nmodels = ["{name}"]\n' for name in models)
    shapes = f"[shapes.decoder]\nbatch = [1, 1, {BATCH}]\nsequence = [1, 16, 64]\nkv_capacity = {CAPACITY}\n"
    file = folder / "recipe.toml"
    file.write_text(f'recipe = 1\nname = "tiny"\n{named}{tasks}{targets}{shapes}')
    found = Walk(Runner(read_recipe(file), Options(folder / "out", folder / "store"), tell=None))
    state = {"shape": ["batch_size", HEADS, "past_sequence_length", WIDTH]}
    for number, model in enumerate(models):
        parts = [
            {"component": name, "id": f"{number}{place}" * 32, "weight_bytes": size}
            for place, (name, size) in enumerate(weights.items())
        ]
        split = {"components": parts, "states": {"portable": [state] * 2 * LAYERS, "fused": [state] * 2 * LAYERS}}
        found.parts.append(ModelParts(model, "draft", split, CAPACITY, {}))
    return found


def target(name: str, device: str, precision: str) -> str:
    return f'[targets.{name}]\ndevice = "{device}"\nprecision = "{precision}"\n'


def remember(store: Store, **told: Any) -> Record:
    """A record of an engine's build."""
    result = {"weight_bytes": told["weights"], "plan_bytes": told["file"]}
    payload = {"result": result, "seconds": told["seconds"], "peak_rss_bytes": told["peak"]}
    fields = {"order": {"backend": told["backend"]}, "graph": str(told), "subject": "edge/decoder for l4"}
    return store.commit(Key(kind="engine", stage="engine", version=1, fields=fields), {}, payload)


def test_the_forecast_learns_from_what_the_store_remembers(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = Costs(store).need("trt_rtx", 100_000_000)
    assert before.seconds is None
    record = remember(store, backend="trt_rtx", weights=100_000_000, file=300_000_000, seconds=12.0, peak=3_000_000_000)
    assert build_run(record) == ("trt_rtx", BuildRun(100_000_000, 3_000_000_000, 300_000_000, 12.0))
    after = Costs(store).need("trt_rtx", 100_000_000)
    assert (after.peak_bytes, after.file_bytes, after.seconds) == (3_000_000_000, 300_000_000, 12.0)
    assert before.peak_bytes < after.peak_bytes
    assert Costs(store).need("trt", 100_000_000).seconds is None  # another library's builds say nothing


def test_a_record_that_does_not_say_what_its_weights_were_teaches_nothing(tmp_path: Path) -> None:
    record = remember(Store(tmp_path), backend="trt", weights=None, file=1, seconds=1.0, peak=1)
    assert build_run(record) is None


def test_every_module_of_every_target_has_its_place_precision_and_need(tmp_path: Path) -> None:
    targets = target("local", "local-cpu", "fp32") + target("orin", "jetson-orin-nano-8gb", "fp16")
    found = walk(tmp_path, targets, {"vision_encoder": 40_000_000, "decoder": 100_000_000})
    rows = outlooks(found, found.costs)
    assert [(one.target, one.subject, one.place, one.precision, one.weight_bytes) for one in rows] == [
        ("local", "edge/vision_encoder", "here", "fp32", 40_000_000),
        ("local", "edge/decoder", "here", "fp32", 100_000_000),
        ("orin", "edge/vision_encoder", "device", "fp16", 20_000_000),
        ("orin", "edge/decoder", "device", "fp16", 50_000_000),
    ]
    assert rows[3].peak_bytes == PEAKS["trt"].of(50_000_000)
    assert "msao-compile kit DEPLOYMENT --target orin" in rows[3].note
    assert {one.type_lacking or one.memory_lacking for one in rows} == {None}


def test_before_a_model_was_split_targets_are_told_with_every_precision(tmp_path: Path) -> None:
    found = walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp16"), {}, models=("edge",))
    found.parts.clear()
    [row] = outlooks(found, found.costs)
    assert (row.subject, row.precision, row.peak_bytes, row.seconds) == ("every module", "fp16", None, None)


def test_a_module_shared_by_two_models_is_one_engine(tmp_path: Path) -> None:
    found = walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp16"), {"decoder": 8}, ("edge", "other"))
    found.parts[1].split["components"][0]["id"] = found.parts[0].split["components"][0]["id"]
    assert [one.subject for one in outlooks(found, found.costs)] == ["edge/decoder"]


def test_a_build_that_a_device_has_no_memory_for_says_both_numbers(tmp_path: Path) -> None:
    found = walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp16"), {"decoder": 4 * GIB})
    [row] = outlooks(found, found.costs)
    assert row.memory_lacking is not None
    assert "needs about 7.8 GiB of memory where jetson-orin-nano-8gb has 8.0" in row.memory_lacking


@pytest.mark.parametrize(("size", "short"), [(1 << 20, False), (4 * GIB, True)])
def test_an_entry_that_is_left_to_a_small_device_says_that_it_cannot_build_it(
    tmp_path: Path, size: int, short: bool
) -> None:
    found = walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp16"), {"decoder": size})
    file = FileRef(path="modules/edge/decoder.onnx.data", sha256="a" * 64, size_bytes=size)
    graph = Graph(dialect="portable", precision="fp16", opset=20, file=file, data=(file,), inputs=(), outputs=())
    module = Module(id="b" * 64, component="decoder", params=1, weight_bytes=size, graphs=(graph,))
    entry = build.planned(module, "orin", found.targets["orin"], "fp16", None)
    told = found.costs.told(entry, module, graph)
    assert (told.status, "; a build of it needs about 14.8 GiB" in (told.reason or "")) == ("deferred", short)
    assert (told == entry) is not short


@pytest.mark.parametrize("capacity_state", ["past_sequence_length", CAPACITY])
def test_weights_and_a_full_cache_of_the_largest_batch_are_held(tmp_path: Path, capacity_state: str | int) -> None:
    found = walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp16"), {"decoder": 1000})
    for state in found.parts[0].split["states"]["portable"]:
        state["shape"][2] = capacity_state
    [held] = holdings(found)
    assert held.room.weight_bytes == 500
    assert held.room.kv_bytes == 2 * LAYERS * BATCH * HEADS * CAPACITY * WIDTH * 2
    assert shortage(held) is None


def test_a_precision_that_the_gpu_lacks_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"targets.orin.precision: jetson-orin-nano-8gb has no fp8: .*SM 89.*SM 87"):
        walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp8"), {"decoder": 1000})


def test_a_module_that_is_left_in_a_precision_that_the_gpu_lacks_is_refused_by_name(tmp_path: Path) -> None:
    text = target("t4", "nvidia-t4", "fp16").replace('"fp16"', '{ vision_encoder = "fp16" }')
    found = walk(tmp_path, text, {"decoder": 1000})
    with pytest.raises(RecipeError, match=r"targets.t4.precision: edge/decoder is to be fp32, .*SM 80.*SM 75"):
        refuse(found, found.costs)


def test_a_target_that_holds_no_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    found = walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp16"), {"decoder": 16 * GIB})
    with pytest.raises(GateError, match=r"needs about 10\.\d GiB to run .* jetson-orin-nano-8gb has 8\.0: take a"):
        refuse(found, found.costs)


def test_a_target_that_holds_one_of_two_models_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = walk(tmp_path, target("orin", "jetson-orin-nano-8gb", "fp16"), {"decoder": 1000}, ("edge", "cloud"))
    found.parts[1].split["components"][0]["weight_bytes"] = 16 * GIB
    with caplog.at_level(logging.WARNING):
        refuse(found, found.costs)
    assert [record.message.partition(" needs")[0] for record in caplog.records] == ["cloud for orin"]
