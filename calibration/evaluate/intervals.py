"""Intervals for shares."""

from math import sqrt

Z_95 = 1.959964


def wilson(right: int, asked: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson, 1927).

    Raises:
        ValueError: nothing was asked, or more was right than asked.
    """
    if not 0 <= right <= asked or asked == 0:
        raise ValueError(f"{right} right of {asked} asked is no share")
    share = right / asked
    scale = 1.0 + Z_95**2 / asked
    middle = (share + Z_95**2 / (2 * asked)) / scale
    half = Z_95 * sqrt(share * (1.0 - share) / asked + Z_95**2 / (4 * asked**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
