"""What writes a state in place keeps the state's type wherever it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from msao_compile.graph.precision.convert import Conversion, convert

from .samples import saved
from .test_half import numbers


def test_an_island_casts_what_is_written_and_not_the_state(tmp_path: Path) -> None:
    text = """g (float[1,2,8] x, float[1,16,8] past, int64[1] write_indices, float[8] m__layers__0__n,
      float[8,8] m__layers__0__a, float[8,8] m__layers__0__b) => (float[1,16,8] present, float[1,16,8] y) {
      n = Mul(x, m__layers__0__n)
      k = MatMul(n, m__layers__0__a)
      present = TensorScatter <axis = 1> (past, k, write_indices)
      y = MatMul(present, m__layers__0__b)
    }"""
    weights = {"m__layers__0__n": np.ones(8, np.float32)} | {f"m__layers__0__{name}": numbers(8, 8) for name in "ab"}
    source = saved(tmp_path / "a.onnx", text, opset=24, **weights)
    plan = Conversion("fp16", "scatter", keep_fp32=("m.layers.0",), states=("past", "present"))
    convert(source, tmp_path / "b.onnx", plan)
    graph = ir.load(tmp_path / "b.onnx").graph
    [scatter] = [node for node in graph if node.op_type == "TensorScatter"]
    assert scatter.inputs[0] is graph.inputs[1]  # the network's own input: TensorRT writes into no other
    assert scatter.outputs[0].is_graph_output()
    products = [node.outputs[0].dtype for node in graph if node.op_type == "MatMul"]
    assert products == [ir.DataType.FLOAT, ir.DataType.FLOAT]
