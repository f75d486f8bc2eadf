"""Converted weights: one data file, each byte once, one weight in memory at a time."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.errors import DamagedFile, DeploymentError, StageError
from msao_compile.graph.precision.convert import Conversion, convert
from msao_compile.graph.precision.weights import rounded

from .samples import run, saved

HALF = Conversion("fp16", "portable")
SUM = """g (float[4,64] x, float[64,64] a, float[64,64] b) => (float[4,64] y) {
  one = MatMul(x, a)
  two = MatMul(x, b)
  y = Add(one, two)
}"""


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_files(folder: Path) -> Path:
    """A graph whose weights lie at odd places of two files that are no data files of its own, one linked twice."""
    source = saved(folder / "a.onnx", SUM, a=numbers(64, 64), b=numbers(64, 64, seed=1))
    model = ir.load(source)
    for name, file, offset in (("a", "one.safetensors", 1032), ("b", "two.safetensors", 8)):
        value = model.graph.initializers[name]
        (folder / file).write_bytes(b"\1" * offset + value.const_value.tobytes())
        value.const_value = ir.ExternalTensor(
            file, offset, 64 * 64 * 4, ir.DataType.FLOAT, shape=ir.Shape([64, 64]), name=name
        )
    os.link(folder / "one.safetensors", folder / "again")
    ir.save(model, source)
    return source


def test_weights_of_several_files_come_to_lie_in_one(tmp_path: Path) -> None:
    source = two_files(tmp_path)
    facts = convert(source, tmp_path / "new" / "b.onnx", HALF)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["b.onnx", "b.onnx.data"]
    assert facts["size_bytes"] == sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    x = numbers(4, 64)
    wanted = x @ numbers(64, 64) + x @ numbers(64, 64, seed=1)
    np.testing.assert_allclose(run(tmp_path / "new" / "b.onnx", x=x)["y"], wanted, atol=0.1)


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    source = two_files(tmp_path)
    model = ir.load(source)
    tied = model.graph.initializers["a"].const_value
    model.graph.initializers["b"].const_value = ir.ExternalTensor(
        tied.location, tied.offset, tied.length, tied.dtype, shape=ir.Shape([64, 64]), name="b"
    )
    ir.save(model, source)
    convert(source, tmp_path / "b.onnx", HALF)
    assert (tmp_path / "b.onnx.data").stat().st_size == 64 * 64 * 2


def test_one_weight_at_a_time_is_in_memory(tmp_path: Path) -> None:
    names = [f"w{number}" for number in range(12)]
    steps = [f"h{number + 1} = MatMul(h{number}, {name})" for number, name in enumerate(names)]
    inputs = ", ".join(f"float[512,512] {name}" for name in names)
    text = f"g (float[1,512] x, {inputs}) => (float[1,512] y) {{ h0 = Relu(x) {' '.join(steps)} y = Relu(h12) }}"
    source = saved(tmp_path / "a.onnx", text, **{name: numbers(512, 512) for name in names})
    tracemalloc.start()
    convert(source, tmp_path / "b.onnx", HALF)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 512 * 512 * 4  # of twelve


def test_a_rounded_number_is_the_nearest_and_stays_finite() -> None:
    given = np.array([1 + 2**-11, 1e6, -1e6, np.inf, -np.inf, 2**-24], np.float32)
    assert rounded(given, ir.DataType.FLOAT16).tolist() == [1, 65504, -65504, np.inf, -np.inf, 2**-24]
    assert np.isfinite(rounded(np.array([3.4028235e38], np.float32), ir.DataType.BFLOAT16).astype(np.float32)).all()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_data_file_that_lacks_a_weight_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    source = two_files(tmp_path)
    file = tmp_path / "two.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=r"two\.safetensors .*'b'"):
        convert(source, tmp_path / "b.onnx", HALF)


def test_a_graph_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"a\.onnx"):
        convert(tmp_path / "a.onnx", tmp_path / "b.onnx", HALF)


def test_nothing_is_written_over_what_is_read(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.onnx", SUM, a=numbers(64, 64), b=numbers(64, 64))
    before = (tmp_path / "a.onnx.data").read_bytes()
    with pytest.raises(StageError, match="choose another name"):
        convert(source, source, HALF)
    assert (tmp_path / "a.onnx.data").read_bytes() == before


def test_an_older_result_that_others_link_to_is_left_to_them(tmp_path: Path) -> None:
    source = two_files(tmp_path)
    (tmp_path / "kept").write_bytes(b"kept")
    os.link(tmp_path / "kept", tmp_path / "b.onnx.data")
    convert(source, tmp_path / "b.onnx", HALF)
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_a_converted_graph_is_not_converted_again(tmp_path: Path) -> None:
    convert(two_files(tmp_path), tmp_path / "b.onnx", HALF)
    with pytest.raises(StageError, match="not in fp32"):
        convert(tmp_path / "b.onnx", tmp_path / "c.onnx", HALF)


def test_equal_sources_give_equal_bytes(tmp_path: Path) -> None:
    source = two_files(tmp_path)
    for folder in ("one", "two"):
        convert(source, tmp_path / folder / "b.onnx", HALF)
    for name in ("b.onnx", "b.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
