"""Which code a result is of: the package's version and what its files say."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

import msao_compile
from msao_compile.manifest.digest import canonical_json, sha256_bytes, sha256_file

PARTS = ("bench", "manifest", "runtime")
"""What runs in a comparison; the rest of the package builds deployments, and results name their manifest."""


@cache
def code() -> str:
    """The digest of this package, as it is when it is first asked."""
    return digest(Path(msao_compile.__path__[0]), version("msao-compile"))


def digest(package: Path, told: str) -> str:
    """What changes with a version and with any Python file of those parts of a package."""
    files = sorted(file for part in PARTS for file in (package / part).rglob("*.py"))
    known = {str(file.relative_to(package)): sha256_file(file) for file in files}
    return sha256_bytes(canonical_json({"version": told, "files": known}))
