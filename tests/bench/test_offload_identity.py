"""Results belong to the code that made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from msao_compile.bench.identity import code, digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two files."""
    for name in ("bench/run.py", "runtime/wire/link.py", "stages/build.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("A = 1\n")
    return tmp_path


@pytest.mark.parametrize("name", ["bench/run.py", "runtime/wire/link.py", "runtime/wire/other.py"])
def test_another_file_is_other_code(package: Path, name: str) -> None:
    before = digest(package, "1.0")
    assert digest(package, "1.0") == before
    (package / name).write_text("A = 2\n")
    assert digest(package, "1.0") != before


def test_another_version_is_other_code_and_what_only_builds_is_not(package: Path) -> None:
    before = digest(package, "1.0")
    assert digest(package, "1.1") != before
    (package / "stages" / "build.py").write_text("A = 2\n")
    assert digest(package, "1.0") == before


def test_this_package_has_a_digest() -> None:
    assert len(code()) == 64 and int(code(), 16) > 0
