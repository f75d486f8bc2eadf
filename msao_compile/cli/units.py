"""Numbers with units for people: decimal bytes, seconds, milliseconds."""

from __future__ import annotations

import math

SIZE_NOTE = "1 kB = 1000 bytes, 1 MB = 1000 kB, 1 GB = 1000 MB"
_PREFIXES = ("kB", "MB", "GB", "TB")


def size(size_bytes: float) -> str:
    """Bytes with three significant digits: `612 MB`, `1.23 GB`, `48 B`."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    value = float(size_bytes)
    for unit in _PREFIXES:
        value /= 1000
        if value < 999.5 or unit == _PREFIXES[-1]:
            break
    return f"{three_digits(value)} {unit}"


def short_size(size_bytes: float) -> str:
    """A round number of bytes for an axis, without trailing zeros: `500 MB`, `1.5 GB`."""
    number, unit = size(size_bytes).split(" ")
    return f"{float(number):g} {unit}"


def short_seconds(value: float) -> str:
    """A round number of seconds for an axis: `2.5 s`, `40 s`, `5 min 00 s`."""
    return f"{value:g} s" if value < 60 else seconds(value)


def count(number: float) -> str:
    """A count of parameters: `5.99 M`, `820 k`."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit * 0.9995:
            return f"{three_digits(number / limit)} {letter}"
    return f"{number:.0f}"


def seconds(value: float) -> str:
    """A duration: `0.3 s`, `42 s`, `3 min 05 s`, `1 h 12 min`."""
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 59.5:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float) -> str:
    """Milliseconds without the unit, one decimal below ten: `6.1`, `38`, `0`."""
    if round(value, 1) == 0:
        return "0" if value == 0 else "<0.1"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def deviation(value: float) -> str:
    """A difference: `0` or two digits with an exponent: `2.4e-06`."""
    return "0" if value == 0 else f"{value:.1e}"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: `0.12`, `1.23`, `12.3`, `123`."""
    if not math.isfinite(value):
        return str(value)
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def plural(number: int, noun: str) -> str:
    """A number with its noun: `1 module`, `3 modules`."""
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"
