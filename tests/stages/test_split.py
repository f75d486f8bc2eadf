"""Taking checkpoints apart: the same model has the same module ids however it was saved, and a damaged one is named."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from building import python, run, write_recipe
from safetensors.torch import load_file, save_file

from msao_compile.errors import CheckpointError, StageError
from msao_compile.families.checkpoint import locate, read_tensor
from msao_compile.families.registry import open_checked
from msao_compile.manifest.digest import sha256_bytes
from msao_compile.places import Places
from msao_compile.recipe.read import read_recipe
from msao_compile.stages import load, split
from msao_compile.stages.compose import ModelParts
from msao_compile.stages.propose import propose
from tests.families.test_outline import janus

Edit = Callable[[Path], None]
NAMES = ("vision_encoder", "embed_tokens", "decoder")


@pytest.fixture(scope="module")
def traces() -> dict[str, Any]:
    """What tracing gave, by config: it is the same for all weights."""
    return {}


@pytest.fixture(autouse=True)
def remembered(traces: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trace = split._traced

    def traced(description: Any, outputs: Any, on_progress: Any) -> Any:
        key = description.model.config.to_json_string()
        if key not in traces:
            traces[key] = trace(description, outputs, on_progress)
        return traces[key]

    monkeypatch.setattr(split, "_traced", traced)


def taken_apart(folder: Path, *exclude: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as room:
        places = {"outputs": {"portable": f"{room}/graphs.zip"}, "converted": f"{room}/converted.safetensors"}
        return split.run({"checkpoint": str(folder), "exclude": list(exclude), **places}, lambda record: None)


def components(folder: Path) -> dict[str, dict[str, Any]]:
    return {part["component"]: part for part in taken_apart(folder)["components"]}


def loading(folder: Path, component: str, output: Path) -> dict[str, Any]:
    """What the load stage is asked for, to write all of a module's own weights."""
    model = ModelParts("m", "draft", taken_apart(folder), 32, {})
    part = next(part for part in model.split["components"] if part["component"] == component)
    tensors, size = Places([model], {}).written(part)
    places = {"output": str(output / "data"), "converted": str(output / "converted")}
    return {"checkpoint": str(folder), "tensors": tensors, "size_bytes": size, **places}


def ids(folder: Path) -> dict[str, str]:
    return {name: part["id"] for name, part in components(folder).items()}


def weights(folder: Path) -> dict[str, str]:
    """The digest of each weight, by the name that the model itself has for it."""
    sources = locate(folder, open_checked(folder)).sources
    return {name: sha256_bytes(read_tensor(folder, vars(source)).tobytes()) for name, source in sources.items()}


@pytest.fixture
def mine(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(checkpoint("llava"), tmp_path / "mine"))


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(
            {name: value.contiguous() for name, value in tensors.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )

    return edit


def edit_config(**changed: Any) -> Edit:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changed}))

    return edit


def edit_text(**changed: Any) -> Edit:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        edit_config(text_config={**config["text_config"], **changed})(folder)

    return edit


def edit_norm(value: float) -> Edit:
    return edit_weights(lambda tensors: tensors["language_model.model.norm.weight"][3:4].fill_(value))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_every_spelling_of_the_keys_gives_every_weight_the_same_numbers(
    checkpoint: Callable[..., Path], family: str
) -> None:
    saved = weights(checkpoint(family, "saved"))
    assert len(saved) > 30
    assert weights(checkpoint(family, "hub")) == weights(checkpoint(family, "module")) == saved


def test_every_spelling_of_the_keys_gives_the_same_modules(checkpoint: Callable[..., Path]) -> None:
    saved = ids(checkpoint("llava", "saved"))
    assert tuple(saved) == NAMES
    assert ids(checkpoint("llava", "hub")) == ids(checkpoint("llava", "module")) == saved


def test_the_spellings_do_differ(checkpoint: Callable[..., Path]) -> None:
    keys = {
        spelling: frozenset(load_file(checkpoint("llava", spelling) / "model.safetensors"))
        for spelling in ("saved", "hub", "module")
    }
    assert len(set(keys.values())) == 3
    assert "vision_tower.vision_model.embeddings.class_embedding" in keys["hub"]
    assert "language_model.model.embed_tokens.weight" in keys["hub"]


