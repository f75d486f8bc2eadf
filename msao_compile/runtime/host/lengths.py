"""Numbers of a request as lengths of tensors: what a graph does with a size it can do with a symbolic length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def lengths(sizes: NDArray[np.integer]) -> tuple[NDArray[Any], ...]:
    """One bool tensor for each number in `sizes`, in order: [number], all false.

    A graph that reads nothing but their lengths has no node that depends on data.
    """
    return tuple(np.zeros(int(number), dtype=np.bool_) for number in np.asarray(sizes).reshape(-1))
