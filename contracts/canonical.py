"""Canonical JSON (RFC 8785) and digests: equal values have equal bytes, whoever wrote them."""

import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal

import rfc8785
from pydantic import BaseModel

from holdfast.contracts.errors import InvalidRequest

_JSON_TYPES = "str, int, float, bool, None, Decimal, list, dict and Pydantic models"
_LARGEST_EXACT_INTEGER = 2**53 - 1


def plain(value: object) -> object:
    """`value` as JSON types alone. Raises `InvalidRequest` for what JSON cannot say (NUL, NaN, other objects, what has
    no end)."""
    try:
        return _plain(value)
    except (ValueError, RecursionError) as error:  # of a model that does not serialise, of an integer without end
        raise InvalidRequest(f"the value has no plain JSON: {error}") from error


def _plain(value: object) -> object:
    match value:
        case None | bool():
            return value
        case str():
            if "\x00" in value:
                raise InvalidRequest("a text holds a NUL character, which Postgres cannot store; remove it")
            return value
        case int():
            return value if abs(value) <= _LARGEST_EXACT_INTEGER else str(value)
        case float():
            if value != value or value in (float("inf"), float("-inf")):
                raise InvalidRequest(f"{value!r} is not a JSON number")
            return value
        case Decimal():
            return str(value)
        case BaseModel():
            return _plain(value.model_dump(mode="json"))
        case Mapping():
            return {_key(key): _plain(item) for key, item in value.items()}
        case Sequence() | set() | frozenset() if not isinstance(value, bytes | bytearray):
            return [_plain(item) for item in value]
    raise InvalidRequest(f"{type(value).__name__} is not JSON; use {_JSON_TYPES}")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidRequest(f"{key!r} is not a JSON key; keys are texts")
    return str(_plain(key))


def canonical(value: object) -> bytes:
    """The RFC 8785 bytes of `value`."""
    try:
        return rfc8785.dumps(plain(value))  # type: ignore[arg-type]  # plain() returns JSON types only
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"the value has no canonical JSON: {error}") from error


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()
