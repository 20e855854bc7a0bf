"""Arrays in Postgres' binary form, put together from fields that were encoded one by one.

psycopg writes a list item by item when it is sent. Here the items are encoded when they are handed in, by whoever
brings them: what cannot be encoded is refused there and then, and a batch of thousands is one join per column.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from struct import Struct

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.pq import Format

from holdfast.contracts.errors import InvalidRequest

_LENGTH = Struct("!i")
_SLOT = Struct("!ii")
_HEADER = Struct("!iiiii")  # dimensions, has nulls, type of the elements, length, lower bound

_LONGEST_NAME = 128

NULL = _LENGTH.pack(-1)
"""The field that holds nothing."""

TEXT = types["text"].oid
BYTEA = types["bytea"].oid
INTEGER = types["int4"].oid


class Array(bytes):
    """A whole array, ready to be sent. The statement casts it to its type."""


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


def bytes_field(value: bytes) -> bytes:
    """One element of a `bytea[]`."""
    return _LENGTH.pack(len(value)) + value


def integer_field(value: int) -> bytes:
    """One element of an `integer[]`."""
    return _SLOT.pack(4, value)


def array(element: int, fields: Sequence[bytes]) -> Array:
    """An array of elements of the type `element` (`TEXT`, `BYTEA` or `INTEGER`)."""
    if not fields:
        return Array(_HEADER.pack(0, 0, element, 0, 0)[:12])
    return Array(_HEADER.pack(1, 1, element, len(fields), 1) + b"".join(fields))


def columns(prefix: str, types: Mapping[str, int], rows: Iterable[Sequence[bytes]]) -> Mapping[str, Array]:
    """Rows of encoded fields as one array per column, named `<prefix>_<column>`."""
    fields = list(zip(*rows, strict=True)) or [()] * len(types)
    return {
        f"{prefix}_{name}": array(element, column)
        for (name, element), column in zip(types.items(), fields, strict=True)
    }


def register_arrays(context: AdaptContext) -> None:
    """Let a connection send `Array`."""
    context.adapters.register_dumper(Array, _ArrayDumper)


class _ArrayDumper(Dumper):
    format = Format.BINARY
    oid = 0  # the statement says which

    def dump(self, obj: Buffer) -> Buffer:
        return obj