def test_several_weight_files_give_the_same_weights_as_one(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoints.original(checkpoint("llava")).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weights(tmp_path) == weights(checkpoint("llava"))


def test_another_number_anywhere_changes_the_module_it_is_in_and_no_other(mine: Path) -> None:
    before = ids(mine)
    edit_weights(lambda tensors: tensors["language_model.model.norm.weight"].add_(1e-3))(mine)
    after = ids(mine)
    assert [name for name in NAMES if after[name] != before[name]] == ["decoder"]


def test_a_field_of_the_config_changes_the_modules_that_compute_with_it_and_no_other(mine: Path) -> None:
    before = ids(mine)
    unread = {"a_field_of_tomorrow": 1, "dtype": "float16", "transformers_version": "5.0.0"}
    edit_config(projector_hidden_act="relu", **unread)(mine)
    after = ids(mine)
    assert [name for name in NAMES if after[name] != before[name]] == ["vision_encoder"]


def test_models_with_one_tower_and_other_texts_share_the_tower(mine: Path) -> None:
    before, config = ids(mine), json.loads((mine / "config.json").read_text())
    edit_config(text_config={**config["text_config"], "rms_norm_eps": 1e-3}, image_token_index=9)(mine)
    after = ids(mine)
    assert after["vision_encoder"] == before["vision_encoder"]
    assert after["decoder"] != before["decoder"]


def test_splitting_tells_how_a_request_reaches_the_modules(checkpoint: Callable[..., Path]) -> None:
    found = taken_apart(checkpoint("llava"))
    [encoder] = found["encoders"]
    assert (encoder["component"], encoder["inputs"], encoder["placeholder"]) == ("vision_encoder", ["pixel_values"], 4)
    assert (found["tokens"], found["position"], found["facts"]) == ("input_ids", "rope", {})
    assert (found["hidden_size"], found["vocab_size"]) == (32, checkpoints.VOCABULARY)
    assert [state["update"] for state in found["states"]["portable"]] == ["concat"] * 4


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_half_and_double_weights_are_written_as_the_float32_that_torch_makes_of_them(
    mine: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.to(kind) for name, value in tensors.items()})

    edit_weights(change)(mine)
    load.run(loading(mine, "embed_tokens", tmp_path), lambda record: None)
    wanted = load_file(mine / "model.safetensors")["language_model.model.embed_tokens.weight"].float().numpy()
    written = np.fromfile(tmp_path / "data", "<f4")[: wanted.size].reshape(wanted.shape)
    assert np.array_equal(written, wanted)


def edit_header(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:end])
        changed = json.dumps(change(header) or header).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[end:])

    return edit


def edit_entry(**changed: Any) -> Edit:
    """Another header for one tensor; a field that is None is left out."""

    def change(header: dict[str, Any]) -> None:
        entry = {**header["language_model.model.norm.weight"], **changed}
        header["language_model.model.norm.weight"] = {key: value for key, value in entry.items() if value is not None}

    return edit_header(change)


def edit_index(name: object) -> Edit:
    """An index that names a file; the file stands where it says."""

    def edit(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder.parent / "x.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    return edit


def overlap(folder: Path) -> None:
    path = folder / "model.safetensors"
    held = path.read_bytes()
    length = struct.unpack("<Q", held[:8])[0]
    told = json.loads(held[8 : 8 + length])
    pairs = [entry for entry in told.values() if "data_offsets" in entry]
    alike = next(
        (one, other)
        for one in pairs
        for other in pairs
        if one["shape"] == other["shape"] and one["data_offsets"] < other["data_offsets"]
    )
    alike[1]["data_offsets"] = alike[0]["data_offsets"]
    header = json.dumps(told).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + held[8 + length :])


