"""The runner against ONNX Runtime on the same graphs: profiles, state on the device, rollback, replay, refusals."""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_graphs as graphs
import trt_stand_in as stand_in

from msao_compile.errors import CapacityExceeded, DeploymentError, InputError, MissingTool, StageError
from msao_compile.manifest.schema import GROWS, Dialect, RuntimeSettings, StateSpec
from msao_compile.runtime.backends import base, engine_file, trt, trt_state
from msao_compile.runtime.backends.base import EngineFile
from msao_compile.runtime.backends.ort import OrtDecoder

SETTINGS = RuntimeSettings(threads=1, arena=False, warm_up=0)
HERE = {
    "backend": "trt_rtx",
    "library_version": "1.7.1.116",
    "gpu_architectures": ["sm86", "sm89"],
    "cuda": None,
    "driver": None,
    "gpu_name": None,
    "order": {},
    **engine_file.machine(),
}
PARTS = ("key", "value")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> stand_in.Driver:
    """A driver that starts, behind a library that is there."""
    return start(monkeypatch)


def start(monkeypatch: pytest.MonkeyPatch, shares: bool = True, **more: Any) -> stand_in.Driver:
    driver = stand_in.Driver(more.pop("init", 0))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    lib = stand_in.library(driver, shares, **more)
    monkeypatch.setattr(trt, "library", lambda backend: lib)
    return driver


def encoder(folder: Path) -> EngineFile:
    graph, path = graphs.write_encoder(folder), folder / "encoder.engine"
    content = stand_in.plan(graph, [graphs.encoder_profile()])
    engine_file.write(path, {**HERE, **graphs.facts("encoder")}, content)
    return EngineFile(path, "portable", SETTINGS)


def states(dialect: str, kind: str = "float32") -> tuple[StateSpec, ...]:
    grows, update = (graphs.CAPACITY, "in_place") if dialect == "scatter" else (GROWS, "concat")
    shape = ("batch_size", graphs.HEADS, grows, graphs.WIDTH)
    return tuple(
        StateSpec(name=f"past_key_values.0.{part}", output=f"present.0.{part}", dtype=kind, shape=shape, update=update)
        for part in PARTS
    )


def decoder(folder: Path, dialect: Dialect, kind: str = "float") -> EngineFile:
    graph, path = graphs.write_decoder(folder, dialect, kind), folder / f"decoder.{dialect}.engine"
    dims = {"attention_mask": ["batch_size", "total_sequence_length"]}
    content = stand_in.plan(graph, graphs.decoder_profiles(dialect))
    engine_file.write(path, {**HERE, **graphs.facts(dialect=dialect), "inputs": dims}, content)
    named = {"float": "float32"}.get(kind, kind)
    return EngineFile(path, dialect, SETTINGS, states(dialect, named))


def feed(rng: np.random.Generator, cache: base.KVCache, count: int, batch: int) -> dict[str, np.ndarray]:
    return {
        "inputs_embeds": rng.standard_normal((batch, count, graphs.HIDDEN)).astype(np.float32),
        "attention_mask": np.ones((batch, cache.length + count), np.int64),
        "position_ids": np.tile(np.arange(cache.length, cache.length + count), (batch, 1)),
        "logits_positions": np.arange(count),
        "of_no_input": np.zeros(1),
    }


def reference(folder: Path, kind: str = "float") -> OrtDecoder:
    named = {"float": "float32"}.get(kind, kind)
    graph = graphs.write_decoder(folder, "portable", kind)
    return OrtDecoder(EngineFile(graph, "portable", SETTINGS, states("portable", named)))


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("dialect", ["portable", "scatter"])
def test_a_decoder_gives_at_every_step_what_onnx_runtime_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: Dialect, kind: str, shares: bool
) -> None:
    start(monkeypatch, shares)
    ours, theirs = base.open_decoder("trt_rtx", decoder(tmp_path, dialect, kind)), reference(tmp_path, kind)
    mine, own = ours.new_cache(graphs.CAPACITY, 2), theirs.new_cache(graphs.CAPACITY, 2)
    rng = np.random.default_rng(0)
    for count, back in ((5, 5), (1, 6), (1, 7), (1, 8), (3, 9), (1, 10), (1, 11), (1, 3), (3, 6), (1, 2), (2, 2)):
        fed = feed(rng, mine, count, 2)
        expected = theirs.step({name: value for name, value in fed.items() if name in theirs.inputs}, own)
        found = ours.step(fed, mine)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6 if kind == "float" else 2e-3)
        mine.rollback(back)
        own.rollback(back)
        assert mine.length == own.length == back


