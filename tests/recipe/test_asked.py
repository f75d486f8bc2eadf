"""A name that is not known is refused with those that are, and with the nearest where one is near."""

from __future__ import annotations

import re

import pytest

from msao_compile.errors import InputError
from msao_compile.recipe.asked import refuse_unknown


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("orrin", "--target orrin: no such target; this deployment has l4, orin: did you mean 'orin'?"),
        ("L4", "--target L4: no such target; this deployment has l4, orin: did you mean 'l4'?"),
        ("moon", "--target moon: no such target; this deployment has l4, orin"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(asked: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        refuse_unknown("target", asked, {"l4": 1, "orin": 2}, "this deployment has")


def test_a_known_name_passes() -> None:
    refuse_unknown("model", "edge", ("edge",))
