"""Tables and lines of results."""

from __future__ import annotations

import sys

import pytest

from msao_compile.cli import draw


def test_a_plain_table_is_aligned_and_never_wraps() -> None:
    long = "inputs.weights 3f9a1c → 77b0de; " * 8
    assert draw.aligned(("", "size", "why"), [("run", "4 B", long), ("reuse", "612 MB", "")], {1}) == [
        "         size  why",
        f"run       4 B  {long}".rstrip(),
        "reuse  612 MB",
    ]


def test_on_a_terminal_brackets_are_text_and_not_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw, "is_terminal", lambda stream: stream is sys.stdout)
    draw.table(("", "why"), [("run", "shapes.batch[1] changed"), ("FAIL", "[bold]x[/bold]")])
    out = capsys.readouterr().out
    assert "shapes.batch[1] changed" in out
    assert "[bold]x[/bold]" in out


def test_a_streamed_answer_is_left_alone_where_a_program_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    draw.words("a\x1bb")
    assert capsys.readouterr().out == "a\x1bb"


def test_a_streamed_answer_cannot_steer_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw, "is_terminal", lambda stream: True)
    draw.words("a\x1bb")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}b"
