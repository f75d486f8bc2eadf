"""What a checkpoint has beside its weights is looked at before the first stage, with the names the user knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from building import Workshop, run, write_recipe
from transformers import BartConfig, T5Config

from msao_compile.cli.app import main
from msao_compile.errors import CheckpointError
from msao_compile.families.side_files import lacks, start_token


@pytest.fixture
def mine(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint with tokenizer, chat template and picture settings, to damage."""
    return Path(shutil.copytree(checkpoint("idefics3"), tmp_path / "mine"))


def no_crops(text: str) -> str:
    config = json.loads(text)
    config["image_processor"]["image_processor_type"] = "MoonImageProcessor"
    return json.dumps(config)


DAMAGES: dict[str, tuple[str, Callable[[str], str]]] = {
    "half a tokenizer": ("tokenizer.json", lambda text: text[:2000]),
    "half a template": ("chat_template.jinja", lambda text: text + "{% if %}"),
    "a template that fails": ("chat_template.jinja", lambda text: text + "{{ nothing.at.all }}"),
    "half of the picture settings": ("processor_config.json", lambda text: text[:20]),
    "an unknown image processor": ("processor_config.json", no_crops),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_the_runtime_cannot_use_is_named_where_the_user_has_it(mine: Path, damage: str) -> None:
    name, change = DAMAGES[damage]
    (mine / name).write_text(change((mine / name).read_text()))
    with pytest.raises(CheckpointError) as caught:
        lacks(mine)
    assert str(mine / name) in str(caught.value)


@pytest.mark.parametrize("action", ["plan", "build"])
def test_a_damaged_tokenizer_is_refused_before_the_first_stage(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    (mine / "tokenizer.json").write_text("{")
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (mine, "draft")})
    assert main([action, str(recipe), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {mine / 'tokenizer.json'} is damaged")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (("tokenizer.json",), "has no tokenizer.json, so `run` cannot answer prompts"),
        (("chat_template.jinja",), "has no chat template, so `run` cannot answer prompts"),
        (("processor_config.json",), "has no preprocessor_config.json or processor_config.json, so `run` cannot answer "
                                     "questions about pictures"),
        ((), ""),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_with_what_run_will_lack(mine: Path, gone: tuple[str, ...], said: str) -> None:
    for name in gone:
        (mine / name).unlink()
    assert said in lacks(mine)
    assert bool(lacks(mine)) is bool(said)


def test_init_and_plan_warn_of_what_run_will_lack_in_one_line(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    for arguments in (
        ["init", str(checkpoint("llava")), "-o", str(tmp_path / "r.toml")],
        ["plan", str(tmp_path / "r.toml"), *words],
    ):
        assert main(arguments) == 0
        assert capsys.readouterr().err.count(f"warning: {checkpoint('llava')}: has no tokenizer.json and no prepr") == 1


def test_a_template_that_is_missing_ends_no_build_at_measuring(mine: Path, workshop: Workshop, tmp_path: Path) -> None:
    (mine / "chat_template.jinja").unlink()
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (mine, "draft")})
    shutil.copytree(workshop.options.store, tmp_path / "store")  # the same weights: they need not be traced again
    done = run("build", recipe, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr


@pytest.mark.parametrize(
    ("told", "start"),
    [
        (None, 2),
        ({"bos_token_id": 1}, 1),
        ({"bos_token_id": 1, "decoder_start_token_id": 7}, 7),
    ],
)
def test_an_answer_starts_as_generate_starts_it(tmp_path: Path, told: dict[str, int] | None, start: int) -> None:
    """What generation_config.json says of the opening token comes before all that config.json says."""
    if told is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(told))
    config = BartConfig(decoder_start_token_id=2, bos_token_id=4)
    assert start_token(tmp_path, config) == start


def test_an_answer_that_nothing_says_how_to_start_is_refused(tmp_path: Path) -> None:
    config = T5Config(decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(CheckpointError, match="with which token an answer starts; add decoder_start_token_id to"):
        start_token(tmp_path, config)
