"""What users get wrong, through the real command line: one sentence on stderr, the exit code, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from building import ROOT, command, write_recipe
from PIL import Image

from msao_compile.cli.app import main

Capture = pytest.CaptureFixture[str]
Change = Callable[[str], str]


def refused(capsys: Capture, *arguments: object) -> str:
    """The one sentence of a command that must end with exit code 2."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    return error


RECIPES: dict[str, tuple[Change, str]] = {
    "not TOML": (lambda text: text + "[", "is not valid TOML"),
    "unknown field": (lambda text: text + "surprise = 1\n", "surprise"),
    "unknown table": (lambda text: text + "[surprise]\nx = 1\n", "surprise"),
    "wrong type": (lambda text: text.replace("kv_capacity = 256", 'kv_capacity = "256"'), "kv_capacity"),
    "wrong version": (lambda text: text.replace("recipe = 1", "recipe = 2"), "recipe"),
    "missing checkpoint": (
        lambda text: text.replace('checkpoint = "', 'checkpoint = "/gone'),
        "models.edge.checkpoint names no folder at /gone",
    ),
    "clashing names": (
        lambda text: (
            text + text[text.index("[targets.edge]") : text.index("[targets.device]")].replace("edge]", "EDGE]")
        ),
        "targets.edge and targets.EDGE would share a folder",
    ),
    "min above opt": (
        lambda text: text.replace("sequence = [1, 16, 64]", "sequence = [32, 16, 64]"),
        "min <= opt <= max",
    ),
    "sequence above capacity": (
        lambda text: text.replace("kv_capacity = 256", "kv_capacity = 32"),
        "more than kv_capacity = 32",
    ),
    "unknown device": (
        lambda text: text.replace('device = "local-cpu"', 'device = "local-cup"', 1),
        "did you mean 'local-cpu'",
    ),
    "unknown model": (lambda text: text.replace("models = ['edge']", 'models = ["edgy"]'), "did you mean 'edge'"),
    "a precision that CPUs are slow in": (
        lambda text: text.replace('"fp32"', '"fp16"', 1),
        "targets.edge.precision: fp16 is slower than fp32 on a CPU",
    ),
}


@pytest.mark.parametrize("fault", RECIPES)
@pytest.mark.parametrize("action", ["plan", "build"])
def test_a_recipe_that_cannot_be_used_is_refused(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, fault: str, action: str
) -> None:
    change, said = RECIPES[fault]
    recipe = write_recipe(tmp_path / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})
    recipe.write_text(change(recipe.read_text()))
    sentence = refused(capsys, action, recipe, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert said in sentence
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert "gone.toml: there is no such file" in refused(capsys, "build", tmp_path / "gone.toml")


def not_an_image(path: Path, picture: Path) -> None:
    path.write_text("hello")


def truncated(path: Path, picture: Path) -> None:
    path.write_bytes(picture.read_bytes()[:-200])


def empty(path: Path, picture: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path, picture: Path) -> None:
    path.mkdir()


def bomb(path: Path, picture: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


def absent(path: Path, picture: Path) -> None:
    return


def pipe(path: Path, picture: Path) -> None:
    os.mkfifo(path)


PICTURES = {
    not_an_image: "is not an image that can be read; convert it to PNG or JPEG",
    truncated: "is a truncated or damaged image",
    empty: "has no bytes; copy or download the image again",
    folder: "is a directory; give the path of one image file in it",
    pipe: "is a pipe or a device; give the path of an image file",
    bomb: "20000 x 20000 = 400000000 pixels|decompression bomb",
    absent: "does not exist; give the path of an image file",
}


@pytest.mark.parametrize("make", PICTURES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("route", ["edge", "cloud", "split"])
def test_a_picture_that_cannot_be_used_is_refused(
    deployment: Path, picture: Path, tmp_path: Path, capsys: Capture, make: Callable[[Path, Path], None], route: str
) -> None:
    path = tmp_path / "given.png"
    make(path, picture)
    sentence = refused(capsys, "run", deployment, "--prompt", "what?", "--image", path, "--route", route)
    assert any(said in sentence for said in PICTURES[make].split("|")), sentence
    assert (route == "cloud" and path.is_file()) or "given.png" in sentence


def test_a_placeholder_without_a_picture_is_refused(deployment: Path, capsys: Capture) -> None:
    sentence = refused(capsys, "run", deployment, "--prompt", "<image>")
    assert "holds 1 picture placeholder where the pictures give 0 features" in sentence


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_an_empty_prompt_is_refused(deployment: Path, capsys: Capture, prompt: str) -> None:
    assert "the prompt is empty: ask something" in refused(capsys, "run", deployment, "--prompt", prompt)


def test_a_prompt_longer_than_the_cache_is_refused(deployment: Path, capsys: Capture) -> None:
    sentence = refused(capsys, "run", deployment, "--prompt", "what color is it? " * 200)
    assert "exceed the KV cache of 256: shorten the prompt" in sentence
    assert "kv_capacity" in sentence


def test_a_prompt_that_is_not_utf8_is_refused(deployment: Path) -> None:
    words = [
        sys.executable.encode(),
        b"-m",
        b"msao_compile",
        b"run",
        str(deployment).encode(),
        b"--prompt",
        b"what \xff\xfe?",
    ]
    done = subprocess.run(words, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONUTF8": "1"}, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "{deployment}", "--prompt", "x", "--max-new-tokens", "0"), "max-new-tokens"),
        (("run", "{deployment}", "--prompt", "x", "--temperature", "-1"), "temperature"),
        (("run", "{deployment}", "--prompt", "x", "--route", "moon"), "route"),
        (("run", "{deployment}"), "--prompt"),
        (("run", "{nothing}", "--prompt", "x"), "no deployment.json"),
        (("parity", "{nothing}"), "no deployment.json"),
        (("inspect", "{nothing}"), ""),
        (("init", "{nothing}"), "no config.json"),
        (("fly",), "No such command 'fly'"),
        (("build",), "RECIPE"),
    ],
)
def test_wrong_arguments_are_refused(
    deployment: Path, tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], said: str
) -> None:
    words = [word.format(deployment=deployment, nothing=tmp_path) for word in arguments]
    assert said in refused(capsys, *words)


def test_the_exit_code_is_the_process_s_own(tmp_path: Path) -> None:
    done = subprocess.run(
        command("plan", tmp_path / "gone.toml"), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
