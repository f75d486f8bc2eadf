"""Labelled questions in two sets that share nothing: one to fit on, one to show the loss on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msao_compile.errors import InputError
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.mas import SampleSets

HELD_OUT = 0.4
"""Of the samples, where no file of others is given."""
LEAST = 8
"""Samples in each set: below that no regression says anything."""


@dataclass(frozen=True)
class Sample:
    """A question, its picture's bytes where it has one, and the right answer; `digest` is of question and picture."""

    question: str
    pictures: tuple[bytes, ...]
    answer: str
    digest: str


@dataclass(frozen=True)
class Sets:
    """What is fitted on, and what the loss is shown on."""

    fit: tuple[Sample, ...]
    held_out: tuple[Sample, ...]

    def told(self) -> SampleSets:
        """Their digests and sizes."""
        return SampleSets(
            fit_sha256=_digest(self.fit), fit=len(self.fit), held_out_sha256=_digest(self.held_out),
            held_out=len(self.held_out),
        )  # fmt: skip


def read_sets(path: Path, held_out: Path | None, seed: int) -> Sets:
    """Both sets: of two files, or of one that is divided by what its samples hold, so that their order is nothing.

    Raises:
        InputError: a file cannot be read or a line is no sample; a sample is in both files; a set is too small.
    """
    samples = read(path)
    if held_out is None:
        ordered = sorted(samples, key=lambda one: sha256_bytes(f"{seed}:{one.digest}".encode()))
        count = round(HELD_OUT * len(ordered))
        sets = Sets(tuple(ordered[count:]), tuple(ordered[:count]))
    else:
        sets = Sets(tuple(samples), tuple(read(held_out)))
        _refuse_overlap(sets, path, held_out)
    for name, found in (("to fit on", sets.fit), ("held out", sets.held_out)):
        if len(found) < LEAST:
            raise InputError(
                f"{held_out or path}: {len(found)} different samples {name} say nothing; give at least {LEAST} of "
                "each, and some hundreds to show a loss of one in a hundred"
            )
    return sets


def read(path: Path) -> list[Sample]:
    """The different samples of JSON lines with question, answer and, where there is one, image: a file beside them.

    Raises:
        InputError: the file or a picture cannot be read, or a line is no such sample; names it.
    """
    found: dict[str, Sample] = {}
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            sample = _sample(path, number, line)
            found.setdefault(sample.digest, sample)
    return list(found.values())


def files(path: Path) -> list[Path]:
    """The file and every picture that it names, for a key: lines that are no samples are left to `read`.

    Raises:
        InputError: the file cannot be read.
    """
    found = {path: None}
    for line in _lines(path):
        try:
            entry: Any = json.loads(line)
        except ValueError:
            continue
        image = entry.get("image") if isinstance(entry, dict) else None
        if isinstance(image, str) and (path.parent / image).is_file():
            found[path.parent / image] = None
    return list(found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a file of JSON lines") from error


def _sample(path: Path, number: int, line: str) -> Sample:
    where = f"{path}, line {number}"
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: is not JSON ({error}); write one object a line") from error
    texts = [entry.get(name) if isinstance(entry, dict) else None for name in ("question", "answer")]
    image = entry.get("image") if isinstance(entry, dict) else None
    if not all(isinstance(text, str) for text in texts) or not isinstance(image, str | None):
        raise InputError(f'{where}: is no object with texts "question" and "answer" and, of a picture, "image"')
    pictures: tuple[bytes, ...] = ()
    if image is not None:
        try:
            pictures = ((path.parent / image).read_bytes(),)
        except OSError as error:
            raise InputError(
                f"{where}: picture {path.parent / image} cannot be read ({error.strerror}); give its path from the "
                "folder of the samples"
            ) from error
    question, answer = texts
    digest = sha256_bytes(canonical_json([question, [sha256_bytes(picture) for picture in pictures]]))
    return Sample(str(question), pictures, str(answer).strip(), digest)


def _refuse_overlap(sets: Sets, path: Path, held_out: Path) -> None:
    known = {sample.digest for sample in sets.fit}
    both = [sample for sample in sets.held_out if sample.digest in known]
    if both:
        raise InputError(
            f"{held_out}: {len(both)} of its samples are in {path} too, such as {both[0].question!r}: what was fitted "
            "on shows nothing; hold out others"
        )


def _digest(samples: Sequence[Sample]) -> str:
    return sha256_bytes(canonical_json(sorted([sample.digest, sample.answer] for sample in samples)))
