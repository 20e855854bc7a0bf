"""Rows of LangGraph's checkpoint tables on their way to the database, encoded by whoever hands them in."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain

from holdfast.checkpoints.arrays import BYTEA, INTEGER, TEXT, Columns, Encoded, integer_field

Row = tuple[bytes, ...]
"""The encoded fields of a row, in the order of its columns below, without the slot."""

_BLOBS = Columns("blob", slot=INTEGER, thread=TEXT, namespace=TEXT, channel=TEXT, version=TEXT, type=TEXT, blob=BYTEA)
_CHECKPOINTS = Columns("put", slot=INTEGER, thread=TEXT, namespace=TEXT, id=TEXT, parent=TEXT, checkpoint=TEXT,
                       metadata=TEXT)  # fmt: skip
_ADDED, _REPLACING = (
    Columns(prefix, slot=INTEGER, thread=TEXT, namespace=TEXT, checkpoint=TEXT, task=TEXT, idx=INTEGER, path=TEXT,
            channel=TEXT, type=TEXT, blob=BYTEA)
    for prefix in ("add", "over")
)  # fmt: skip


class Rows:
    """What one `put` or `put_writes` has to say, to be written as one."""

    __slots__ = ("blobs", "checkpoints", "replacing", "size", "writes")

    def __init__(
        self,
        *,
        blobs: Sequence[Row] = (),
        checkpoints: Sequence[Row] = (),
        writes: Sequence[Row] = (),
        replacing: bool = False,
    ) -> None:
        self.blobs = blobs
        self.checkpoints = checkpoints
        self.writes = writes
        self.replacing = replacing
        """Whether these writes replace those that are there already, which otherwise stay."""
        self.size = sum(sum(map(len, row)) for row in chain(blobs, checkpoints, writes))
        """In bytes."""

    def __len__(self) -> int:
        return len(self.blobs) + len(self.checkpoints) + len(self.writes)


NO_ROWS = Rows()


def row_columns(batch: Iterable[tuple[int, Rows]]) -> Mapping[str, Encoded]:
    """The batch as the parameters of the statement that writes it. Each part comes with the slot of its owner."""
    slotted = [(integer_field(slot), rows) for slot, rows in batch]
    replacing = _each(slotted, lambda rows: rows.writes if rows.replacing else ())
    return {
        **_BLOBS.of(_each(slotted, lambda rows: rows.blobs)),
        **_CHECKPOINTS.of(_last_of_each(4, _each(slotted, lambda rows: rows.checkpoints))),
        **_ADDED.of(_each(slotted, lambda rows: () if rows.replacing else rows.writes)),
        **_REPLACING.of(_last_of_each(6, replacing)),
    }


def _each(batch: Iterable[tuple[bytes, Rows]], part: Callable[[Rows], Sequence[Row]]) -> list[Row]:
    return [(slot, *row) for slot, rows in batch for row in part(rows)]


def _last_of_each(key: int, rows: Sequence[Row]) -> Collection[Row]:
    # One statement cannot change a row twice.
    return {row[:key]: row for row in rows}.values()
