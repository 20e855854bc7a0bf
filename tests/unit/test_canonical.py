"""Canonical JSON: equal values have equal bytes and digests; what JSON cannot say is refused."""

import json
from decimal import Decimal

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts.canonical import canonical, digest
from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.money import to_dollars, to_microusd

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(texts, values, max_size=6))
def test_the_order_of_keys_does_not_change_the_digest(value):
    assert digest(value) == digest(dict(reversed(value.items())))


@given(values, values)
def test_different_values_have_different_bytes(one, other):
    as_json_differs = not _same(one, other)
    assert (canonical(one) != canonical(other)) == as_json_differs


def _same(one, other):
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@given(values | st.recursive(st.floats(allow_nan=False, allow_infinity=False) | values, st.lists, max_leaves=4))
def test_the_bytes_are_those_of_rfc_8785(value):
    assert canonical(value) == rfc8785.dumps(value)


def test_keys_sort_by_their_utf_16_units():
    keys = {"\ufb33": 1, "\U0001f600": 2}
    assert canonical(keys) == rfc8785.dumps(keys)
    assert list(json.loads(canonical(keys))) == ["\U0001f600", "\ufb33"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "a\x00b", {1: "x"}, object(), b"raw", {"a": [object()]}])
def test_what_json_cannot_say_is_refused_with_a_clear_error(value):
    with pytest.raises(InvalidRequest):
        canonical(value)


@given(st.decimals(min_value=0, max_value=10**9, places=6))
def test_dollars_survive_the_way_through_the_store(amount):
    assert to_dollars(to_microusd(amount)) == amount


@given(st.decimals(min_value=0, max_value=10**6, places=9))
def test_a_fraction_of_a_micro_dollar_is_rounded_up(amount):
    stored = to_dollars(to_microusd(amount))
    assert stored is not None
    assert amount <= stored < amount + Decimal("0.000001")


def test_unknown_money_is_not_zero():
    assert to_microusd(None) is None
    assert to_dollars(None) is None
