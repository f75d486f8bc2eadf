"""The manifest: what it holds comes back, its names resolve, and its paths stay inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import manifests
import pytest
from pydantic import ValidationError

from msao_compile.manifest.evidence import Spread
from msao_compile.manifest.schema import Deployment, FileRef

Content = dict[str, Any]
STATE = ("modules", 0, "graphs", 0, "states", 0)
ENCODER = {"component": "vision_encoder", "modality": "image", "inputs": ["pixel_values"], "each": True}


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return manifests.content(tmp_path)


def test_a_manifest_comes_back_as_it_was_written(content: Content) -> None:
    read = Deployment.model_validate(content)
    assert Deployment.model_validate_json(read.model_dump_json(exclude_none=True)) == read


def test_a_real_manifest_comes_back_as_it_was_written(deployment: Path) -> None:
    text = (deployment / "deployment.json").read_text()
    assert Deployment.model_validate_json(text).model_dump_json(indent=1, exclude_none=True) + "\n" == text


def test_what_was_read_cannot_be_changed(content: Content) -> None:
    read = Deployment.model_validate(content)
    with pytest.raises(ValidationError, match="frozen"):
        read.name = "other"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("models", 0, "components"),
            {"decoder": manifests.OTHER},
            f"models.edge.decoder names module {manifests.OTHER}",
        ),
        (("routes", 0, "model"), "cloud", "route 'edge' names model 'cloud', which is not listed"),
        (("tasks", 0, "models"), ["cloud"], "cloud"),
        (("engines", 0, "module"), manifests.OTHER, manifests.OTHER),
        (("surprise",), 1, "Extra inputs"),
        (("models", 0, "surprise"), 1, "Extra inputs"),
        (("modules", 0, "id"), "A" * 64, "pattern"),
        (("engines", 0, "status"), "sure", "'deferred', 'built', 'ran', 'parity' or 'qualified'"),
        (("models", 0, "tokenizer"), "../tokenizer", "leaves the deployment folder"),
        (("evidence", "parity", "size_bytes"), -1, "greater than or equal to 0"),
        (("runtime", "threads"), "2", "threads\n  Input should be a valid integer"),
        (("runtime", "arena"), 1, "arena\n  Input should be a valid boolean"),
        (("models", 0, "decoder", "vocab_size"), 16.0, "vocab_size\n  Input should be a valid integer"),
        (("models",), [], "at least 1 item"),
        *((("runtime", "threads"), threads, "runtime.threads") for threads in (-1, 1025)),
        *((("runtime", "warm_up"), times, "runtime.warm_up") for times in (-1, 1001)),
        *((("models", 0, "decoder", "kv_capacity"), size, "decoder.kv_capacity") for size in (0, -5, 2**70)),
        (("models", 0, "decoder", "hidden_size"), 9, "models.edge.decoder.hidden_size is 9 where the tensors of .* 8"),
        (("models", 0, "decoder", "vocab_size"), 9, "models.edge.decoder.vocab_size is 9 where the tensors of .* 16"),
        ((*STATE, "name"), "past_key_values.9.key", "the state past_key_values.9.key .* not what goes in and out of"),
        ((*STATE, "shape"), ["batch_size", 2, "past_sequence_length", 4], r"past_key_values.0.key \('batch_size', 2, "),
        (
            (*STATE, "dtype"),
            "float16",
            "the state past_key_values.0.key .* is not what goes in and out of modules/edge",
        ),
        ((*STATE, "output"), "present.7.key", "with present.7.key is not what goes in and out of modules/edge/decoder"),
        ((*STATE, "update"), "sometimes", "'in_place', 'concat' or 'replace'"),
        (("models", 0, "encoders"), [ENCODER], "models.edge.encoders names vision_encoder, which is not a component"),
        (("models", 0, "decoder", "tokens"), "ids", "'input_ids' or 'decoder_input_ids'"),
        (("models", 0, "decoder"), None, "models.edge has a decoder or facts of one, not both"),
        (("modules", 0, "graphs", 0, "inputs", 0, "shape"), [], "hidden_size is 8 where the tensors of .* have None"),
        (("modules", 0, "component"), "vision_encoder", "models.edge.components.decoder names .* is a vision_encoder"),
        (("models", 0, "components"), {}, "models.edge has a decoder or facts of one, not both; build it again"),
        (
            ("models", 0, "components"),
            {"decoder": manifests.MODULE, "vision_encoder": manifests.MODULE},
            "is a decoder",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    content: Content, path: tuple[Any, ...], value: Any, said: str
) -> None:
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError, match=said):
        Deployment.model_validate(content)
    with pytest.raises(ValidationError, match=said):
        Deployment.model_validate_json(json.dumps(content))


def test_evidence_converts_nothing() -> None:
    found = {"median_ms": 1, "min_ms": 0.5, "max_ms": 2.0, "runs": 5}
    assert Spread.model_validate(found).median_ms == 1.0
    with pytest.raises(ValidationError, match="valid integer"):
        Spread.model_validate({**found, "runs": "5"})


def test_a_model_that_is_not_there_is_a_key_error(content: Content) -> None:
    with pytest.raises(KeyError, match="moon"):
        Deployment.model_validate(content).model("moon")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "..", "../x", "a/../../x", "a\\..\\x", "C:/x", "c:x", ".", "./"])
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="leaves the deployment folder"):
        FileRef(path=path, sha256="0" * 64, size_bytes=1)


@pytest.mark.parametrize("path", ["a", "a/b.onnx", "modules/edge/..data", "a b/ü"])
def test_a_path_below_the_folder_is_accepted(path: str) -> None:
    assert FileRef(path=path, sha256="0" * 64, size_bytes=1).path == path


def test_all_files_are_the_graphs_the_weights_the_tokenizer_and_the_evidence(content: Content) -> None:
    assert sorted(Deployment.model_validate(content).all_files()) == [
        "evidence/parity.json",
        "modules/edge/decoder.onnx",
        "modules/edge/decoder.onnx.data",
        "tokenizer/edge/tokenizer.json",
    ]


def test_the_json_schema_accepts_no_unknown_field() -> None:
    schema = Deployment.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())
    json.dumps(schema)


def test_a_state_that_grows_says_along_which_axis(content: Content) -> None:
    graph = content["modules"][0]["graphs"][0]
    graph["inputs"][2]["shape"] = graph["states"][0]["shape"] = ["batch_size", 1, 9, 4]
    with pytest.raises(ValidationError, match="past_key_values.0.key of .* is in_place, but has no past_sequence_len"):
        Deployment.model_validate(content)
    graph["states"][0]["update"] = "replace"  # one of a fixed size is another after each token, and cannot go back
    states = Deployment.model_validate(content).modules[0].graphs[0].states
    assert [state.rollback for state in states] == [False, True]


def test_a_model_without_a_decoder_is_one(content: Content) -> None:
    content["modules"][0]["component"] = "text_encoder"
    content["models"][0] |= {"components": {"text_encoder": manifests.MODULE}, "decoder": None}
    assert Deployment.model_validate(content).models[0].decoder is None


def test_placeholders_are_those_of_the_encoders_that_have_one(content: Content) -> None:
    content["models"][0]["components"]["vision_encoder"] = manifests.OTHER
    content["modules"].append({**content["modules"][0], "id": manifests.OTHER, "component": "vision_encoder"})
    heard = {**ENCODER, "modality": "audio"}
    content["models"][0]["encoders"] = [{**ENCODER, "placeholder": 4}, heard]
    assert Deployment.model_validate(content).models[0].placeholders == {"image": 4}
