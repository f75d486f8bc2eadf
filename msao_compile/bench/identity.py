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
    """A digest that changes with the version and with any file of those parts, as they are when it is first asked."""
    folder = Path(msao_compile.__path__[0])
    files = sorted(file for part in PARTS for file in (folder / part).rglob("*.py"))
    told = {str(file.relative_to(folder)): sha256_file(file) for file in files}
    return sha256_bytes(canonical_json({"version": version("msao-compile"), "files": told}))
