"""`export` as the user sees it."""

from __future__ import annotations

from pathlib import Path

from .conftest import Cli


def test_a_repository_is_written_and_its_model_is_the_result(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    ran = cli("export", deployment, "--format", "triton", "-o", output)
    assert ran.code == 0, ran.err
    (model,) = output.iterdir()
    assert ran.out == f"{model}\n"
    assert f"tritonserver --model-repository={output} --grpc-http2-min-recv-ping" in ran.err
    assert (model / "config.pbtxt").is_file()


def test_the_same_facts_as_json(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    facts = cli("export", deployment, "-o", tmp_path / "repository", "--json").json
    assert facts["repository"] == str(tmp_path / "repository")
    assert (tmp_path / "repository" / facts["model"] / "1" / "model.py").is_file()


def test_an_unknown_format_and_a_taken_folder_are_wrong_input(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    assert cli("export", deployment, "--format", "other", "-o", tmp_path / "repository").code == 2
    assert cli("export", deployment, "-o", tmp_path).code == 2
