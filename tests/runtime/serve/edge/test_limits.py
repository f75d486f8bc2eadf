"""The door counts who is inside."""

from __future__ import annotations

import pytest

from msao_compile.runtime.serve.edge.errors import Refusal
from msao_compile.runtime.serve.edge.limits import Door


def test_a_door_lets_in_as_many_as_fit_and_counts_them_out() -> None:
    door = Door(2)
    with door.entered(), door.entered():
        with pytest.raises(Refusal) as caught, door.entered():
            pass
        assert (caught.value.fault.status, door.inside) == (429, 2)
    with pytest.raises(ZeroDivisionError), door.entered():
        raise ZeroDivisionError
    assert door.inside == 0


def test_a_door_that_drains_lets_nobody_in() -> None:
    door = Door(2)
    door.draining = True
    with pytest.raises(Refusal) as caught, door.entered():
        pass
    assert caught.value.fault.status == 503
