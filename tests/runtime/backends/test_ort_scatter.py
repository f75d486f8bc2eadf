"""Decoders whose graph writes one buffer in place where write_indices says: on the CPU, as on a GPU."""

from __future__ import annotations

import ctypes.util
import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from msao_compile.errors import CapacityExceeded, DeploymentError, MissingTool
from msao_compile.manifest.schema import RuntimeSettings, StateSpec
from msao_compile.runtime.backends import cuda, ort_cuda
from msao_compile.runtime.backends.base import EngineFile
from msao_compile.runtime.backends.ort import OrtDecoder, OrtEngine

WIDTH, CAPACITY = 2, 6
LIBRARY_FOLDERS = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib")
SETTINGS = RuntimeSettings(threads=1, arena=False, warm_up=0)
# Logits are the sum of the rows that the mask shows, once for each row asked for.
TEXT = """<ir_version: 10, opset_import: ["" : 24]>
g (float[b,s,2] inputs_embeds, int64[b,c] attention_mask, int64[b,s] position_ids, int64[k] logits_positions,
   int64[b] write_indices, float16[b,1,c,2] past) => (float[b,k,2] logits, float16[b,1,c,2] present)
<int64[1] one = {1}, int64[1] two = {2}, float nil = {0}> {
  half = Cast<to = 10>(inputs_embeds)
  fresh = Unsqueeze(half, one)
  present = TensorScatter<axis = 2>(past, fresh, write_indices)
  wide = Cast<to = 1>(present)
  held = Squeeze(wide, one)
  shown = Cast<to = 1>(attention_mask)
  column = Unsqueeze(shown, two)
  seen = Mul(held, column)
  sum = ReduceSum<keepdims = 1>(seen, one)
  asked = Gather<axis = 1>(inputs_embeds, logits_positions)
  room = Mul(asked, nil)
  logits = Add(room, sum)
}"""
STATE = StateSpec(
    name="past", output="present", dtype="float16", shape=("b", 1, "past_sequence_length", WIDTH), update="in_place"
)


@pytest.fixture
def engine(tmp_path: Path) -> OrtDecoder:
    return OrtDecoder(graph(tmp_path))


def graph(folder: Path, text: str = TEXT, settings: RuntimeSettings = SETTINGS) -> EngineFile:
    ir.save(ir.from_onnx_text(text), folder / "decoder.onnx")
    return EngineFile(folder / "decoder.onnx", "scatter", settings, (STATE,))


def fed(cache: Any, rows: list[list[float]]) -> dict[str, np.ndarray]:
    """Tokens for each sequence, as the session feeds them: nothing of buffers, and a mask over what is known."""
    tokens = np.asarray(rows, np.float32)
    batch, count = tokens.shape
    places = np.arange(cache.length, cache.length + count)
    return {
        "inputs_embeds": np.repeat(tokens[:, :, None], WIDTH, 2),
        "attention_mask": np.ones((batch, cache.length + count), np.int64),
        "position_ids": np.tile(places, (batch, 1)),
        "logits_positions": np.array([count - 1]),
    }


def sums(engine: OrtDecoder, cache: Any, rows: list[list[float]]) -> list[float]:
    logits = engine.step(fed(cache, rows), cache)
    assert logits.shape == (len(rows), 1, WIDTH) and logits.dtype == np.float32
    found: list[float] = logits[:, 0, 0].tolist()
    return found


def test_new_positions_are_written_behind_those_that_are_known(engine: OrtDecoder) -> None:
    cache = engine.new_cache(CAPACITY, 2)
    assert sums(engine, cache, [[1, 2, 4], [10, 20, 40]]) == [7, 70]
    assert sums(engine, cache, [[8], [80]]) == [15, 150]
    assert sums(engine, cache, [[16, 32], [160, 320]]) == [63, 630]
    with pytest.raises(CapacityExceeded, match="1 more positions do not fit a KV cache that holds 6 of 6"):
        sums(engine, cache, [[1], [1]])


def test_the_buffer_is_never_another_one(engine: OrtDecoder) -> None:
    cache = engine.new_cache(CAPACITY)
    before = cache.values["past"].data_ptr()  # type: ignore[attr-defined]
    sums(engine, cache, [[1, 2]])
    sums(engine, cache, [[3]])
    held = cache.values["past"]  # type: ignore[attr-defined]
    assert held.data_ptr() == before
    assert held.numpy()[0, 0, :, 0].tolist() == [1, 2, 3, 0, 0, 0]