def test_states_written_in_place_are_one_buffer_and_others_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for shares in (True, False):
        start(monkeypatch, shares)
        cache = base.open_decoder("trt_rtx", decoder(tmp_path, "scatter")).new_cache(graphs.CAPACITY)
        sizes[shares] = cache.state_bytes
    one = graphs.HEADS * graphs.CAPACITY * graphs.WIDTH * 4
    assert sizes == {True: 2 * one, False: 4 * one}


def test_memory_of_what_grows_doubles_and_never_passes_the_capacity() -> None:
    state = trt_state.DeviceState(states("portable")[0], 4, 1, graphs.CAPACITY, False)
    driver = stand_in.Driver()
    real = trt.cuda.Driver(driver)
    state.start(real, trt.cuda.Stream(real))
    row, seen = graphs.HEADS * graphs.WIDTH * 4, []
    for length in (5, 6, 9, 12):
        state.make_room(real, length, 12)
        seen.append(state.buffers[-1].size_bytes // row)
    assert seen == [8, 8, 12, 12]


def test_steps_whose_shapes_stay_are_recorded_once_and_replayed(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, "scatter"))
    cache, rng = engine.new_cache(graphs.CAPACITY), np.random.default_rng(0)
    engine.step(feed(rng, cache, 5, 1), cache)
    launches = []
    for _ in range(5):
        engine.step(feed(rng, cache, 1, 1), cache)
        launches.append(driver.launches)
    assert launches == [0, 1, 2, 3, 4]
    assert len(driver.graphs) == 1
    engine.step(feed(rng, cache, 3, 1), cache)  # another context: what was recorded of the first still holds
    engine.step(feed(rng, cache, 1, 1), cache)
    assert (len(driver.graphs), driver.launches) == (1, 5)


def test_a_context_that_ran_other_shapes_is_recorded_anew(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, "scatter"))
    cache, rng = engine.new_cache(graphs.CAPACITY), np.random.default_rng(0)
    for count in (1, 1, 1):
        engine.step(feed(rng, cache, count, 1), cache)
    two = engine.new_cache(graphs.CAPACITY, 2)
    engine.step(feed(rng, two, 1, 2), two)
    before = driver.launches
    engine.step(feed(rng, cache, 1, 1), cache)
    assert driver.launches == before
    engine.step(feed(rng, cache, 1, 1), cache)
    assert (driver.launches, len(driver.graphs)) == (before + 1, 2)


def test_where_nothing_can_be_recorded_steps_run_one_by_one_and_it_says_why(
    tmp_path: Path, driver: stand_in.Driver
) -> None:
    driver.capture_refused = stand_in.CAPTURE_REFUSED
    engine, theirs = base.open_decoder("trt_rtx", decoder(tmp_path, "scatter")), reference(tmp_path)
    cache, own, rng = engine.new_cache(graphs.CAPACITY), theirs.new_cache(graphs.CAPACITY), np.random.default_rng(0)
    for _ in range(4):
        fed = feed(rng, cache, 1, 1)
        expected = theirs.step({name: value for name, value in fed.items() if name in theirs.inputs}, own)
        np.testing.assert_allclose(engine.step(fed, cache), expected, atol=1e-6)
    assert driver.launches == 0
    assert "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in engine.uncaptured


def test_what_grows_is_never_recorded(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, "portable"))
    rng = np.random.default_rng(0)
    for _ in range(3):
        cache = engine.new_cache(graphs.CAPACITY)
        for count in (4, 1, 1):
            engine.step(feed(rng, cache, count, 1), cache)
    assert (driver.graphs, driver.launches) == ({}, 0)


def test_an_encoder_gives_what_its_graph_says_for_every_size(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_engine("trt_rtx", encoder(tmp_path))
    weights = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    for batch in (1, 8, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        np.testing.assert_allclose(engine.run({"x": x, "more": x})["y"], np.maximum(x @ weights, 0), rtol=1e-5)
    assert engine.inputs == {"x": (-1, 4)}  # this file names no dimensions
    assert engine.types == {"x": "float32"}


def test_a_size_outside_every_profile_is_refused_with_the_range(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_engine("trt_rtx", encoder(tmp_path))
    with pytest.raises(
        InputError, match=re.escape("x has shape (9, 4), and encoder.engine was built for (1, 4) to (8,")
    ):
        engine.run({"x": np.zeros((9, 4), np.float32)})


def test_all_contexts_compute_in_one_buffer_of_the_largest_profile(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, "portable"))
    assert (engine.activation_bytes, engine.resident_bytes) == (2000, 12345)
    assert driver.memory_of(2000) == 1


def test_a_full_cache_refuses_and_keeps_its_length(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, "scatter"))
    cache, rng = engine.new_cache(6), np.random.default_rng(0)
    engine.step(feed(rng, cache, 5, 1), cache)
    with pytest.raises(CapacityExceeded, match="2 more positions do not fit a KV cache that holds 5 of 6"):
        engine.step(feed(rng, cache, 2, 1), cache)
    assert cache.length == 5
    engine.step(feed(rng, cache, 1, 1), cache)


@pytest.mark.parametrize("dialect", ["portable", "scatter"])
def test_more_positions_than_the_engine_was_built_for_are_refused(
    tmp_path: Path, driver: stand_in.Driver, dialect: Dialect
) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, dialect))
    with pytest.raises(DeploymentError, match=f"kv_capacity is 17, and .* was built for {graphs.CAPACITY} positions"):
        engine.new_cache(17)


