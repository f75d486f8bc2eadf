"""The builder with TensorRT-RTX itself, ahead of time on a machine without a GPU: what it makes and what it refuses."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import trt_graphs as graphs

from msao_compile.errors import DeploymentError, InputError, MissingTool, StageError
from msao_compile.runtime.backends import cuda, engine_file, trt_build, trt_library

rtx = pytest.importorskip("tensorrt_rtx", reason="the extra [rtx] is not installed")
PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
CPU_ONLY = pytest.mark.skipif(not isinstance(cuda.probe(), str), reason="says what happens without a GPU")


def encode(folder: Path, order: dict[str, Any] | None = None, **more: Any) -> tuple[dict[str, Any], Path]:
    graph, output = graphs.write_encoder(folder), folder / "encoder.engine"
    order = order or graphs.order([graphs.encoder_profile()])
    return trt_build.build(graph, order, output, graphs.facts("encoder"), **more), output


@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("dialect", ["portable", "scatter"])
def test_a_decoder_of_two_profiles_becomes_one_engine(tmp_path: Path, dialect: str, kind: str) -> None:
    graph, output = graphs.write_decoder(tmp_path, dialect, kind), tmp_path / "decoder.engine"
    facts = graphs.facts(dialect=dialect, precision=PRECISIONS[kind])
    told = trt_build.build(graph, graphs.order(graphs.decoder_profiles(dialect), (80, 89)), output, facts)
    assert told["profiles"] == ["prefill", "decode"]
    assert told["library_version"] == rtx.__version__
    assert told["layers"] > 20
    header = engine_file.read_header(output, verify=True)
    assert told["plan_bytes"] == header["plan_bytes"]
    assert bytes(engine_file.read_plan(output)[:4]) == b"vtrt"
    assert header["inputs"]["inputs_embeds"] == ["batch_size", "sequence_length", graphs.HIDDEN]
    assert (header["gpu_architectures"], header["gpu_name"]) == (["sm80", "sm89"], None)
    assert (header["backend"], header["dialect"], header["key"]) == ("trt_rtx", dialect, "2" * 64)
    assert header["order"]["profiles"][1]["name"] == "decode"


def test_an_engine_for_several_gpus_is_larger_than_one_for_each(tmp_path: Path) -> None:
    sizes = [
        encode(tmp_path, graphs.order([graphs.encoder_profile()], sms))[0]["plan_bytes"]
        for sms in ((89,), (86, 89, 120))
    ]
    assert sizes[0] < sizes[1]


def test_weights_beside_the_graph_are_found(tmp_path: Path) -> None:
    model = onnx.load(graphs.write_encoder(tmp_path))
    (weights,) = model.graph.initializer
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights), weights.name))
    onnx.save(model, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    order = graphs.order([graphs.encoder_profile()])
    assert trt_build.verdicts(tmp_path / "apart.onnx", "trt_rtx") == []
    trt_build.build(tmp_path / "apart.onnx", order, tmp_path / "x.engine", graphs.facts("encoder"))
    (tmp_path / "apart.data").unlink()
    with pytest.raises(StageError, match=r"the parser refuses it: .*apart\.data"):
        trt_build.build(tmp_path / "apart.onnx", order, tmp_path / "x.engine", graphs.facts("encoder"))


def test_progress_is_counted_by_the_library_and_told_by_another_thread(tmp_path: Path) -> None:
    told: list[tuple[float, str, Mapping[str, Any]]] = []

    def hear(record: Mapping[str, Any]) -> None:
        told.append((time.perf_counter(), threading.current_thread().name, record))

    graph = graphs.write_decoder(tmp_path, "portable")
    order = graphs.order(graphs.decoder_profiles("portable"), (80, 86, 89))
    built = trt_build.build(graph, order, tmp_path / "x.engine", graphs.facts(), hear)
    last = told[-1][2]
    assert last["steps"] == built["steps"] > 20
    assert last["phases"] == last["phases_done"] == built["phases"] > 5
    assert all(name.startswith("engine-progress") for _, name, _ in told)
    steps = [record["steps"] for _, _, record in told]
    assert steps == sorted(steps)
    between = [later - sooner for (sooner, _, _), (later, _, _) in pairwise(told[:-1])]
    assert all(pause >= trt_build.POLL_S for pause in between)


def test_what_a_listener_raises_stops_the_build(tmp_path: Path) -> None:
    def stop(record: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, on_progress=stop)
    assert not (tmp_path / "encoder.engine").exists()


def test_a_monitor_that_says_stop_ends_the_build_at_its_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = trt_build.Progress()
    stopped.stop = True
    monkeypatch.setattr(trt_build, "Progress", lambda: stopped)
    with pytest.raises(StageError, match="TensorRT-RTX builds no engine of it"):
        encode(tmp_path)
    assert stopped.record()["steps"] < 20


def test_a_draft_is_built_as_well(tmp_path: Path) -> None:
    told, output = encode(tmp_path, graphs.order([graphs.encoder_profile()], level="draft"))
    assert told["plan_bytes"] > 0
    assert engine_file.read_header(output)["order"]["level"] == "draft"


def test_where_no_engine_comes_out_the_library_says_why(tmp_path: Path) -> None:
    graph = graphs.write_decoder(tmp_path, "portable")
    order = graphs.order(graphs.decoder_profiles("portable"), (75,))
    said = r"TensorRT-RTX builds no engine of it: .*Turing \(SM75\): FP32 GEMM is not supported"
    with pytest.raises(StageError, match=said) as error:
        trt_build.build(graph, order, tmp_path / "x.engine", graphs.facts(precision="fp16"))
    assert "cudaError" not in str(error.value)
    assert not (tmp_path / "x.engine").exists()


def test_a_type_that_a_gpu_lacks_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    order = graphs.order([graphs.encoder_profile()], (89, 75))
    with pytest.raises(InputError, match="fp32 needs SM 80 or newer with TensorRT-RTX, and this is SM 75"):
        trt_build.build(tmp_path / "absent.onnx", order, tmp_path / "x.engine", graphs.facts("encoder"))


@pytest.mark.parametrize(
    ("precision", "sm", "backend", "works"),
    [
        ("fp32", 75, "trt_rtx", False), ("bf16", 75, "trt_rtx", False), ("fp16", 75, "trt_rtx", True),
        ("int8", 75, "trt_rtx", True), ("int4", 80, "trt_rtx", False), ("int4", 86, "trt_rtx", True),
        ("fp8", 86, "trt_rtx", False), ("fp8", 89, "trt_rtx", True), ("fp8", 87, "trt", False),
        ("fp16", 87, "trt", True), ("bf16", 87, "trt", True), ("fp32", 75, "trt", True), ("fp8", 90, "trt", True),
    ],
)  # fmt: skip
def test_types_by_sm(precision: str, sm: int, backend: str, works: bool) -> None:
    assert (trt_build.supported(precision, sm, backend) is None) == works


def test_an_order_that_names_no_gpu_is_held_to_the_one_here() -> None:
    order = graphs.order([], (), backend="trt")
    with pytest.raises(InputError, match="fp8 needs SM 89 or newer with TensorRT, and this is SM 87"):
        trt_build.refuse_types("fp8", order, 87)
    trt_build.refuse_types("fp16", order, 87)


def test_an_sm_that_the_library_does_not_know_is_refused_with_those_it_knows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"builds for .*SM120.*SM89, not for SM90"):
        encode(tmp_path, graphs.order([graphs.encoder_profile()], (89, 90)))


@CPU_ONLY
def test_without_a_gpu_nothing_is_built_for_the_one_here(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="TensorRT-RTX needs here the GPU that it builds for, and there is no NVIDIA"):
        encode(tmp_path, graphs.order([graphs.encoder_profile()], ()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": None}, r"profile encode: input x varies in shape \(-1, 4\) and has no range"),
        ({"min": [3, 4]}, r"input x: min <= opt <= max does not hold on axis 0: 3, 2, 8"),
        ({"max": [8, 5]}, r"input x is 4 on axis 1 in the graph, its range is 4 to 5"),
        ({"opt": [2]}, r"input x has 2 dimensions \(-1, 4\), its range \(1, 4\) \(2,\) \(8, 4\) has others"),
        ({"name": "y"}, r"the graph has no input y; it has x"),
    ],
)
def test_a_profile_that_does_not_fit_the_graph_names_the_input(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    (one,) = graphs.encoder_profile()["inputs"]
    inputs = [] if change == {"x": None} else [{**one, **change}]
    with pytest.raises(InputError, match=said):
        encode(tmp_path, graphs.order([{"name": "encode", "inputs": inputs}]))


def test_a_range_that_an_operator_cannot_take_is_named_with_the_table_to_change(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[n] x) => (float[n] y, int64[n] i) { k = Shape(x)  y, i = TopK(x, k) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "sort.onnx")
    for best, fits in ((3000, True), (4096, False)):
        inputs = [{"name": "x", "min": [1], "opt": [best], "max": [best]}]
        told = (tmp_path / "sort.onnx", graphs.order([{"name": "encode", "inputs": inputs}]), tmp_path / "x.engine")
        if fits:
            assert trt_build.build(*told, graphs.facts())["plan_bytes"] > 0
            continue
        with pytest.raises(StageError, match=r"4096 .*; give its lengths a smaller range in the recipe's \[shapes\]$"):
            trt_build.build(*told, graphs.facts())


def test_operators_of_another_backend_are_named_with_the_dialect_that_works(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[n, 4] x, float[4, 4] w) => (float[n, 4] z) {
      y = com.microsoft.FusedMatMul(x, w)
      z = MatMulInteger4(y, w)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name = "first"
    onnx.save(model, tmp_path / "fused.onnx")
    first, second = trt_build.verdicts(tmp_path / "fused.onnx", "trt_rtx")
    assert (first.node, first.operator, first.advice) == ("first", "FusedMatMul", "dialect portable")
    assert (second.operator, second.advice, second.code) == ("MatMulInteger4", "", "INVALID_NODE")
    assert "Plugin not found" in second.reason
    with pytest.raises(StageError, match=r"the parser refuses FusedMatMul first: .*: use dialect portable$"):
        trt_build.build(tmp_path / "fused.onnx", graphs.order([]), tmp_path / "x.engine", graphs.facts())


def test_a_cache_whose_length_varies_is_refused_with_the_parsers_reason(tmp_path: Path) -> None:
    model = onnx.load(graphs.write_decoder(tmp_path, "scatter"))
    for value in model.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[2].dim_param = "capacity"
    onnx.save(model, tmp_path / "varies.onnx")
    (verdict,) = trt_build.verdicts(tmp_path / "varies.onnx", "trt_rtx")
    assert "KV cache tensor must have a static sequence length" in verdict.reason
    assert "cudaError" not in verdict.reason


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph at all")
    assert [verdict.operator for verdict in trt_build.verdicts(tmp_path / "x.onnx", "trt_rtx")] == [""]
    with pytest.raises(StageError, match="the parser refuses"):
        trt_build.build(tmp_path / "x.onnx", graphs.order([]), tmp_path / "x.engine", graphs.facts())


def test_attention_without_a_kernel_for_its_type_is_built_of_simpler_layers(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float16[n, 2, s, 8] q, float16[n, 2, s, 8] k) => (float16[n, 2, s, 8] y) { y = Attention(q, k, k) }"""
    for kind in ("float16", "float"):
        model = onnx.parser.parse_model(text.replace("float16", kind))
        onnx.save(model, tmp_path / "attention.onnx")
        shape = {"min": [1, 2, 1, 8], "opt": [1, 2, 4, 8], "max": [2, 2, 8, 8]}
        order = graphs.order([{"name": "encode", "inputs": [{"name": name, **shape} for name in "qk"]}])
        facts = graphs.facts(precision={"float": "fp32", "float16": "fp16"}[kind])
        assert trt_build.build(tmp_path / "attention.onnx", order, tmp_path / "x.engine", facts)["plan_bytes"] > 0


