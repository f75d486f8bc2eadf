"""Settings: declared speeds as TOML, refused where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pairs
import pytest
from building import ROOT

from msao_compile.bench.setting import read_setting
from msao_compile.errors import InputError
from msao_compile.manifest.offload import Line

GOOD = """
name = "small"
why = "by hand"
picture_bytes = 1000
[edge]
name = "slow"
slower = 4.0
[cloud]
name = "fast"
decode = { fixed_ms = 20.0, each_ms = 0.5 }
[[sweeps]]
mbps = [5.0, 20.0]
rtt_ms = [10.0, 80.0]
sessions = [1, 4]
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "setting.toml"
    file.write_text(text)
    return file


def test_declared_times_stand_and_measured_ones_are_stretched(tmp_path: Path) -> None:
    setting = read_setting(written(tmp_path, GOOD))
    measured = pairs.times("edge", 2.0, 3.0)
    assert setting.edge.primitives(measured).decode == Line(fixed_ms=8.0, each_ms=0.0)
    assert setting.edge.primitives(measured).prefill == Line(fixed_ms=40.0, each_ms=0.0)
    there = setting.cloud.primitives(pairs.times("cloud", 2.0, 3.0))
    assert there.decode == Line(fixed_ms=20.0, each_ms=0.5)
    assert there.verify == Line(fixed_ms=3.0, each_ms=0.0)


def test_a_sweep_is_every_rate_with_every_round_trip_and_number_of_sessions(tmp_path: Path) -> None:
    points = read_setting(written(tmp_path, GOOD)).sweeps[0].shapes()
    assert [(shape.mbps, shape.rtt_ms, count) for shape, count in points] == [
        (5.0, 10.0, 1), (20.0, 10.0, 1), (5.0, 80.0, 1), (20.0, 80.0, 1),
        (5.0, 10.0, 4), (20.0, 10.0, 4), (5.0, 80.0, 4), (20.0, 80.0, 4),
    ]  # fmt: skip


def test_shipped_settings_can_be_read() -> None:
    found = sorted((ROOT / "recipes" / "settings").glob("*.toml"))
    assert found
    assert [read_setting(file).name for file in found] == [file.stem for file in found]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "small"', "name = ", "not a setting in TOML"),
        ("picture_bytes = 1000", "picture_byte = 1000", "picture_byte: Extra inputs"),
        ("picture_bytes = 1000", "picture_bytes = 0", "picture_bytes: "),
        ("slower = 4.0", "slower = -4.0", r"edge\.slower: "),
        ("slower = 4.0", "slower = inf", r"edge\.slower: "),
        ("fixed_ms = 20.0", "fixed_ms = -20.0", r"cloud\.decode\.fixed_ms: "),
        ("fixed_ms = 20.0", "fixed_ms = nan", r"cloud\.decode\.fixed_ms: "),
        ("mbps = [5.0, 20.0]", "mbps = [5.0, 0.0]", r"sweeps\.0\.mbps\.1: "),
        ("mbps = [5.0, 20.0]", "mbps = [inf]", r"sweeps\.0\.mbps\.0: "),
        ("mbps = [5.0, 20.0]", "mbps = []", r"sweeps\.0\.mbps: "),
        ("sessions = [1, 4]", "sessions = [0]", r"sweeps\.0\.sessions\.0: "),
        ('name = "fast"', "", r"cloud\.name: Field required"),
        ('why = "by hand"', "", "why: Field required"),
    ],
)
def test_a_wrong_setting_says_where_it_is_wrong(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=told):
        read_setting(written(tmp_path, GOOD.replace(old, new)))


def test_a_setting_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a setting in TOML"):
        read_setting(tmp_path / "none.toml")
