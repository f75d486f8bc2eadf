"""Say in one sentence what a validation error means to the person who wrote the recipe."""

from __future__ import annotations

import datetime
import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

from msao_compile.recipe.schema import BY_COMPONENT, ONE_PRECISION, Recipe

EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "mapping_type": "a table",
    "dict_type": "a table",
}
LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def sentence(faults: Sequence[ErrorDetails]) -> str:
    """The first fault as one sentence that starts with its dotted field, and how many more there are."""
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    misspelt_in = {fault["loc"][:-1] for fault in unknown}
    # A misspelt field is also missing under its right name: that is one fault, not two.
    others = [fault for fault in faults if fault["type"] != "extra_forbidden"]
    others = [fault for fault in others if fault["type"] != "missing" or fault["loc"][:-1] not in misspelt_in]
    first, *more = unknown + others
    return _one(first) + (f" (and {len(more)} more)" if more else "")


def _one(fault: ErrorDetails) -> str:
    location = _location(fault)
    field = dotted(location)
    kind = fault["type"]
    if kind == "missing":
        return f"{field} is missing: add it"
    if kind == "extra_forbidden":
        return _unknown(field, location)
    if kind == "rule":
        return f"{field} {fault['msg']}".strip()
    if kind == "literal_error":
        return _no_such_choice(field, fault)
    return _wrong_value(field, fault)


def _wrong_value(field: str, fault: ErrorDetails) -> str:
    kind, got = fault["type"], describe(fault["input"])
    if kind in EXPECTED:
        return f"{field} must be {EXPECTED[kind]}, not {got}"
    if kind in LIMITS:
        words, bound = LIMITS[kind]
        return f"{field} must be {words} {_plainly(fault['ctx'][bound])}, not {got}"
    if kind in ("too_short", "string_too_short"):
        return f"{field} is empty: give at least one"
    return f"{field} is {got}, which is refused: {fault['msg']}"


def _plainly(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _location(fault: ErrorDetails) -> tuple[str | int, ...]:
    # Pydantic adds marks of its own: the branch of a union, and "[key]" where a table's key is at fault.
    return tuple(step for step in fault["loc"] if step not in (ONE_PRECISION, BY_COMPONENT, "[key]"))


def dotted(location: Sequence[str | int]) -> str:
    """A place in the recipe as TOML writes it: `shapes.decoder.batch[1]`."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if re.fullmatch(r"[\w-]+", step, re.ASCII) else json.dumps(step))
    return text


def _unknown(field: str, location: tuple[str | int, ...]) -> str:
    known = _fields_at(location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    offer = f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}"
    if len(location) > 1 and location[-1] in Recipe.model_fields:
        offer = f"a key below [{dotted(location[:-1])}] belongs to that table: move it above the first table"
    return f"{field} is not a field of a recipe; {offer}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    schema = Recipe.model_json_schema()
    node: Any = schema
    for step in location:
        child = node.get("properties", {}).get(step, node.get("additionalProperties", {}))
        options = [child, *child.get("anyOf", ())]
        references = [option["$ref"] for option in options if "$ref" in option]
        node = schema["$defs"][references[0].rpartition("/")[2]] if references else child
    return list(node.get("properties", ()))


def _no_such_choice(field: str, fault: ErrorDetails) -> str:
    known = re.findall(r"[\w-]+", str(fault["ctx"]["expected"]).replace(" or ", " "))
    choices = known[0] if len(known) == 1 else f"one of {', '.join(known)}"
    value = fault["input"]
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5) if isinstance(value, str) else []
    offer = f"; did you mean '{near[0]}'?" if near and len(known) > 1 else ""
    return f"{field} must be {choices}, not {describe(value)}{offer}"


def describe(value: object) -> str:
    """A value with the name TOML gives its type: `the string '2048'`."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, str):
        return f"the string '{value if len(value) <= 80 else value[:77] + '...'}'"
    if isinstance(value, int):
        return f"the integer {value}"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, datetime.date | datetime.time):
        return f"the date or time {value}"
    return "a table"
