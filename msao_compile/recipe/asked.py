"""Names that were asked for on the command line, held against those that there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from msao_compile.errors import InputError


def refuse_unknown(option: str, asked: str, known: Iterable[str], whose: str = "there are") -> None:
    """Refuse a name that is not known; `whose` says of what, as in "this deployment has".

    Raises:
        InputError: names the option and what there is, and the nearest name where one is near.
    """
    names = list(known)
    if asked in names:
        return
    near = difflib.get_close_matches(asked.lower(), names, n=1)
    offer = f": did you mean '{near[0]}'?" if near else ""
    raise InputError(f"--{option} {asked}: no such {option}; {whose} {', '.join(names)}{offer}")
