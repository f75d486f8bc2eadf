"""The power mode of a Jetson as its own tools tell it: what times mean depends on it. Nothing is set here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "nvpmodel": ("nvpmodel", "-q"),
    "jetson_clocks": ("jetson_clocks", "--show"),
}
SECONDS = 20


def power_facts(commands: Mapping[str, Sequence[str]] = COMMANDS) -> dict[str, str]:
    """What each tool says, by its name; `absent` where the machine has none, `failed: …` where it would not say."""
    return {name: _said(command) for name, command in commands.items()}


def power_mode(facts: Mapping[str, str]) -> str | None:
    """The mode's name as `nvpmodel -q` tells it, such as `MAXN_SUPER`; None where nothing tells it."""
    found = re.search(r"NV Power Mode:\s*(\S+)", facts.get("nvpmodel", ""))
    return None if found is None else found.group(1)


def _said(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except FileNotFoundError:
        return "absent"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed: {error}"
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        return f"failed: exit {done.returncode}, {words[:200]}"
    return done.stdout.strip()
