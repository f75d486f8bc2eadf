"""Tokenizer and picture settings that belong to another model than config.json are refused with both values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building import write_recipe

from msao_compile.cli.app import main
from msao_compile.errors import CheckpointError
from msao_compile.families.agreement import refuse_strangers
from msao_compile.families.checkpoint import read_config
from msao_compile.families.side_files import lacks

QWEN: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "image_token_id": 7, "text_config": {"vocab_size": 100},
    "vision_config": {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
}  # fmt: skip
LLAVA: dict[str, Any] = {
    "model_type": "llava", "image_token_index": 7, "text_config": {"vocab_size": 100},
    "vision_config": {"patch_size": 14, "image_size": 336},
}  # fmt: skip


def write(folder: Path, **files: object) -> Path:
    for name, told in files.items():
        (folder / f"{name}.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("config", "name", "told", "said"),
    [
        (QWEN, "processor_config", {"processor_class": "LlavaProcessor"},
         "processor_class is LlavaProcessor, which serves llava and vipllava, but config.json says model_type "
         "'qwen2_5_vl'"),
        (LLAVA, "preprocessor_config", {"image_processor_type": "Qwen2VLImageProcessorFast"},
         "image_processor_type is Qwen2VLImageProcessor, which serves qwen2_vl and qwen2_5_vl, but"),
        (QWEN, "preprocessor_config", {"patch_size": 16}, "patch_size is 16, but config.json says "
                                                          "vision_config.patch_size = 14"),
        (QWEN, "preprocessor_config", {"merge_size": 4}, "merge_size is 4, but config.json says "
                                                         "vision_config.spatial_merge_size = 2"),
        (LLAVA, "processor_config", {"image_processor": {"crop_size": {"height": 224, "width": 224}}},
         "crop_size is 224, but config.json says vision_config.image_size = 336"),
        (LLAVA, "processor_config", {"patch_size": 16}, "patch_size is 16, but config.json says"),
        (LLAVA, "preprocessor_config", {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384,
                                                                                               "width": 384}},
         "size is 384, but config.json says vision_config.image_size = 336"),
    ],
)  # fmt: skip
def test_picture_settings_of_another_model_are_refused_with_both_values(
    tmp_path: Path, config: dict[str, Any], name: str, told: dict[str, Any], said: str
) -> None:
    write(tmp_path, **{name: told})
    with pytest.raises(CheckpointError) as caught:
        refuse_strangers(tmp_path, config)
    assert str(caught.value).startswith(f"{tmp_path / name}.json: {said}")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (QWEN, {"processor_class": "Qwen2_5_VLProcessor", "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}),
        (QWEN, {"processor_class": "Qwen2VLProcessor", "crop_size": None}),
        (LLAVA, {"processor_class": "PixtralProcessor"}),
        (LLAVA, {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 336, "width": 336}}),
        (LLAVA, {"do_center_crop": False, "crop_size": 224}),
        ({**LLAVA, "model_type": "moon"}, {"processor_class": "LlavaProcessor"}),
    ],
)
def test_picture_settings_that_may_belong_to_the_model_are_no_fault(
    tmp_path: Path, config: dict[str, Any], told: dict[str, Any]
) -> None:
    refuse_strangers(write(tmp_path, preprocessor_config=told), config)


def tokenizer(**added: int) -> dict[str, Any]:
    words = {f"word{number}": number for number in range(7)}
    return {"model": {"vocab": words}, "added_tokens": [{"content": f"<{word}>", "id": number}
                                                        for word, number in added.items()]}  # fmt: skip


def test_an_image_token_with_another_id_is_refused_with_both_ids(tmp_path: Path) -> None:
    write(tmp_path, tokenizer=tokenizer(image=9), processor_config={"image_token": "<image>"})
    with pytest.raises(CheckpointError, match="image token '<image>' has the id 9, but config.json says image_token_i"):
        refuse_strangers(tmp_path, LLAVA)


def test_the_image_token_that_no_file_names_is_the_familys_own(tmp_path: Path) -> None:
    write(tmp_path, tokenizer=tokenizer(image=9))
    with pytest.raises(CheckpointError, match="has the id 9, but config.json says image_token_id 7"):
        refuse_strangers(tmp_path, LLAVA)
    write(tmp_path, tokenizer=tokenizer(image=7))
    refuse_strangers(tmp_path, LLAVA)


def test_a_family_whose_config_means_another_token_than_its_processor_is_let_be(tmp_path: Path) -> None:
    write(tmp_path, tokenizer=tokenizer(image=9, patch=7), processor_config={"image_token": "<image>"})
    refuse_strangers(tmp_path, {**LLAVA, "model_type": "llama4", "image_token_index": 7})


def test_a_processor_whose_image_token_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tokenizer=tokenizer(other=8), tokenizer_config={"image_token": {"content": "<image>"}})
    with pytest.raises(CheckpointError, match="has no token '<image>', which the processor writes for each image"):
        refuse_strangers(tmp_path, LLAVA)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tokenizer=tokenizer(image=7, last=100))
    with pytest.raises(CheckpointError, match="'<last>' has the id 100, but by config.json the embedding has 100 rows"):
        refuse_strangers(tmp_path, LLAVA)
    refuse_strangers(tmp_path, {**LLAVA, "text_config": {"vocab_size": 101}})


def test_a_config_inside_the_config_of_an_omni_model_is_understood(tmp_path: Path) -> None:
    write(tmp_path, tokenizer=tokenizer(image=9), tokenizer_config={"image_token": "<image>"})
    with pytest.raises(CheckpointError, match="has the id 9"):
        refuse_strangers(tmp_path, {"model_type": "qwen2_5_omni", "thinker_config": QWEN})


def test_a_damaged_file_is_left_to_who_reads_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    refuse_strangers(tmp_path, LLAVA)


@pytest.mark.parametrize("action", ["plan", "build", "init"])
def test_a_stranger_is_refused_before_the_first_stage(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    mine = Path(shutil.copytree(checkpoint("idefics3"), tmp_path / "mine"))
    (mine / "config.json").write_text(json.dumps(read_config(mine) | {"image_token_id": 5}))
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (mine, "draft")})
    words = [mine, "-o", tmp_path / "r.toml"] if action == "init" else [recipe, "--store", tmp_path / "store"]
    assert main([action, *map(str, words)]) == 2
    assert "image token '<image>' has the id 4, but config.json says image_token_id 5" in capsys.readouterr().err


def test_side_files_that_belong_to_the_checkpoint_are_no_fault(checkpoint: Callable[..., Path]) -> None:
    assert lacks(checkpoint("idefics3")) == lacks(checkpoint("smolvlm")) == ""
