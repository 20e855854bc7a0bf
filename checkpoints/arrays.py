"""Parameters in Postgres' binary form: arrays, put together from fields that were encoded one by one.

psycopg writes a list item by item when it is sent. Here the items are encoded when they are handed in, by whoever
brings them: what cannot be encoded is refused there and then, and a batch of thousands is one join per column.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812
from types import MappingProxyType
from typing import Any
from uuid import UUID

import orjson
from psycopg.postgres import types

from holdfast.contracts.errors import InvalidRequest

_LENGTH = Struct("!i")
_INTEGER = Struct("!ii")
_BIGINT = Struct("!iq")
_HEADER = Struct("!iii")  # dimensions, has nulls, type of the elements
_DIMENSION = Struct("!ii")  # length, lower bound

_LONGEST_NAME = 128

NULL = _LENGTH.pack(-1)
"""The field that holds nothing."""

TEXT = types["text"].oid
BYTEA = types["bytea"].oid
INTEGER = types["int4"].oid
BIGINT = types["int8"].oid
UUIDS = types["uuid"].oid
BOOLEAN = types["bool"].oid

_AS_JSON_DOES = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


class Encoded(bytes):
    """A parameter that is ready to be sent. The statement says of which type it is."""


def text_field(text: str) -> bytes:
    """One element of a `text[]`. Raises `InvalidRequest` for what no text of Postgres can hold."""
    return _name_field(text) if len(text) <= _LONGEST_NAME else _text_field(text)


def _text_field(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{text[:80]!r} is not text that can be stored: {error.reason}") from error
    if b"\x00" in encoded:
        raise InvalidRequest(f"{text[:80]!r} is not text that can be stored: it holds a NUL character")
    return _LENGTH.pack(len(encoded)) + encoded


_name_field = lru_cache(maxsize=4096)(_text_field)  # threads, channels and ids come again and again


@lru_cache(maxsize=4096)
def uuid_field(text: str) -> bytes:
    """One element of a `uuid[]`."""
    return _LENGTH.pack(16) + UUID(text).bytes


def json_field(value: Any) -> bytes:
    """A value as JSON, as one element of a `text[]`."""
    try:
        return bytes_field(orjson.dumps(value, option=_AS_JSON_DOES))
    except TypeError:  # keys that are no text, numbers that are too large for it: json takes some of them
        return text_field(json.dumps(value))


def bytes_field(value: bytes) -> bytes:
    """One element of a `bytea[]`."""
    return _LENGTH.pack(len(value)) + value


def integer_field(value: int) -> bytes:
    """One element of an `integer[]`."""
    return _INTEGER.pack(4, value)


@lru_cache(maxsize=4096)
def bigint_field(value: int | None) -> bytes:
    """One element of a `bigint[]`. Raises `InvalidRequest` for a number that is too large for it."""
    if value is None:
        return NULL
    try:
        return _BIGINT.pack(8, value)
    except StructError as error:
        raise InvalidRequest(f"{value} is too large a number to be stored") from error


def boolean_field(value: bool) -> bytes:
    """One element of a `boolean[]`."""
    return bytes_field(b"\x01" if value else b"\x00")


def boolean(value: bool) -> Encoded:
    """A `boolean`."""
    return Encoded(b"\x01" if value else b"\x00")


def array(element: int, fields: Sequence[bytes], *, width: int = 1) -> Encoded:
    """An array of elements of the type `element` (`TEXT`, `BYTEA`, `INTEGER`, `BIGINT`, `BOOLEAN` or `UUIDS`); where
    each field is of `width` elements, of two dimensions."""
    if not fields:
        return _empty(element)
    dimensions = _DIMENSION.pack(len(fields), 1)
    if width > 1:
        dimensions += _DIMENSION.pack(width, 1)
    return Encoded(_HEADER.pack(len(dimensions) // _DIMENSION.size, 1, element) + dimensions + b"".join(fields))


@lru_cache
def _empty(element: int) -> Encoded:
    return Encoded(_HEADER.pack(0, 0, element))


class Columns:
    """Rows of one kind as parameters: one array for each column, named `<prefix>_<column>`."""

    def __init__(self, prefix: str, *, width: Mapping[str, int] = MappingProxyType({}), **types: int) -> None:
        """The types of the elements, by column; and how many make a field, where it is more than one."""
        self._arrays = [(f"{prefix}_{column}", element, width.get(column, 1)) for column, element in types.items()]
        self._of_none = {name: array(element, ()) for name, element, _ in self._arrays}

    def of(self, rows: Collection[Sequence[bytes]]) -> Mapping[str, Encoded]:
        """The parameters for rows of encoded fields, in the order of the columns."""
        if not rows:
            return self._of_none
        fields = zip(*rows, strict=True)
        return {
            name: array(element, column, width=width)
            for (name, element, width), column in zip(self._arrays, fields, strict=True)
        }