def test_a_pinned_timing_cache_must_be_the_one_that_is_given(tmp_path: Path) -> None:
    pinned = hashlib.sha256(b"pinned").hexdigest()
    order = graphs.order([graphs.encoder_profile()], timing_cache=pinned)
    with pytest.raises(InputError, match=f"the recipe pins the timing cache {pinned}, and none is there"):
        encode(tmp_path, order)
    cache = tmp_path / "l4.cache"
    cache.write_bytes(b"another")
    with pytest.raises(InputError, match=rf"l4\.cache has the SHA-256 {hashlib.sha256(b'another').hexdigest()}, but"):
        encode(tmp_path, order, timing_cache=cache)
    cache.write_bytes(b"pinned")
    encode(tmp_path, order, timing_cache=cache)
    assert cache.read_bytes() == b"pinned"


def test_a_timing_cache_that_the_library_cannot_read_is_refused_by_name(tmp_path: Path) -> None:
    messages, cache = trt_library.Messages(), tmp_path / "l4.cache"
    builder, _, _ = trt_library.open_parser(rtx, messages)
    config = builder.create_builder_config()
    cache.write_bytes(b"no timing cache")
    with pytest.raises(InputError, match=r"l4\.cache: this timing cache does not fit tensorrt_rtx 1\..*: remove it"):
        trt_build._load_timings(rtx, config, cache, False, messages)
    trt_build._load_timings(rtx, config, tmp_path / "none yet", False, messages)
    trt_build._save_timings(config, tmp_path / "made" / "l4.cache")
    assert (tmp_path / "made" / "l4.cache").stat().st_size > 0


