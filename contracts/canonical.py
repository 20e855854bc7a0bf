"""Canonical JSON (RFC 8785) and digests: equal values have equal bytes, whoever wrote them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal

import orjson
import rfc8785
from pydantic import BaseModel

from holdfast.contracts.errors import InvalidRequest

_JSON_TYPES = "str, int, float, bool, None, Decimal, list, dict and Pydantic models"
_LARGEST_EXACT_INTEGER = 2**53 - 1


def plain(value: object) -> object:
    """`value` as JSON types alone. Raises `InvalidRequest` for what JSON cannot say (NUL, NaN, other objects, what has
    no end)."""
    return _plain_and_odd(value)[0]


def _plain_and_odd(value: object) -> tuple[object, list[object]]:
    """The value, and what of it RFC 8785 writes otherwise than Python does: floats, and keys beyond U+FFFF, which sort
    elsewhere."""
    odd: list[object] = []
    try:
        return _plain(value, odd), odd
    except (ValueError, RecursionError) as error:  # of a model that does not serialise, of an integer without end
        raise InvalidRequest(f"the value has no plain JSON: {error}") from error


def _plain(value: object, odd: list[object]) -> object:
    match value:
        case None | bool():
            return value
        case str():
            if "\x00" in value:
                raise InvalidRequest("a text holds a NUL character, which Postgres cannot store; remove it")
            return value if type(value) is str else str.__str__(value)
        case int():
            return value if abs(value) <= _LARGEST_EXACT_INTEGER else str(value)
        case float():
            if value != value or value in (float("inf"), float("-inf")):
                raise InvalidRequest(f"{value!r} is not a JSON number")
            odd.append(value)
            return value
        case dict() | Mapping():  # first what is at hand: abstract classes take their time to say what is one of them
            return {_key(key, odd): _plain(item, odd) for key, item in value.items()}
        case list() | Sequence() | set() | frozenset() if not isinstance(value, bytes | bytearray):
            return [_plain(item, odd) for item in value]
        case Decimal():
            return str(value)
        case BaseModel():
            return _plain(value.model_dump(mode="json"), odd)
    raise InvalidRequest(f"{type(value).__name__} is not JSON; use {_JSON_TYPES}")


def _key(key: object, odd: list[object]) -> str:
    if type(key) is str and key.isascii() and "\x00" not in key:
        return key
    if not isinstance(key, str):
        raise InvalidRequest(f"{key!r} is not a JSON key; keys are texts")
    text = str(_plain(key, odd))
    if not text.isascii() and max(text) > "\uffff":
        odd.append(text)
    return text


def canonical(value: object) -> bytes:
    """The RFC 8785 bytes of `value`."""
    try:
        simple, odd = _plain_and_odd(value)
        if not odd:  # then others write the same, much faster
            return _written(simple)
        return rfc8785.dumps(simple)  # type: ignore[arg-type]  # JSON types only
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"the value has no canonical JSON: {error}") from error


def _written(simple: object) -> bytes:
    try:
        return orjson.dumps(simple, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # more levels than it goes down, or half a character, which `json` says better
        return json.dumps(simple, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()