def test_state_that_the_gpu_cannot_hold_is_refused_with_what_is_free(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, "scatter"))
    with pytest.raises(DeploymentError, match=r"no memory.*CUDA_ERROR_OUT_OF_MEMORY.*of 16777216 are free"):
        engine.new_cache(graphs.CAPACITY, 1 << 20)


def test_a_state_that_is_replaced_goes_on_in_turn_and_cannot_be_rolled_back() -> None:
    driver = trt.cuda.Driver(stand_in.Driver())
    spec = StateSpec(name="past", output="present", dtype="float32", shape=("batch_size", 4), update="replace")
    (state,) = trt_state.device_states([spec], {"past": 4}, 3, 8, {})
    cache = trt_state.DeviceCache(driver, [state], 8)
    first = cache.addresses(1)
    cache.take(1)
    second = cache.addresses(1)
    assert (second["past"], second["present"]) == (first["present"], first["past"])
    assert cache.shapes() == {"past": (3, 4)}
    with pytest.raises(StageError, match="state past cannot be rolled back from 1 positions to 0"):
        cache.rollback(0)


def test_bfloat16_comes_out_as_float32(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_engine("trt_rtx", encoder(tmp_path))
    values = np.array([[1.0, -2.5, 3.0]], np.float32)
    engine._halves, engine._kinds["y"] = {"y"}, "uint16"
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    engine._slot("y").room(bits.nbytes)
    engine._slot("y").put(bits, engine.stream)
    np.testing.assert_array_equal(engine._fetch({"y": (1, 3)})["y"], values)


def test_without_a_driver_one_sentence_comes_before_any_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    start(monkeypatch, init=stand_in.NO_DEVICE)
    monkeypatch.setattr(trt, "library", asked.append)
    with pytest.raises(MissingTool, match=r"encoder.engine needs an NVIDIA GPU: .*cuInit says CUDA_ERROR_NO_DEVICE"):
        base.open_engine("trt_rtx", encoder(tmp_path))
    assert asked == []


def test_a_file_for_another_version_is_refused_before_the_library_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, version="1.6.0.3")
    with pytest.raises(DeploymentError, match=r"built by TensorRT-RTX 1\.7\.1\.116 .* here TensorRT-RTX 1\.6\.0\.3"):
        base.open_engine("trt_rtx", encoder(tmp_path))
    assert trt.library("trt_rtx").loaded == []


def test_what_the_library_refuses_is_told_in_its_words(tmp_path: Path, driver: stand_in.Driver) -> None:
    file = encoder(tmp_path)
    engine_file.write(file.path, {**HERE, **graphs.facts("encoder")}, b"vtrt and what follows")
    with pytest.raises(DeploymentError, match=r"refuses it \(the plan is of no kind\)"):
        base.open_engine("trt_rtx", file)


def test_everything_on_the_device_is_given_back(tmp_path: Path, driver: stand_in.Driver) -> None:
    engine = base.open_decoder("trt_rtx", decoder(tmp_path, "scatter"))
    cache = engine.new_cache(graphs.CAPACITY)
    rng = np.random.default_rng(0)
    for _ in range(3):
        engine.step(feed(rng, cache, 1, 1), cache)
    assert driver.memory
    del engine, cache
    gc.collect()
    assert driver.memory == {}


def test_a_decoder_of_other_states_is_not_taken_for_one_in_place(tmp_path: Path, driver: stand_in.Driver) -> None:
    file = decoder(tmp_path, "portable")
    engine = base.open_decoder("trt_rtx", replace(file, states=states("portable")))
    cache = engine.new_cache(graphs.CAPACITY)
    assert not cache.stays
    assert "write_indices" not in engine.inputs
