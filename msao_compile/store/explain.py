"""Say in sentences why a request has to be built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

from pydantic import JsonValue

from msao_compile.manifest.digest import canonical_json
from msao_compile.store.key import Key
from msao_compile.store.record import Record
from msao_compile.store.store import Store

DIGEST = re.compile(r"[0-9a-f]{64}")
SHOWN_DIGITS = 6


def explain(old: Mapping[str, JsonValue] | None, new: Mapping[str, JsonValue]) -> list[str]:
    """A sentence for each field that differs, such as `inputs.weights 3f9a1c → 77b0de`; "never built" without `old`.

    Give it `Key.told` of both keys to have stage and version compared too. The list is empty where nothing differs.
    """
    if old is None:
        return ["never built"]
    before, after = dict(_leaves("", old)), dict(_leaves("", new))
    names = dict.fromkeys((*before, *after))
    return [sentence for name in names if (sentence := _difference(name, before, after))]


def nearest(store: Store, key: Key) -> Record | None:
    """The most recent record of the key's kind and subject: what the request most likely replaces.

    Raises:
        StageError: the store cannot be read.
    """
    return next((record for record in store.records(key.kind) if record.key.subject == key.subject), None)


def _difference(name: str, before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> str | None:
    if name not in after:
        return f"{name} {_shown(before[name])} removed"
    if name not in before:
        return f"{name} {_shown(after[name])} added"
    if canonical_json(before[name]) == canonical_json(after[name]):
        return None
    digits = _digits_that_differ(before[name], after[name])
    return f"{name} {_shown(before[name], digits)} → {_shown(after[name], digits)}"


def _leaves(prefix: str, value: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(f"{prefix}{name}.", item)
        else:
            yield f"{prefix}{name}", item


def _digits_that_differ(old: JsonValue, new: JsonValue) -> int:
    if not isinstance(old, str) or not isinstance(new, str):
        return SHOWN_DIGITS
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    return max(SHOWN_DIGITS, alike + 1)


def _shown(value: JsonValue, digits: int = SHOWN_DIGITS) -> str:
    if isinstance(value, str):
        return value[:digits] if DIGEST.fullmatch(value) else (value or '""')
    return canonical_json(value).decode()
