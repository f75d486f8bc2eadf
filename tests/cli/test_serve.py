"""`serve` refuses before it loads: addresses, tokens, libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from building import python

from .conftest import Cli

POISONED = "import sys; sys.modules.update(dict.fromkeys(({!r},)))\nfrom msao_compile.cli.app import main\n" + (
    "sys.exit(main(sys.argv[1:]))"
)


def test_other_machines_are_let_in_only_with_a_token_or_by_permission(cli: Cli, deployment: Path) -> None:
    ran = cli("serve", deployment, "--role", "edge", "--host", "0.0.0.0", "--json")
    assert (ran.code, ran.json["error"]["class"]) == (2, "InputError")
    assert "--token-file FILE, or --allow-anonymous" in ran.err


def test_a_token_is_never_an_argument(cli: Cli) -> None:
    help_page = cli("serve", "--help").out
    assert "--token-file" in help_page and "--token " not in help_page
    assert "serve artifacts/deployments/shapes-vqa --role edge" in help_page


def test_files_are_read_below_a_folder_only(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    ran = cli("serve", deployment, "--role", "edge", "--allow-files", tmp_path / "none")
    assert ran.code == 2
    assert "give the folder that pictures may be read from" in ran.err


@pytest.mark.parametrize("library", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_library_names_the_extra(deployment: Path, library: str) -> None:
    done = python(POISONED.format(library), "serve", deployment, "--role", "edge", "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert (error["class"], "msao-compile[serve]" in error["message"]) == ("MissingTool", True)
