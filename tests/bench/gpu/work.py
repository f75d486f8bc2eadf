"""What every child of the GPU check is told: where files lie, which device, how much work."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msao_compile.errors import InputError
from tests.bench.work import NEW_TOKENS, PROMPT_TOKENS, Layout

Device = Literal["cuda", "cpu"]
BATCHES = (1, 8, 32)
RUNS, WARM_UPS = 5, 2
CAPACITY = PROMPT_TOKENS + NEW_TOKENS
COMPONENTS = ("vision_encoder", "embed_tokens", "decoder")


@dataclass(frozen=True)
class Work:
    """How much is done, and on what."""

    folder: Path
    device: Device
    batches: tuple[int, ...]
    runs: int
    new_tokens: int

    @property
    def layout(self) -> Layout:
        """The standard model's files."""
        return Layout(self.folder)

    @property
    def reference(self) -> Path:
        """What torch gives in fp32: `logits` [new_tokens, vocabulary] and `token_ids` [new_tokens]."""
        return self.folder / "reference-gpu.npz"

    @property
    def features(self) -> Path:
        """What torch makes of the picture in fp32: `image_features` [64, 576]."""
        return self.folder / "features-gpu.npz"

    @property
    def variants(self) -> Path:
        """Which graphs there are, as JSON."""
        return self.folder / "variants.json"

    def variant(self, name: str) -> dict[str, Any]:
        """The graphs of one variant.

        Raises:
            InputError: it could not be made.
        """
        found: dict[str, Any] = json.loads(self.variants.read_text())
        if name not in found:
            raise InputError(f"the graphs {name} are missing: what made them said why; there are {', '.join(found)}")
        chosen: dict[str, Any] = found[name]
        return chosen

    def options(self) -> list[str]:
        """The same work as arguments of a child."""
        batches = ",".join(map(str, self.batches))
        numbers = ["--runs", str(self.runs), "--new-tokens", str(self.new_tokens)]
        return [str(self.folder), "--device", self.device, "--batches", batches, *numbers]


def parser(about: str | None) -> argparse.ArgumentParser:
    """A parser that knows the options of `Work` and where the child's result goes."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("folder", type=Path, help="where model and graphs are kept")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that everything works")
    made.add_argument("--batches", type=sizes, default=BATCHES, metavar="N,N")
    made.add_argument("--runs", type=int, default=RUNS, metavar="N")
    made.add_argument("--new-tokens", type=int, default=NEW_TOKENS, metavar="N")
    made.add_argument("--out", type=Path, metavar="FILE", help="where the result goes, after every step")
    return made


def sizes(text: str) -> tuple[int, ...]:
    """`1,8,32` as numbers."""
    return tuple(int(part) for part in text.split(","))


def work_of(chosen: argparse.Namespace) -> Work:
    """The work that was asked for."""
    return Work(chosen.folder.resolve(), chosen.device, chosen.batches, chosen.runs, chosen.new_tokens)


class Result:
    """A child's findings, on the disk as soon as they are known: what kills the child takes none of them."""

    def __init__(self, file: Path | None, **facts: Any) -> None:
        self.file, self.facts = file, facts
        self.keep()

    def add(self, **facts: Any) -> None:
        """More findings."""
        self.facts |= facts
        self.keep()

    def keep(self) -> None:
        """Write all of it."""
        if self.file is None:
            return
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.facts, indent=1))
        os.replace(part, self.file)


def say(text: str) -> None:
    """One line for whoever waits."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()
