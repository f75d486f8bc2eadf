"""Exit codes, the error sentence, the JSON rule, and a light start."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from msao_compile import errors
from msao_compile.cli.app import COMMANDS, app, failure

from .conftest import Cli

NAMES = [function.__name__ for function, _, _ in COMMANDS]


@pytest.mark.parametrize(
    ("error", "name", "code"),
    [
        (errors.RecipeError("x"), "RecipeError", 2),
        (errors.DamagedFile("x"), "DamagedFile", 2),
        (errors.StageError("x"), "StageError", 3),
        (errors.MissingTool("x"), "MissingTool", 4),
        (errors.GateError("x"), "GateError", 5),
        (errors.Interrupted("x"), "Interrupted", 130),
        (KeyboardInterrupt(), "Interrupted", 130),
        (typer.BadParameter("x"), "UsageError", 2),
        (ValueError("x"), "ValueError", 3),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, name: str, code: int) -> None:
    assert failure(error)[0::2] == (name, code)


def test_an_error_of_several_lines_becomes_one_sentence() -> None:
    assert (
        failure(errors.StageError("export failed:\n  the graph\n  is empty"))[1] == "export failed: the graph is empty"
    )


def test_an_absent_library_names_its_extra() -> None:
    error = ModuleNotFoundError("No module named 'torch'", name="torch.nn")
    assert failure(error) == ("MissingTool", "torch.nn is not installed: pip install 'msao-compile[compile]'", 4)


def test_an_absent_module_of_our_own_is_not_blamed_on_an_extra() -> None:
    assert failure(ModuleNotFoundError("No module named 'msao_compile.x'", name="msao_compile.x"))[2] == 3


@pytest.mark.parametrize(("words", "level"), [((), "NONE"), (("--debug",), None)])
def test_grpc_says_nothing_beside_our_own_sentence_unless_asked_to(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], level: str | None
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "")  # put back afterwards
    monkeypatch.delenv("GRPC_VERBOSITY")
    cli("schema", "recipe", *words)
    assert os.environ.get("GRPC_VERBOSITY") == level


def test_an_unexpected_error_points_at_debug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("msao_compile.cli.contents.look_into", broken)
    ran = cli("inspect", "x")
    assert ran.code == 3
    assert ran.err == "error: unexpected ZeroDivisionError: division by zero; rerun with --debug to see where\n"
    assert "Traceback" in cli("inspect", "x", "--debug").err


def test_ctrl_c_exits_130_with_a_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("msao_compile.cli.contents.look_into", interrupted)
    ran = cli("inspect", "x", "--json")
    assert (ran.code, ran.json["error"]["class"]) == (130, "Interrupted")
    assert ran.err == "error: interrupted\n"


def test_with_json_an_error_is_the_one_object_on_stdout(cli: Cli, tmp_path: Path) -> None:
    ran = cli("inspect", tmp_path / "gone", "--json")
    assert ran.json["error"].keys() == {"class", "message", "exit_code"}
    assert ran.json["error"]["class"] == "InputError"
    assert ran.code == ran.json["error"]["exit_code"] == 2
    assert ran.err == f"error: {ran.json['error']['message']}\n"


@pytest.mark.parametrize("arguments", [(), ("--debug",)])
def test_without_a_command_the_help_page_is_shown(cli: Cli, arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Usage: msao-compile")


def test_the_version_is_the_package_s(cli: Cli) -> None:
    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"msao-compile {version('msao-compile')}\n")


@pytest.mark.parametrize("option", ["", "--json"])
@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (
            "> /dev/full",
            3,
            "error: writing failed (No space left on device); free some space or send the output elsewhere",
        ),
        (">&-", 2, "error: stdout is closed, so the result would be lost; open it, or send it to a file"),
    ],
)
def test_a_result_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, option: str, redirected: str, code: int, said: str
) -> None:
    (tmp_path / "decoder.onnx").write_bytes(bytes(10))
    command = f"{sys.executable} -m msao_compile inspect {tmp_path}/decoder.onnx {option} {redirected}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said + "\n")


def test_talk_never_falls_to_stdout_where_stderr_is_closed(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(bytes(10))
    command = f"{sys.executable} -m msao_compile inspect {tmp_path}/gone.onnx --json 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["error"]["class"]) == (2, "InputError")


def test_a_misspelt_option_is_a_usage_error_with_a_pointer_to_help(cli: Cli) -> None:
    ran = cli("plan", "recipe.toml", "--stroe", "x", "--json")
    assert ran.code == 2
    assert ran.json["error"]["class"] == "UsageError"
    assert "--stroe" in ran.err
    assert "see 'msao-compile plan --help'" in ran.err


def test_a_warning_of_the_log_is_a_line_on_stderr(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(path: Path) -> None:
        logging.getLogger("msao_compile.x").warning("the %s is old", "driver")
        raise errors.InputError("no")

    monkeypatch.setattr("msao_compile.cli.contents.look_into", warn)
    assert cli("inspect", "x").err == "warning: the driver is old\nerror: no\n"


def test_a_control_character_never_reaches_the_terminal(cli: Cli) -> None:
    assert "\x1b" not in cli("inspect", "\x1b[31mred").err


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_an_example_and_the_shared_options(cli: Cli, name: str) -> None:
    ran = cli(name, "--help")
    assert ran.code == 0
    assert f"Example:\n    msao-compile {name}" in ran.out
    assert "--json" in ran.out
    assert "--quiet" in ran.out


def test_the_help_page_lists_every_command_and_the_exit_codes(cli: Cli) -> None:
    out = cli("--help").out
    assert all(f"  {name} " in out for name in NAMES)
    assert "130" in out
    assert len(NAMES) == len(app.registered_commands)


def test_help_with_json_is_help_and_not_an_empty_object(cli: Cli) -> None:
    assert not cli("doctor", "--help", "--json").out.rstrip().endswith("}")


def test_the_start_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "onnx", "onnxruntime", "numpy", "pydantic", "rich", "jinja2", "tensorrt"}
    code = f"import msao_compile.cli.app, sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("option", ["", "--json"])
def test_the_package_runs_as_a_module_and_a_reader_that_left_is_no_error(option: str, tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(bytes(10))
    command = f"{sys.executable} -m msao_compile inspect {tmp_path}/decoder.onnx {option}"
    script = f"{{ sleep 0.3; {command}; echo $? >&2; }} | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "0\n"
