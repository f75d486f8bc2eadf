"""A config.json that names remote code or quantised weights is refused before anything is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building import write_recipe

from msao_compile.cli.app import main
from msao_compile.errors import CheckpointError, MissingTool, UnsupportedFamily
from msao_compile.families.checkpoint import read_config
from msao_compile.families.refusals import refuse_unusable
from msao_compile.families.registry import open_checked, open_skeleton

FOLDER = Path("/checkpoint")
REMOTE = {"AutoConfig": "configuration_moon.MoonConfig", "AutoModelForImageTextToText": "modeling_moon.MoonModel"}
CONFIGURATION = """
from transformers import PretrainedConfig
class MoonConfig(PretrainedConfig):
    model_type = "moon"
    def __init__(self, width=8, **more):
        self.width = width
        super().__init__(**more)
"""
MODELING = """
import torch
from transformers import PreTrainedModel
from .configuration_moon import MoonConfig
class MoonModel(PreTrainedModel):
    config_class = MoonConfig
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.width, config.width)
        self.post_init()
"""


def refusal(config: dict[str, Any], trusted: bool = False) -> str:
    with pytest.raises(CheckpointError) as caught:
        refuse_unusable(FOLDER, config, trusted, "models.edge")
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "moon", "auto_map": REMOTE},
            "/checkpoint/config.json: auto_map names remote code (configuration_moon.MoonConfig), which is not run "
            "unless the recipe says so; read that code and set models.edge.trust_remote_code = true, or use a "
            "checkpoint in the form that transformers itself has",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama", "auto_map": REMOTE}},
            "/checkpoint/config.json: text_config.auto_map names remote code (configuration_moon.MoonConfig), which is "
            "not run unless the recipe says so; read that code and set models.edge.trust_remote_code = true, or remove "
            "text_config.auto_map, because transformers itself has 'llama'",
        ),
    ],
)
def test_a_config_that_names_remote_code_is_refused_with_the_two_ways_out(config: dict[str, Any], said: str) -> None:
    assert refusal(config) == said


def test_remote_code_is_no_fault_where_the_recipe_allows_it() -> None:
    refuse_unusable(FOLDER, {"model_type": "moon", "auto_map": REMOTE}, trusted=True)


def test_an_empty_auto_map_names_nothing() -> None:
    refuse_unusable(FOLDER, {"model_type": "llava", "auto_map": {}}, trusted=False)


QUANTISED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "awq", "bits": 4}, "(method awq, 4 bits)"),
    ({"quant_method": "gptq", "bits": 3}, "(method gptq, 3 bits)"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "(method fp8, 8 bits)"),
    ({"quant_method": "mxfp4"}, "(method mxfp4, 4 bits)"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "(method bitsandbytes, 4 bits)"),
    ({"quant_method": "hqq"}, "(method hqq)"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "(method modelopt, 4 bits)"),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}},
                                                                 "group_1": {"weights": {"num_bits": 8}}}},
        "(method compressed-tensors, 4 and 8 bits)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("section", "said"), QUANTISED)
@pytest.mark.parametrize("inside", ["", "text_config"])
def test_quantised_weights_are_refused_with_their_method_and_width(
    section: dict[str, Any], said: str, inside: str
) -> None:
    part = {"model_type": "llama", "quantization_config": section}
    sentence = refusal({"model_type": "llava", inside: part} if inside else part, trusted=True)
    assert said in sentence
    assert f"{inside}{'.' if inside else ''}quantization_config" in sentence
    assert "use the checkpoint it was made from, in fp32, fp16 or bf16" in sentence


def test_what_modelopt_writes_beside_the_config_is_understood(tmp_path: Path) -> None:
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    with pytest.raises(CheckpointError, match=r"hf_quant_config.json: quantization says .*\(method modelopt, 8 bits\)"):
        refuse_unusable(tmp_path, {"model_type": "llava"}, trusted=True)


def test_the_checkpoint_that_a_quantised_one_was_made_from_is_named_where_it_is_known() -> None:
    told = {"model_type": "llava", "_name_or_path": "org/whole", "quantization_config": {"quant_method": "awq"}}
    assert "use org/whole, the checkpoint it was made from" in refusal(told)


@pytest.mark.parametrize(
    ("more", "said"),
    [({"auto_map": REMOTE}, "set models.edge.trust_remote_code = true"),
     ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "method awq, 4 bits")],
)  # fmt: skip
def test_no_stage_starts_on_a_config_that_is_refused(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], said: str
) -> None:
    mine = Path(shutil.copytree(checkpoint("llava"), tmp_path / "mine"))
    (mine / "config.json").write_text(json.dumps(read_config(mine) | more))
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (mine, "draft")})
    capsys.readouterr()
    assert main(["build", str(recipe), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    with pytest.raises(CheckpointError, match=r"auto_map|method awq"):
        open_checked(mine)


@pytest.fixture
def moon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose code lies beside its config."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "moon"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "moon", "width": 16, "auto_map": REMOTE}))
    (folder / "configuration_moon.py").write_text(CONFIGURATION)
    (folder / "modeling_moon.py").write_text(MODELING)
    return folder


def test_code_in_the_folder_is_followed_once_it_is_allowed(moon: Path) -> None:
    model = open_skeleton(moon, read_config(moon), None)
    assert type(model).__name__ == "MoonModel"
    assert model.get_parameter("layer.weight").shape == (16, 16)


def test_code_of_another_repository_is_never_fetched(moon: Path) -> None:
    elsewhere = {"auto_map": {**REMOTE, "AutoConfig": "org/other--configuration_moon.MoonConfig"}}
    for more in (elsewhere, {"text_config": elsewhere}):
        with pytest.raises(UnsupportedFamily, match="names code in another repository"):
            open_skeleton(moon, read_config(moon) | more, None)


def test_code_that_needs_more_than_is_installed_is_a_missing_tool(moon: Path) -> None:
    (moon / "modeling_moon.py").write_text("import nowhere_at_all\n" + MODELING)
    with pytest.raises(MissingTool, match="needs more than is installed: .*nowhere_at_all"):
        open_skeleton(moon, read_config(moon), None)


def test_code_that_is_no_python_is_refused(moon: Path) -> None:
    (moon / "modeling_moon.py").write_text("class MoonModel(")
    with pytest.raises(CheckpointError, match="is not Python that can be read"):
        open_skeleton(moon, read_config(moon), None)


def test_a_class_of_another_family_opens_where_transformers_pairs_it_with_the_config(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "qwen2", **small, "num_key_value_heads": 2, "vocab_size": 32}
    config = {"model_type": "pp_chart2table", "text_config": text, "image_token_id": 30}
    for name in ("GotOcr2ForConditionalGeneration", "LlavaForConditionalGeneration"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
        if name.startswith("GotOcr2"):
            assert type(open_checked(tmp_path)).__name__ == name
        else:
            with pytest.raises(CheckpointError, match="'LlavaForConditionalGeneration' is not a pp_chart2table model"):
                open_checked(tmp_path)


def test_a_family_that_transformers_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFamily, match="model_type 'moon' is none of transformers"):
        open_skeleton(tmp_path, {"model_type": "moon"}, None)
