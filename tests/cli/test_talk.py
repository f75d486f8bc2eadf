"""What reaches stdout and stderr."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from pathlib import Path

import pytest

from msao_compile.cli.talk import StderrHandler, Talk, plain, printable


def test_numbers_that_json_does_not_have_become_null() -> None:
    assert plain({"a": [math.nan, math.inf, 1.5], "b": (Path("x"), None, True)}) == {
        "a": [None, None, 1.5],
        "b": ["x", None, True],
    }


def test_control_characters_are_replaced_and_lines_stay() -> None:
    assert printable("a\x1b[31m\nb\tc\x9b") == "a\N{REPLACEMENT CHARACTER}[31m\nb\tc\N{REPLACEMENT CHARACTER}"


def test_talk_goes_to_stderr_and_not_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Talk().say("a remark")
    Talk(quiet=True).say("another")
    assert capsys.readouterr() == ("", "a remark\n")


def test_a_line_of_talk_is_one_write_so_that_two_threads_never_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", written.append)
    monkeypatch.setattr(sys, "stderr", stream)
    Talk().say("a remark")
    StderrHandler().emit(logging.makeLogRecord({"levelname": "WARNING", "msg": "old"}))
    assert written == ["a remark\n", "warning: old\n"]


def test_a_result_and_an_error_share_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(as_json=True)
    talk.reply({"rows": 3}, lambda: pytest.fail("drawn in JSON mode"))
    talk.close({"class": "GateError"})
    assert json.loads(capsys.readouterr().out) == {"rows": 3, "error": {"class": "GateError"}}
