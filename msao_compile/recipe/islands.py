"""Write blocks that stay fp32 into a recipe file, whose comments and layout stay as they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msao_compile.errors import RecipeError
from msao_compile.recipe.read import read_recipe

HEADER = re.compile(r"^[ \t]*\[[ \t]*islands[ \t]*\][ \t]*(#.*)?$")
ANY_HEADER = re.compile(r"^[ \t]*\[")


def add_islands(path: Path, islands: Mapping[str, Sequence[str]]) -> bool:
    """Add blocks to the `[islands]` of the recipe at `path`; False where it has them all, and stays untouched.

    Raises:
        RecipeError: the recipe cannot be read or written, or says its islands in a form that is not changed here.
    """
    read_recipe(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe file") from error
    changed = with_islands(text, islands)
    if changed is None:
        lines = "; ".join(line(component, blocks) for component, blocks in islands.items())
        raise RecipeError(
            f"{path}: its islands are not written as lines of a table [islands], so they are not changed here; add by "
            f"hand: {lines}"
        )
    if changed == text:
        return False
    _replace(path.resolve(), changed)
    return True


def line(component: str, blocks: Sequence[str]) -> str:
    """The line of the table `[islands]`, as `decoder = ["model.layers.3"]`."""
    return f"{component} = [{', '.join(json.dumps(block) for block in blocks)}]"


def with_islands(text: str, islands: Mapping[str, Sequence[str]]) -> str | None:
    """The recipe with these blocks in its `[islands]`; None where that would change anything else as well."""
    before = tomllib.loads(text.removeprefix("\ufeff"))
    held: dict[str, list[str]] = before.get("islands", {})
    wanted, changed = dict(held), text
    for component, blocks in islands.items():
        new = [block for block in dict.fromkeys(blocks) if block not in held.get(component, [])]
        if new:
            wanted[component] = [*new, *held.get(component, [])]
            changed = _added(changed, component, new, component in held)
    return changed if _parsed(changed) == {**before, **({"islands": wanted} if wanted else {})} else None


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError:
        return None


def _added(text: str, component: str, blocks: Sequence[str], is_there: bool) -> str:
    """Blocks put at the head of the component's list, or a line of it below the table's header, or a new table."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    header = next((index for index, one in enumerate(lines) if HEADER.match(one.rstrip("\r\n"))), None)
    if header is None:
        gap = "" if not text or text.endswith(("\n", "\r")) else end
        return f"{text}{gap}{end}[islands]{end}{line(component, blocks)}{end}"
    if not is_there:
        if not lines[header].endswith(("\n", "\r")):
            lines[header] += end
        lines.insert(header + 1, f"{line(component, blocks)}{end}")
        return "".join(lines)
    key = re.compile(rf"^([ \t]*[\"']?{re.escape(component)}[\"']?[ \t]*=[ \t]*\[)")
    for index in range(header + 1, len(lines)):
        found = key.match(lines[index])
        if found:
            words = ", ".join(json.dumps(block) for block in blocks)
            lines[index] = f"{found[1]}{words}, {lines[index][found.end() :].lstrip(' ')}"
            break
        if ANY_HEADER.match(lines[index]):
            break
    return "".join(lines)


def _replace(path: Path, text: str) -> None:
    """All or nothing: whoever reads the file meanwhile sees the old recipe or the new one."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, file.name)
        os.replace(file.name, path)
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be written ({error.strerror}); make it writable, or add the islands by hand"
        ) from error
