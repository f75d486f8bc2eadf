"""The geometry of the report's pictures."""

from __future__ import annotations

import pytest

from msao_compile.cli.page.charts import Entry, Part, linear, logarithmic, round_step


def entry(*values: float) -> Entry:
    return Entry("label", "", "value", tuple(Part(f"part {i}", value, "", 1) for i, value in enumerate(values)))


def text(value: float) -> str:
    return f"{value:g}"


@pytest.mark.parametrize(("rough", "step"), [(0, 1), (0.9, 1), (1, 1), (1.1, 2), (2.2, 2.5), (26, 50), (0.003, 0.005)])
def test_steps_of_an_axis_are_round(rough: float, step: float) -> None:
    assert round_step(rough) == pytest.approx(step)


def test_pieces_stand_end_to_end_in_proportion() -> None:
    chart = linear("n", "c", [entry(30, 20), entry(100)], text)
    assert [(s.x, s.width) for s in chart.bars[0].segments] == [(0, 300), (300, 200)]
    assert chart.bars[1].segments[0].width == 1000
    assert [(tick.percent, tick.text) for tick in chart.ticks] == [
        (0, "0"), (20, "20"), (40, "40"), (60, "60"), (80, "80"), (100, "100")
    ]  # fmt: skip


def test_a_piece_above_zero_is_visible_and_zero_is_not() -> None:
    bar = linear("n", "c", [entry(0, 0.0001, 100)], text).bars[0]
    assert [segment.part.name for segment in bar.segments] == ["part 1", "part 2"]
    assert bar.segments[0].width == 3


def test_a_chart_of_zeros_has_an_axis_and_no_pieces() -> None:
    for make in (linear, logarithmic):
        chart = make("n", "c", [entry(0)], text)
        assert chart.bars[0].segments == ()
        assert len(chart.ticks) == 2


def test_on_a_logarithmic_scale_ten_times_more_is_one_step_longer() -> None:
    chart = logarithmic("n", "c", [entry(50), entry(500), entry(5000)], text)
    widths = [bar.segments[0].width for bar in chart.bars]
    assert widths[1] - widths[0] == pytest.approx(widths[2] - widths[1])
    assert [tick.text for tick in chart.ticks] == ["10", "100", "1000", "10000"]


def test_the_smallest_value_of_a_logarithmic_scale_still_has_a_bar() -> None:
    chart = logarithmic("n", "c", [entry(1000), entry(1e6)], text)
    assert chart.bars[0].segments[0].width > 0
    assert (chart.ticks[0].text, chart.bars[1].segments[0].width) == ("100", 1000)


def test_a_wide_logarithmic_scale_leaves_labels_out() -> None:
    chart = logarithmic("n", "c", [entry(1), entry(1e12)], text)
    assert len(chart.ticks) == 14
    assert sum(1 for tick in chart.ticks if tick.text) <= 7


def test_a_bar_says_in_words_what_it_shows() -> None:
    bar = linear(
        "n", "c", [Entry("edge", "vqa", "50 ms", (Part("a", 30, "30 ms", 1), Part("b", 20, "20 ms", 2)))], text
    )
    assert bar.bars[0].sentence == "edge, vqa: 50 ms (a 30 ms; b 20 ms)"
