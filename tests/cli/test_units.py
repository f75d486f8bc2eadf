"""Numbers with units."""

from __future__ import annotations

import pytest

from msao_compile.cli import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (48_700, "48.7 kB"),
        (612_345_678, "612 MB"),
        (999_600, "1.00 MB"),
        (1_234_000_000, "1.23 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_have_three_digits_and_a_decimal_unit(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.31, "0.3 s"), (4.2, "4.2 s"), (9.96, "10 s"), (59.4, "59 s"), (185, "3 min 05 s"), (4320, "1 h 12 min")],
)
def test_durations_read_as_people_say_them(value: float, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01, "<0.1"), (6.14, "6.1"), (9.96, "10"), (38.4, "38"), (1234.0, "1234")]
)
def test_milliseconds_never_show_a_time_as_nothing(value: float, text: str) -> None:
    assert units.milliseconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999_600, "1.00 M"), (5_990_000, "5.99 M"), (93e6, "93.0 M")])
def test_counts_of_parameters_are_short(value: float, text: str) -> None:
    assert units.count(value) == text


def test_nouns_agree_with_their_number() -> None:
    assert [units.plural(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_round_numbers_on_an_axis_have_no_trailing_zeros() -> None:
    assert [units.short_size(n) for n in (0, 1000, 2_500_000)] == ["0 B", "1 kB", "2.5 MB"]
