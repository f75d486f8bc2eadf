"""The target catalogue."""

import pytest

from msao_compile.errors import RecipeError
from msao_compile.recipe.targets import catalogue, find


def test_every_target_has_a_name_of_its_own() -> None:
    names = [target.target_id for target in catalogue()]
    assert len(names) == len(set(names)) >= 20


def test_a_jetson_gets_the_dialect_its_oldest_parser_reads() -> None:
    orin = find("jetson-orin-nano-8gb")
    assert (orin.sm, orin.dialect, orin.jetpack["6.2"].tensorrt) == (87, "portable", "10.3")


def test_only_the_local_machine_is_fused() -> None:
    assert [target.target_id for target in catalogue() if target.dialect == "fused"] == ["local-cpu"]


def test_an_unknown_target_is_answered_with_its_neighbours() -> None:
    with pytest.raises(RecipeError, match="did you mean .*'jetson-orin-nano-8gb'") as caught:
        find("Jetson-Orin-Nano-8G")
    assert caught.value.exit_code == 2


def test_a_name_like_nothing_known_gets_the_whole_list() -> None:
    with pytest.raises(RecipeError, match="known are jetson-agx-orin-32gb, .*nvidia-t4"):
        find("qqqqqq")