@CPU_ONLY
def test_an_engine_made_here_is_refused_where_another_version_runs(tmp_path: Path) -> None:
    _, output = encode(tmp_path)
    here = {**engine_file.machine(), "backend": "trt_rtx", "library_version": "1.6.0.9", "gpu_architectures": ["sm89"]}
    with pytest.raises(DeploymentError, match=rf"built by TensorRT-RTX {rtx.__version__} for sm89 .* 1\.6\.0\.9, sm89"):
        engine_file.refuse_mismatch(output, engine_file.read_header(output), here, "msao-compile build x.toml")


@CPU_ONLY
def test_opening_an_engine_without_a_driver_is_one_sentence_and_no_crash(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from msao_compile.runtime.backends import base

    _, output = encode(tmp_path)
    with pytest.raises(MissingTool, match=r"encoder\.engine needs an NVIDIA GPU: there is no NVIDIA driver"):
        base.open_engine("trt_rtx", SimpleNamespace(path=output))  # type: ignore[arg-type]


def test_a_library_that_is_not_there_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingTool, match=r"needs TensorRT, which does not load here .*msao-compile\[tensorrt\]"):
        trt_build.library("trt")
    with pytest.raises(MissingTool, match="backend 'ort' builds no engines; known: trt, trt_rtx"):
        trt_build.library("ort")
