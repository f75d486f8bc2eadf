"""What a model is opened from: listed files, fitting facts and modules; and what is read ahead of questions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from msao_compile.errors import DeploymentError, InputError
from msao_compile.runtime import load


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((folder / "deployment.json").read_text())
    change(content)
    (folder / "deployment.json").write_text(json.dumps(content))


def unlist(folder: Path, path: str) -> None:
    """Take a file out of the manifest and leave it in the folder."""
    edit(folder, lambda content: content["models"][0].update(
        files=[file for file in content["models"][0]["files"] if file["path"] != path]))  # fmt: skip


def test_a_file_that_the_manifest_does_not_list_is_not_read(copy: Path, picture: Path) -> None:
    honest = load(copy).generate("what?", image=picture)
    for name in ("special_tokens_map.json", "chat_template.json"):
        (copy / "tokenizer/edge" / name).write_text("planted")
    (copy / "preprocessor/edge/preprocessor_config.json").write_text("planted")
    assert load(copy).generate("what?", image=picture).token_ids == honest.token_ids


@pytest.mark.parametrize("path", ["tokenizer/edge/tokenizer.json", "preprocessor/edge/processor_config.json"])
def test_a_file_that_is_needed_must_be_listed(copy: Path, picture: Path, path: str) -> None:
    unlist(copy, path)
    with pytest.raises(InputError, match=f"(no|build from).*{path.rpartition('/')[2].split('_')[0]}"):
        load(copy).generate("what?", image=picture)


@pytest.mark.parametrize("name", ["tokenizer", "preprocessor"])
def test_a_linked_folder_outside_is_not_read(copy: Path, picture: Path, name: str) -> None:
    shutil.copytree(copy / name / "edge", copy.parent / "outside")
    (copy / "link").symlink_to(copy.parent / "outside")
    edit(copy, lambda content: content["models"][0].update({name: "link"}))
    with pytest.raises(InputError, match=r"copy/link(: no| has no listed) "):
        load(copy).generate("what?", image=picture)


def test_a_checkpoint_without_tokenizer_config_answers_about_pictures(copy: Path, picture: Path) -> None:
    unlist(copy, "tokenizer/edge/tokenizer_config.json")
    (copy / "tokenizer/edge/tokenizer_config.json").unlink()
    assert load(copy).generate("what?", image=picture, max_new_tokens=2).text is not None


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_preprocessor_is_named(copy: Path, picture: Path, content: str) -> None:
    path = "preprocessor/edge/processor_config.json"
    (copy / path).write_text(content)
    edit(copy, lambda manifest: [file.update(size_bytes=len(content)) for file in manifest["models"][0]["files"]
                                 if file["path"] == path])  # fmt: skip
    with pytest.raises(InputError, match=r"processor_config\.json (is not JSON|does not hold a JSON object)"):
        load(copy, verify=False).generate("what?", image=picture)


def test_positions_that_the_runtime_does_not_know_are_named(copy: Path) -> None:
    edit(copy, lambda content: content["models"][0]["decoder"].update(position="nova"))
    with pytest.raises(
        DeploymentError, match=r"models\.edge\.decoder\.position: 'nova' is not one this runtime knows \(rope, ernie4"
    ):
        load(copy).session("edge")


def test_a_host_function_that_the_runtime_does_not_know_is_named(copy: Path) -> None:
    call = {"function": "vision_nova", "settings": {}, "inputs": {}, "outputs": []}
    edit(copy, lambda content: content["models"][0]["encoders"][0].update(host=[call]))
    with pytest.raises(DeploymentError, match="vision_encoder needs the function 'vision_nova', which this runtime"):
        load(copy).session("edge")


def test_a_model_without_an_encoder_refuses_pictures(copy: Path, picture: Path) -> None:
    def without(content: dict) -> None:
        content["models"][0]["encoders"] = []
        content["models"][0]["components"].pop("vision_encoder")

    edit(copy, without)
    with pytest.raises(InputError, match="model 'edge' has no encoder for pixel_values: ask without it"):
        load(copy).generate("what?", image=picture)


@pytest.mark.parametrize("facts", [{}, {"image_token_id": 4}, {"spatial_merge_size": 0}, {"spatial_merge_size": "2"}])
def test_facts_that_positions_need_are_named(copy: Path, facts: dict) -> None:
    known = {"image_token_id": 4, "tokens_per_second": 2, "video_token_id": 5}
    given = {**known, **facts} if facts else {}
    edit(copy, lambda content: content["models"][0]["decoder"].update(position="qwen2_5_vl", facts=given))
    with pytest.raises(
        DeploymentError, match=r"models\.edge\.decoder\.facts\.\w+ is \w+ where positions of qwen2_5_vl"
    ):
        load(copy).session("edge")


def test_a_model_without_an_embedding_is_refused(copy: Path) -> None:
    edit(copy, lambda content: content["models"][0]["components"].pop("embed_tokens"))
    with pytest.raises(DeploymentError, match=r"models\.edge\.components has no embed_tokens"):
        load(copy).session("edge")


def test_the_first_answer_finds_tokenizer_and_preprocessor_read(deployment: Path) -> None:
    assert {"tokenizer", "preprocessor"} <= vars(load(deployment).session("edge")).keys()


def test_without_a_warm_up_only_the_modules_are_opened(copy: Path) -> None:
    edit(copy, lambda content: content["runtime"].update(warm_up=0))
    assert not {"tokenizer", "preprocessor"} & vars(load(copy).session("edge")).keys()


def test_the_warm_up_does_not_need_a_tokenizer(built: Callable[[str], Path]) -> None:
    assert "tokenizer" not in vars(load(built("llava")).session("edge"))


def test_another_number_of_threads_in_the_same_process_still_loads(
    deployment: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(deployment).session("edge")
    edit(copy, lambda content: content["runtime"].update(threads=3))
    load(copy).session("edge")
    assert "this process runs its modules on 1 threads already; 3 are not made" in caplog.text
