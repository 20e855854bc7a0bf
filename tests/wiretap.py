"""Notes every statement that goes to Postgres: its parameters, its role, and the tenants that its session works for."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from holdfast.checkpoints.arrays import BIGINT, BOOLEAN, BYTEA, INTEGER, TEXT, UUIDS, Encoded, array
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.wire import Wire

_PLACEHOLDER = re.compile(r"%\((\w+)\)[sb]|%([sb])|%%")
_WHOSE = "select current_user::text, coalesce(current_setting('holdfast.tenants', true), '')"


@dataclass(frozen=True)
class Sent:
    """A statement as it went to Postgres."""

    text: str
    """With numbers for its parameters."""
    names: tuple[str, ...]
    """Of its parameters, in the order of their numbers; numbers where they had no names."""
    values: tuple[Any, ...]
    role: str
    tenants: str
    """Those that its session works for, separated by commas."""
    name: str
    """`file.query`; for a statement that is not ours, its beginning."""

    @property
    def shape(self) -> tuple[object, ...]:
        """What tells it from others that differ in values alone."""
        return self.text, self.role, self.tenants, tuple(map(_is_there, self.values))


def _is_there(value: Any) -> bool:
    """Whether there is anything in a parameter: an array that is sent as it is may be empty."""
    return value is not None and not (isinstance(value, Encoded) and value in _EMPTY)


_EMPTY = {array(element, []) for element in (BIGINT, BOOLEAN, BYTEA, INTEGER, TEXT, UUIDS)}


class Recorder:
    """Notes what is sent to Postgres while its block lasts, over psycopg's connections and over the wire of a line."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self._execute = psycopg.AsyncCursor.execute
        self._executemany = psycopg.AsyncCursor.executemany
        self._run = Wire.run

    def __enter__(self) -> Self:
        recorder = self

        async def execute(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
            await recorder._note_of_cursor(self, query, params)
            return await recorder._execute(self, query, params, **options)

        async def executemany(self: Any, query: Any, params_seq: Iterable[Any], **options: Any) -> None:
            listed = list(params_seq)
            for params in listed:
                await recorder._note_of_cursor(self, query, params)
            await recorder._executemany(self, query, listed, **options)

        async def run(self: Wire, query: Any, parameters: Mapping[str, Any]) -> Any:
            [whose] = await recorder._run(self, _WHOSE, {})
            recorder._note(query, parameters, *whose.values())
            return await recorder._run(self, query, parameters)

        psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]
        psycopg.AsyncCursor.executemany = executemany  # type: ignore[method-assign]
        Wire.run = run  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        psycopg.AsyncCursor.execute = self._execute  # type: ignore[method-assign]
        psycopg.AsyncCursor.executemany = self._executemany  # type: ignore[method-assign]
        Wire.run = self._run  # type: ignore[method-assign]

    async def _note_of_cursor(self, cursor: Any, query: Any, params: Any) -> None:
        # The session itself says under which role and for whom it works.
        asking = psycopg.AsyncCursor(cursor.connection, row_factory=tuple_row)
        role, tenants = await (await self._execute(asking, _WHOSE)).fetchone()  # type: ignore[misc]
        self._note(query, params, role, tenants)

    def _note(self, query: Any, params: Any, role: str, tenants: str) -> None:
        text = query.as_string() if isinstance(query, sql.Composable) else query
        text = text.decode() if isinstance(text, bytes) else text
        numbered, names, values = _numbered(text, params)
        name = _ours().get(text) or " ".join(text.split())[:60]
        self.sent.append(Sent(numbered, names, values, role, tenants, name))


def _numbered(query: str, params: Any) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
    if params is None:
        return query, (), ()
    if isinstance(params, Mapping):
        names = list(dict.fromkeys(found[1] for found in _PLACEHOLDER.finditer(query) if found[1]))
        text = _PLACEHOLDER.sub(lambda found: f"${names.index(found[1]) + 1}" if found[1] else "%", query)
        return text, tuple(names), tuple(params[name] for name in names)
    numbers = iter(range(1, len(params) + 1))
    text = _PLACEHOLDER.sub(lambda found: f"${next(numbers)}" if found[2] else "%", query)
    return text, tuple(str(n + 1) for n in range(len(params))), tuple(params)


@cache
def named_queries() -> Mapping[str, str]:
    """All our queries, by `file.query`."""
    found = sorted(path.name for path in files("holdfast.checkpoints").iterdir() if path.name.endswith(".sql"))
    return {
        f"{file.removesuffix('.sql')}.{name}": query
        for file in found
        for name, query in load_queries("holdfast.checkpoints.x", file).items()
    }


def numbered(query: str) -> str:
    """One of our queries with numbers for its parameters."""
    return _numbered(query, dict.fromkeys(found[1] for found in _PLACEHOLDER.finditer(query) if found[1]))[0]


@cache
def _ours() -> Mapping[str, str]:
    return {query: name for name, query in named_queries().items()}
