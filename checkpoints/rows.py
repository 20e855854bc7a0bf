"""Rows of LangGraph's checkpoint tables on their way to the database, encoded by whoever hands them in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from holdfast.checkpoints.arrays import BYTEA, INTEGER, TEXT, Array, array, integer_field

Row = tuple[bytes, ...]
"""The encoded fields of a row, in the order of its columns below, without the slot."""

_BLOBS = {"slot": INTEGER, "thread": TEXT, "namespace": TEXT, "channel": TEXT, "version": TEXT, "type": TEXT,
          "blob": BYTEA}  # fmt: skip
_CHECKPOINTS = {"slot": INTEGER, "thread": TEXT, "namespace": TEXT, "id": TEXT, "parent": TEXT, "checkpoint": TEXT,
                "metadata": TEXT}  # fmt: skip
_WRITES = {"slot": INTEGER, "thread": TEXT, "namespace": TEXT, "checkpoint": TEXT, "task": TEXT, "idx": INTEGER,
           "path": TEXT, "channel": TEXT, "type": TEXT, "blob": BYTEA}  # fmt: skip
_WRITES_KEY = 6


class Rows:
    """What one `put` or `put_writes` has to say, to be written as one."""

    __slots__ = ("blobs", "checkpoints", "size", "writes", "writes_replace")

    def __init__(
        self,
        *,
        blobs: Sequence[Row] = (),
        checkpoints: Sequence[Row] = (),
        writes: Sequence[Row] = (),
        writes_replace: bool = False,
    ) -> None:
        self.blobs = blobs
        self.checkpoints = checkpoints
        self.writes = writes
        self.writes_replace = writes_replace
        """Whether writes that are there already are replaced, or stay."""
        self.size = sum(sum(map(len, row)) for row in chain(blobs, checkpoints, writes))
        """In bytes."""

    def __len__(self) -> int:
        return len(self.blobs) + len(self.checkpoints) + len(self.writes)


def columns(batch: Iterable[tuple[int, Rows]]) -> Mapping[str, Array]:
    """The batch as the parameters of the statement that writes it. Each part comes with the slot of its owner."""
    slotted = [(integer_field(slot), rows) for slot, rows in batch]
    added, replaced = _settled(slotted)
    return {
        **_columns("blob", _BLOBS, _each(slotted, lambda rows: rows.blobs)),
        **_columns("put", _CHECKPOINTS, _last_of_each(_each(slotted, lambda rows: rows.checkpoints))),
        **_columns("add", _WRITES, added),
        **_columns("set", _WRITES, replaced),
    }


def _each(batch: Iterable[tuple[bytes, Rows]], part: Callable[[Rows], Sequence[Row]]) -> list[Row]:
    return [(slot, *row) for slot, rows in batch for row in part(rows)]


def _last_of_each(checkpoints: Sequence[Row]) -> Iterable[Row]:
    # One statement cannot change a row twice.
    return {row[:4]: row for row in checkpoints}.values()


def _settled(batch: Iterable[tuple[bytes, Rows]]) -> tuple[list[Row], list[Row]]:
    """The writes that stay when there is one already, and those that replace it: each key once, as if in order."""
    last: dict[Row, tuple[bool, Row]] = {}
    for slot, rows in batch:
        for row in rows.writes:
            key = (slot, *row[: _WRITES_KEY - 1])
            if rows.writes_replace or key not in last:
                last[key] = (rows.writes_replace, (slot, *row))
    added = [row for replaces, row in last.values() if not replaces]
    return added, [row for replaces, row in last.values() if replaces]


def _columns(table: str, types: Mapping[str, int], rows: Iterable[Row]) -> Mapping[str, Array]:
    fields = list(zip(*rows, strict=True)) or [()] * len(types)
    return {
        f"{table}_{name}": array(element, column) for (name, element), column in zip(types.items(), fields, strict=True)
    }
