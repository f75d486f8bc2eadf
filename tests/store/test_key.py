"""Keys name everything that could change the bytes."""

import hashlib
import math

import pytest

from msao_compile.manifest.digest import canonical_json
from msao_compile.store.key import Key


def test_the_digest_is_over_canonical_json_with_the_kind_first() -> None:
    key = Key(kind="export", stage="trace", version=2, fields={"b": 1, "a": [True, None, "é"]})
    assert key.digest == hashlib.sha256('["export","trace",2,{"a":[true,null,"é"],"b":1}]'.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        Key(kind="engine", stage="trace", version=1, fields={"a": 1}),
        Key(kind="export", stage="other", version=1, fields={"a": 1}),
        Key(kind="export", stage="trace", version=2, fields={"a": 1}),
        Key(kind="export", stage="trace", version=1, fields={"a": 1.0}),
        Key(kind="export", stage="trace", version=1, fields={"a": True}),
        Key(kind="export", stage="trace", version=1, fields={"a": "1"}),
    ],
)
def test_a_change_of_any_part_is_another_key(other: Key) -> None:
    assert Key(kind="export", stage="trace", version=1, fields={"a": 1}).digest != other.digest


def test_the_order_of_fields_does_not_matter() -> None:
    one = Key(kind="export", stage="trace", version=1, fields={"a": 1, "b": 2})
    assert one.digest == Key(kind="export", stage="trace", version=1, fields={"b": 2, "a": 1}).digest


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1: 2}, {"stage": 1}["stage"].__class__])
def test_a_field_without_a_json_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        Key.model_validate({"kind": "export", "stage": "trace", "version": 1, "fields": {"a": value}})


@pytest.mark.parametrize("kind", ["../x", "", "A", "a/b", "a\n"])
def test_a_kind_is_a_word_that_is_safe_as_a_folder(kind: str) -> None:
    with pytest.raises(ValueError):
        Key(kind=kind, stage="trace", version=1, fields={})


def test_fields_may_not_hide_the_stage_or_its_version() -> None:
    with pytest.raises(ValueError, match="may not be called version"):
        Key(kind="export", stage="trace", version=1, fields={"version": 3})


@pytest.mark.parametrize("value", [b"x", {1, 2}, {1: "x"}])
def test_canonical_json_refuses_what_json_does_not_have(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": [value]})


@pytest.mark.parametrize("value", [math.nan, -math.inf, "\ud800"])
def test_canonical_json_refuses_numbers_and_text_without_a_form(value: object) -> None:
    with pytest.raises(ValueError):
        canonical_json({"a": value})