FAULTS: dict[str, tuple[Edit, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json; point at"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    "config is no checkpoint's": (
        lambda folder: (folder / "config.json").write_text("{}"),
        "config.json: no model_type",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"no \*.safetensors file"),
    "truncated": (cut, r"model.safetensors: truncated or damaged, \d+ bytes where its header says \d+"),
    "more than the header tells": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes() + b"more"
        ),
        r"model.safetensors: truncated or damaged, \d+ bytes where its header says \d+",
    ),
    "shards without an index": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors"),
        "holds model-00001-of-00001.safetensors where transformers looks for model.safetensors",
    ),
    "tensors over one another": (overlap, r"begins at byte \d+ where the one before it ends at \d+"),
    "empty file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "truncated or damaged safetensors header",
    ),
    "no header": (
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 9) + b"not json!"),
        "damaged safetensors header",
    ),
    "missing tensor": (
        edit_weights(lambda tensors: [tensors.pop("language_model.model.norm.weight")]),
        r"tensor 'model.language_model.norm.weight' is missing \(1 in all\)",
    ),
    "unexpected tensor": (
        edit_weights(lambda tensors: tensors.update({"surprise": torch.zeros(2)})),
        r"2 parameters in surprise are not part of the model; use the config.json",
    ),
    "wrong shape": (
        edit_weights(lambda tensors: tensors.update({"language_model.model.norm.weight": torch.zeros(31)})),
        r"tensor 'model.language_model.norm.weight' is \(31,\) where config.json says \(32,\)",
    ),
    "quantised": (
        edit_weights(
            lambda tensors: tensors.update({"language_model.model.norm.weight": torch.zeros(32, dtype=torch.int8)})
        ),
        "has type I8: quantised checkpoints cannot be compiled yet",
    ),
    "missing shard": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "gone.safetensors"}}'
        ),
        "gone.safetensors: no such file; download the checkpoint again",
    ),
    "damaged index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        "model.safetensors.index.json",
    ),
    "shard outside": (edit_index("../x.safetensors"), "index.json: names '../x.safetensors', no file beside it"),
    "shard that is no name": (edit_index(5), "index.json: names 5, no file beside it"),
    "header is a list": (edit_header(lambda header: [1]), r"damaged safetensors header \(header: .*dictionary\)"),
    "no offsets": (edit_entry(data_offsets=None), r"header \(language_model.model.norm.weight.data_offsets: field req"),
    "one offset": (edit_entry(data_offsets=[0]), r"damaged safetensors header \(language_model.model.norm.weight"),
    "negative size": (edit_entry(data_offsets=[128, 0]), "a shape that disagrees with its bytes"),
    "negative offset": (edit_entry(data_offsets=[-128, 0]), "damaged safetensors header"),
    "bytes of another shape": (edit_entry(data_offsets=[0, 124]), "norm.weight' has a shape that disagrees"),
    "shape is no list": (edit_entry(shape="32"), "damaged safetensors header"),
    "architecture that is no model": (edit_config(architectures=["AutoConfig"]), "architecture 'AutoConfig' is not a"),
    "architecture of another family": (edit_config(architectures=["LlamaForCausalLM"]), "is not a llava model"),
    "architectures in no list": (
        edit_config(architectures="Llava"),
        "architectures names no class, which is not a llava model",
    ),
    "unknown architecture": (
        edit_config(architectures=["Moon"]),
        "architecture 'Moon' is not a llava model of transformers",
    ),
    "a value of the wrong kind": (
        edit_text(hidden_size="abc"),
        "config.json: .*Field 'hidden_size' expected int, got str",
    ),
    "no heads": (edit_text(num_attention_heads=0), r"config.json: transformers can make no model .*ZeroDivisionError"),
    "negative heads": (edit_text(num_key_value_heads=-2), "config.json: .*negative dimension"),
    "unknown activation": (edit_text(hidden_act="bogus"), "config.json: .*KeyError: 'bogus'"),
    "not a number": (edit_norm(float("nan")), r"model.safetensors: tensor '.*norm.weight' holds values .* not finite"),
    "infinite": (edit_norm(float("-inf")), r"model.safetensors: tensor '.*norm.weight' holds values .* not finite"),
    "unsupported family": (edit_config(model_type="moon"), "model_type 'moon' is none of transformers"),
}


def test_what_is_in_no_graph_fails_a_build_until_it_is_left_out_by_name(tmp_path: Path) -> None:
    config = janus()
    config.image_token_id = 5
    transformers.JanusForConditionalGeneration(config).save_pretrained(tmp_path)
    painting = ["model.vqmodel", "model.generation_embeddings", "model.generation_aligner", "model.generation_head"]
    with pytest.raises(StageError, match=r"Janus.*: no graph reads \d+ parameters in model.vqmodel, model.gen"):
        taken_apart(tmp_path)
    found = taken_apart(tmp_path, *painting)
    assert (found["excluded"], found["kept"]) == (painting, painting)
    assert [part["component"] for part in found["components"]] == list(NAMES)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(propose(tmp_path, recipe)["recipe_toml"], encoding="utf-8")
    assert read_recipe(recipe).export.exclude == tuple(painting)


def test_what_the_model_has_no_place_for_is_left_out_by_name(mine: Path) -> None:
    edit_weights(lambda tensors: tensors.update({"value_head.weight": torch.zeros(2)}))(mine)
    assert taken_apart(mine, "value_head")["excluded"] == ["value_head"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_is_not_whole_is_refused_with_its_place(mine: Path, fault: str) -> None:
    damage, said = FAULTS[fault]
    damage(mine)
    with pytest.raises(CheckpointError, match=said) as caught:
        taken_apart(mine)
    assert caught.value.exit_code == 2
    assert str(mine) in str(caught.value)


@pytest.mark.parametrize("fault", ["no config", "missing tensor", "unsupported family"])
def test_build_exits_2_with_the_sentence_of_the_stage(mine: Path, tmp_path: Path, fault: str) -> None:
    FAULTS[fault][0](mine)
    recipe = write_recipe(tmp_path / "broken.toml", {"edge": (mine, "draft")})
    done = run("build", recipe, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_loading_weights_needs_no_torch(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    arguments = loading(checkpoint("llava"), "decoder", tmp_path)
    code = "import sys, json\nfrom msao_compile.stages import load\n"
    code += "load.run(json.loads(sys.argv[1]), print)\nprint('torch' in sys.modules)"
    done = python(code, json.dumps(arguments))
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert (tmp_path / "data").stat().st_size == arguments["size_bytes"] > 0
