"""What a bisection says, and which options belong to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from msao_compile.cli.bisect import sentence
from msao_compile.manifest.bisection import Bisected, BlockError, Findings

from .conftest import Cli


def found(cosines: list[float], output: float, bound: float | None = 0.95, **more: object) -> Bisected:
    blocks = [
        BlockError(name=f"m.{place}", min_cosine=cosine, max_abs=0.5, own=0.02) for place, cosine in enumerate(cosines)
    ]
    given = BlockError(name="logits", min_cosine=output, max_abs=0.5, own=0.01)
    facts = {"first": None, "worst": None, "remark": "what it gives is within the bound", **more}
    return Bisected.model_validate({
        "model": "edge", "component": "decoder", "targets": ("l4",), "dialect": "scatter", "precision": "int4",
        "bound": bound, "blocks": tuple(blocks), "outputs": (given,), **facts,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (found([0.99], 0.98), ": what it gives is within the bound"),
        (
            found([0.99, 0.9], 0.9, first="m.1", worst="m.1"),
            ": first block below 0.95: m.1; largest error of its own: m.1",
        ),
        (found([0.9], 0.9, first="(before)"), ": first block below 0.95: what comes before the first block;"),
        (
            found([0.99], 0.8123, island=("m.0",), remark="it helps"),
            ": no block is below 0.95 by itself, but what it gives is (0.8123); keep m.0 in fp32; it helps",
        ),
    ],
)
def test_the_sentence_names_what_was_found(entry: Bisected, words: str) -> None:
    assert sentence(entry).startswith(f"edge/decoder (scatter int4){words}")


def test_islands_of_several_modules_of_a_component_are_joined() -> None:
    one, other = found([0.9], 0.9, island=("m.0",)), found([0.9], 0.9, island=("m.1", "m.0"))
    both = Findings(name="d", asked="", modules=(one, other, found([1.0], 1.0)), left_out={})
    assert both.islands == {"decoder": ("m.0", "m.1")}


@pytest.mark.parametrize(("option", "value"), [("--target", "l4"), ("--component", "decoder"), ("--apply", "r.toml")])
def test_what_only_a_bisection_reads_is_refused_without_it(cli: Cli, tmp_path: Path, option: str, value: str) -> None:
    ran = cli("parity", tmp_path, option, value)
    assert ran.code == 2
    assert f"{option} belongs to a bisection" in ran.err


def test_a_bisection_reads_no_recorded_outputs(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    file.touch()
    ran = cli("parity", tmp_path, "--bisect", "--reference", file)
    assert ran.code == 2
    assert "--reference: a bisection compares with the fp32 graphs" in ran.err
