"""Each family through the whole pipeline in both dialects: parity, names, operators, and no weight written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import onnx_ir as ir
import pytest
from building import run

from msao_compile.cli.app import main
from msao_compile.errors import GateError, InputError
from msao_compile.manifest.evidence import ParityEvidence
from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.loader import read_manifest, verify
from msao_compile.stages.parity import check_deployment

Built = Callable[[str], Path]
FAMILIES = ("idefics3", "llava", "qwen2_5_vl")
ENCODERS = {"idefics3": ("vision_encoder",), "llava": ("vision_encoder",),
            "qwen2_5_vl": ("vision_encoder", "video_encoder")}  # fmt: skip
PARTS = ("vision_encoder", "embed_tokens", "decoder")
LAYERS = 2


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, built: Built) -> Path:
    return built(family)


@pytest.fixture
def manifest(folder: Path) -> Deployment:
    return read_manifest(folder)


@pytest.fixture
def reference(family: str, checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return checkpoints.reference(family, checkpoint(family), tmp_path / "reference.npz")


def graphs(folder: Path, manifest: Deployment) -> dict[tuple[str, str], ir.Model]:
    return {
        (module.component, graph.dialect): ir.load(folder / graph.file.path)
        for module in manifest.modules
        for graph in module.graphs
    }


def test_every_subject_passes_parity_in_both_dialects(family: str, folder: Path, manifest: Deployment) -> None:
    verify(folder, manifest)
    rows = ParityEvidence.model_validate_json((folder / "evidence/parity.json").read_bytes()).rows
    last = ENCODERS[family][-1]
    subjects = {
        *ENCODERS[family],
        "whole",
        "steps",
        "batch of 2",
        "text",
        f"split after {last}",
        "split after embed_tokens",
    }
    assert {(row.subject, row.dialect) for row in rows} == {
        (subject, dialect) for subject in subjects for dialect in ("fused", "portable")
    }
    assert [row for row in rows if row.verdict != "PASS" or row.compared == 0] == []
    assert max(row.max_abs for row in rows) < 1e-4
    assert [point.after for point in manifest.partition_points] == [last, "embed_tokens"]


def test_opsets_are_the_dialects_own_and_no_graph_branches(family: str, folder: Path, manifest: Deployment) -> None:
    found = graphs(folder, manifest)
    assert len(found) == 2 * len((*ENCODERS[family], "embed_tokens", "decoder"))
    for (_, dialect), model in found.items():
        assert model.opset_imports[""] == {"portable": 20, "fused": 23}[dialect]
        operators = {node.op_type for node in model.graph}
        assert not operators & {"If", "Loop", "Scan"}
        assert not model.functions
        assert {node.domain for node in model.graph} <= ({""} if dialect == "portable" else {"", "com.microsoft"})


def test_fused_decoders_hold_one_attention_node_a_layer(folder: Path, manifest: Deployment) -> None:
    operators = [node.op_type for node in graphs(folder, manifest)["decoder", "fused"].graph]
    assert (operators.count("GroupQueryAttention"), operators.count("Softmax")) == (LAYERS, 0)


def test_dynamic_dimensions_carry_their_names(folder: Path, manifest: Deployment) -> None:
    for (component, dialect), model in graphs(folder, manifest).items():
        taken = {value.name: [str(size) for size in value.shape] for value in model.graph.inputs}
        given = {value.name: [str(size) for size in value.shape] for value in model.graph.outputs}
        if component == "embed_tokens":
            assert taken["input_ids"] == ["batch_size", "sequence_length"]
            assert given["inputs_embeds"] == ["batch_size", "sequence_length", "32"]
        elif component == "decoder":
            assert taken["inputs_embeds"] == ["batch_size", "sequence_length", "32"]
            assert taken["attention_mask"] == ["batch_size", "total_sequence_length"]
            assert taken["past_key_values.1.value"] == ["batch_size", "2", "past_sequence_length", "8"]
            present = "total_sequence_length" if dialect == "portable" else "past_sequence_length"
            assert given["present.0.key"] == ["batch_size", "2", present, "8"]
            assert given["logits"] == ["batch_size", "num_logits", str(checkpoints.VOCABULARY)]
            assert taken["logits_positions"] == ["num_logits"]


def test_the_manifest_says_of_each_graph_what_its_file_says(folder: Path, manifest: Deployment) -> None:
    for module in manifest.modules:
        for graph in module.graphs:
            ends = ir.load(folder / graph.file.path).graph
            for told, values in ((graph.inputs, ends.inputs), (graph.outputs, ends.outputs)):
                assert [spec.name for spec in told] == [value.name for value in values]
                assert [len(spec.shape) for spec in told] == [len(value.shape) for value in values]
                named = [(spec.name, value) for spec, value in zip(told, values) if "axis" not in str(spec.shape)]
                assert {name: tuple(map(str, value.shape)) for name, value in named} == {
                    spec.name: tuple(map(str, spec.shape)) for spec in told if "axis" not in str(spec.shape)
                }


def test_states_are_written_in_place_where_the_dialect_can(manifest: Deployment) -> None:
    decoder = next(module for module in manifest.modules if module.component == "decoder")
    for graph in decoder.graphs:
        updates = [state.update for state in graph.states]
        assert updates == [{"fused": "in_place", "portable": "concat"}[graph.dialect]] * 2 * LAYERS
        assert [state.output for state in graph.states] == [
            spec.name for spec in graph.outputs if spec.name.startswith("present.")
        ]


def test_every_weight_is_read_where_the_checkpoint_has_it(
    folder: Path, manifest: Deployment, checkpoint: Callable[..., Path], family: str
) -> None:
    data = sorted({ref.path for module in manifest.modules for graph in module.graphs for ref in graph.data})
    if family == "idefics3":  # whose recipe asks for files of modules
        assert [Path(path).name for path in data] == [f"{part}.onnx.data" for part in sorted(PARTS)]
        numbers = sum(
            value.numel() for value in checkpoints.original(checkpoint(family)).parameters()
        )  # a tied one once
        assert 0 <= sum((folder / path).stat().st_size for path in data) - numbers * 4 < 64 * 100
    else:
        assert [Path(path).name for path in data] == ["model.safetensors"]
        assert (folder / data[0]).samefile(checkpoint(family) / "model.safetensors")
    largest = max(path.stat().st_size for path in folder.rglob("*.onnx"))
    assert largest < 100_000  # the graphs hold structure, not weights


def test_both_dialects_read_the_same_data_files(manifest: Deployment) -> None:
    for module in manifest.modules:
        portable, fused = module.graphs if module.graphs[0].dialect == "portable" else reversed(module.graphs)
        assert portable.data == fused.data
        assert portable.file != fused.file


def test_a_tied_head_reads_the_embedding_s_bytes(built: Built) -> None:
    manifest = read_manifest(built("idefics3"))
    files = {module.component: [ref.path for ref in module.graphs[0].data] for module in manifest.modules}
    assert files["decoder"] == ["modules/edge/decoder.onnx.data", "modules/edge/embed_tokens.onnx.data"]
    model = graphs(built("idefics3"), manifest)["decoder", "portable"]
    head = model.graph.initializers["lm_head.weight"].const_value
    assert (head.location, head.offset) == ("embed_tokens.onnx.data", 0)


def test_transformers_own_logits_and_greedy_tokens_pass(folder: Path, reference: Path) -> None:
    rows = check_deployment(folder, reference, None).rows
    assert [(row.subject, row.dialect, row.verdict) for row in rows] == [
        (subject, dialect, "PASS")
        for dialect in ("fused", "portable")
        for subject in ("logits of the reference", "greedy tokens of the reference")
    ]


@pytest.mark.parametrize("array", ["logits", "generate", "in.pixel_values"])
def test_a_corrupted_reference_closes_the_gate(folder: Path, reference: Path, array: str) -> None:
    held = dict(np.load(reference))
    held[array].flat[0] += 1
    if array == "in.pixel_values":
        held[array] = held[array] + 1
    np.savez(reference, **held)
    with pytest.raises(GateError, match=r"parity failed for edge/(logits|greedy tokens) of the reference"):
        check_deployment(folder, reference, None)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (np.array([[1, 10**6]]), "generate holds tokens outside the vocabulary"),
        (np.array([[1], [2]]), "generate is int64 (2, 1); it should be int64 (1, tokens)"),
        (np.array([[0.5]]), "generate is float64 (1, 1)"),
    ],
)
def test_generated_tokens_that_cannot_be_are_refused(
    folder: Path, reference: Path, tokens: np.ndarray, said: str
) -> None:
    np.savez(reference, **{**np.load(reference), "generate": tokens})
    with pytest.raises(InputError, match=re.escape(said)):
        check_deployment(folder, reference, None)


def test_the_command_exits_0_for_a_good_reference_and_5_for_a_bad_one(
    deployment: Path, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    file = checkpoints.reference("idefics3", checkpoint("idefics3"), tmp_path / "reference.npz")
    assert run("parity", deployment, "--reference", file).returncode == 0
    held = dict(np.load(file))
    np.savez(file, **{**held, "logits": held["logits"][..., ::-1]})
    done = run("parity", deployment, "--reference", file)
    assert done.returncode == 5
    assert "error: parity failed" in done.stderr


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"in.input_ids": np.ones((1, 2), np.int64)}, "holds no logits"),
        ({"logits": np.ones((1, 2, 722), np.float32)}, "no in.<name> arrays"),
        ({"in.pixel_values": np.ones(3), "logits": np.ones(3)}, "forward needs input_ids"),
        ({"in.input_ids": np.ones(2, np.int64), "logits": np.ones(3)}, "forward needs input_ids"),
        (
            {"in.input_ids": np.ones((1, 2), np.int64), "logits": np.ones((1, 3, 722), np.float32)},
            r"its logits have shape \(1, 3, 722\) where its inputs give \(1, 2, 722\)",
        ),
        (
            {"in.input_ids": np.full((1, 2), 9999), "logits": np.ones((1, 2, 722))},
            "tokens outside the vocabulary of 722",
        ),
        ({"in.input_ids": np.full((1, 2), -1), "logits": np.ones((1, 2, 722))}, "tokens outside the vocabulary of 722"),
    ],
)
def test_a_reference_that_cannot_be_used_exits_2(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    assert main(["parity", str(deployment), "--reference", str(tmp_path / "odd.npz")]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_padding_in_a_reference_is_not_compared(
    deployment: Path, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    held = dict(np.load(checkpoints.reference("idefics3", checkpoint("idefics3"), tmp_path / "reference.npz")))
    del held["generate"]
    held["in.input_ids"] = np.pad(held["in.input_ids"], ((0, 0), (0, 2)))
    held["in.attention_mask"] = np.pad(held["in.attention_mask"], ((0, 0), (0, 2)))
    held["logits"] = np.pad(held["logits"], ((0, 0), (0, 2), (0, 0)), constant_values=7)
    np.savez(tmp_path / "padded.npz", **held)
    assert {row.verdict for row in check_deployment(deployment, tmp_path / "padded.npz", None).rows} == {"PASS"}


def test_a_model_that_is_not_there_exits_2(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "odd.npz", **{"in.input_ids": np.ones((1, 2), np.int64), "logits": np.ones((1, 2, 722))})
    assert main(["parity", str(deployment), "--reference", str(tmp_path / "odd.npz"), "--model", "moon"]) == 2
    assert "model 'moon' is not in this deployment: it has edge" in capsys.readouterr().err


def test_a_file_that_is_no_npz_exits_2(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"PK\x03\x04 damaged", b"hello"):
        (tmp_path / "odd.npz").write_bytes(content)
        assert main(["parity", str(deployment), "--reference", str(tmp_path / "odd.npz")]) == 2
        assert "not an .npz of plain arrays" in capsys.readouterr().err