def test_what_was_rolled_back_is_hidden_and_written_over(engine: OrtDecoder) -> None:
    cache = engine.new_cache(CAPACITY)
    sums(engine, cache, [[1, 2, 4, 8]])
    cache.rollback(1)
    assert sums(engine, cache, [[64]]) == [65]


def test_steps_at_fixed_addresses_give_what_other_steps_give(engine: OrtDecoder) -> None:
    plain, fixed = engine.new_cache(CAPACITY, 2), captured(engine, 2)
    for rows in ([[1, 2], [3, 4]], [[5], [6]], [[7], [8]]):
        assert sums(engine, plain, rows) == sums(engine, fixed, rows)
    fixed = captured(engine, 1)
    first = engine.step(fed(fixed, [[1]]), fixed)
    sums(engine, fixed, [[2]])
    assert first[0, 0, 0] == 1  # not the memory that the second step wrote


def test_addresses_that_nobody_has_any_more_serve_again_and_are_empty(engine: OrtDecoder) -> None:
    cache = captured(engine, 1)
    sums(engine, cache, [[1, np.inf]])
    address = cache.values["past"].data_ptr()
    other = captured(engine, 1)
    assert other.values["past"].data_ptr() != address
    del cache
    gc.collect()
    again = captured(engine, 1)
    assert again.values["past"].data_ptr() == address
    assert sums(engine, again, [[3]]) == [3]


def captured(engine: OrtDecoder, batch: int) -> Any:
    """What new_cache gives where steps are captured: the CPU runs them all the same, each time anew."""
    return engine._captured(CAPACITY, batch)


def test_steps_of_a_state_that_grows_are_not_captured() -> None:
    grows = STATE.model_copy(update={"update": "concat"})
    with pytest.raises(DeploymentError, match="its state past is another tensor after every step"):
        ort_cuda.check_captured({"write_indices": ()}, (grows,))
    with pytest.raises(DeploymentError, match="it has no input write_indices"):
        ort_cuda.check_captured({}, (STATE,))
    ort_cuda.check_captured({"write_indices": ()}, (STATE,))


def test_graphs_are_captured_on_a_gpu_alone() -> None:
    with pytest.raises(ValidationError, match="cuda_graphs needs provider = cuda where it is cpu"):
        RuntimeSettings(threads=1, arena=False, warm_up=0, cuda_graphs=True)


@pytest.mark.skipif(not isinstance(cuda.probe(), str), reason="this machine has an NVIDIA GPU")
def test_without_a_driver_one_sentence_says_so(tmp_path: Path) -> None:
    settings = RuntimeSettings(threads=1, arena=False, warm_up=0, provider="cuda")
    with pytest.raises(
        MissingTool, match=r"so ONNX Runtime cannot use a GPU: set provider = cpu or install the driver"
    ):
        OrtEngine(graph(tmp_path, settings=settings))


def test_an_input_that_numpy_does_not_have_is_refused(tmp_path: Path) -> None:
    text = TEXT.replace("float16[b,1,c,2]", "bfloat16[b,1,c,2]").replace("to = 10", "to = 16")
    with pytest.raises(DeploymentError, match=r"past is tensor\(bfloat16\), which NumPy does not have"):
        OrtDecoder(graph(tmp_path, text))


def test_libraries_of_cuda_are_loaded_from_any_folder_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    here = Path(ctypes.util.find_library("z") or "libz.so.1").name
    real = next(path for folder in LIBRARY_FOLDERS for path in Path(folder).glob(f"{here}*"))
    for package, name in (("cudnn", "libcudnn.so.9"), ("cu12", "libcurand.so.10"), ("cu12", "libother.so.1")):
        (tmp_path / package / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / package / "lib" / name).symlink_to(real)
    (tmp_path / "cu12" / "lib" / "libcufft.so.11").write_text("no library")
    assert ort_cuda.preload([tmp_path]) == ["libcurand.so.10", "libcudnn.so.9"]
    assert ort_cuda.preload([]) == []
