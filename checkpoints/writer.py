"""Commits the checkpoints of all runs of a process together, each under its own fence.

While one flush commits, the next one gathers; nothing waits for a timer. A flush is one statement: it locks the lease
of every run in it and writes the rows of those alone whose lease still has their epoch. A waiter is answered after
the commit.

What goes wrong stays with whom it concerns. A run that the fence refused is asked about again by itself: its lease may
have been locked just then, and only one that has another epoch is lost. A row that Postgres will not have is found by
splitting the batch, never a run's rows from each other before others are out of the way, and always in order. After
one refusal or failure nothing of that run and epoch is written any more.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import psycopg

from holdfast.checkpoints.arrays import INTEGER, TEXT, array, integer_field, text_field
from holdfast.checkpoints.fence import lost
from holdfast.checkpoints.giving_up import NO_TIME_LEFT, Waiting, in_time
from holdfast.checkpoints.line import Line
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.rows import Rows, columns, columns_replacing
from holdfast.checkpoints.shift import Shift
from holdfast.checkpoints.translation import translate
from holdfast.contracts.classification import translated
from holdfast.contracts.errors import ConfigurationError, HoldfastError, StoreUnavailable
from holdfast.contracts.ids import RunId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "writer.sql")
_MOST_ASKED = 5
"""A lease that is locked so many times in a row counts as out of reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterTerms:
    """What the writer holds at most."""

    batch_rows: int = 10_000
    """In one flush, unless one write alone has more."""
    batch_bytes: int = 16 * 1024 * 1024
    """In one flush, unless one write alone has more."""
    queue_bytes: int = 64 * 1024 * 1024
    """Handed in and not committed yet; beyond it, whoever comes waits before its rows are made."""

    def __post_init__(self) -> None:
        if min(self.batch_rows, self.batch_bytes, self.queue_bytes) < 1:
            raise ConfigurationError("the bounds of the writer must be above 0")


class Pen:
    """The right of one owner to write, which ends for good with the first write that fails."""

    __slots__ = ("__weakref__", "owner", "trouble")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.trouble: HoldfastError | None = None
        """Why it writes no more."""

    def require(self) -> None:
        """Raises what ended it: `LeaseLost`, or an error of the kind of the first failure."""
        if self.trouble is not None:
            raise self.refusal(self.trouble)

    def refusal(self, trouble: HoldfastError) -> HoldfastError:
        """An error of its own for each who is refused for `trouble`."""
        kind = type(trouble)
        return kind(
            f"nothing more is written for run {self.owner.run_id} under epoch {self.owner.epoch}: {trouble.message}",
            **trouble.facts,
        )


class _Write:
    __slots__ = ("done", "pen", "rows")

    def __init__(self, pen: Pen, rows: Rows, done: asyncio.Future[None]) -> None:
        self.pen = pen
        self.rows = rows
        self.done = done

    def succeed(self) -> None:
        if not self.done.done():  # its waiter may have been cancelled
            self.done.set_result(None)

    def fail(self, error: HoldfastError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class CheckpointWriter:
    """The one writer of a process, on a line of its own. Use it in one loop."""

    def __init__(self, line: Line, terms: WriterTerms = WriterTerms()) -> None:
        self._line = line
        self._terms = terms
        self._queue: deque[_Write] = deque()
        self._queued_bytes = 0
        self._pens: WeakValueDictionary[tuple[RunId, int], Pen] = WeakValueDictionary()
        self._shift = Shift(self._work, name="checkpoint writer")
        self._waiting = Waiting()
        self._door = asyncio.Lock()
        self._outside = 0
        self._less = asyncio.Event()
        self._closed = False

    @property
    def queued_bytes(self) -> int:
        """Of rows handed in and not committed yet."""
        return self._queued_bytes

    def pen(self, owner: Owner) -> Pen:
        """The pen of an owner: everyone who writes under its run and epoch has the same."""
        found = self._pens.get((owner.run_id, owner.epoch))
        if found is None:
            found = self._pens[owner.run_id, owner.epoch] = Pen(owner)
        return found

    async def admit(self) -> None:
        """Wait for room, in the order of coming. Make the rows after this, and hand them in at once."""
        if self._queued_bytes < self._terms.queue_bytes and not self._outside:
            return
        self._outside += 1
        try:
            async with in_time(), self._door:
                while self._queued_bytes >= self._terms.queue_bytes:
                    self._less.clear()
                    await self._less.wait()
        finally:
            self._outside -= 1

    async def write(self, pen: Pen, rows: Rows) -> None:
        """Returns when `rows` are committed. Cancelling the wait does not take them back.

        Raises `LeaseLost` when the pen's owner holds its run no more, `StoreUnavailable` when the database could not
        be reached in time (the batch goes on without those who gave up waiting), `InvalidRequest` or `NotFound` for a
        row that it will not have; and the same for every later write with this pen.
        """
        if self._closed:
            raise StoreUnavailable("the database was closed; nothing is written any more")
        pen.require()
        write = _Write(pen, rows, asyncio.get_running_loop().create_future())
        self._queue.append(write)
        self._queued_bytes += rows.size
        self._shift.begin()
        await self._waiting.answer(write.done, partial(self._give_up, write))

    async def close(self) -> None:
        """Commit what was handed in, refuse what comes, and give the connection back."""
        self._closed = True
        self._line.be_impatient()
        await self._shift.over()
        await self._line.close()

    async def _work(self) -> None:
        while self._queue:
            batch = self._next_batch()
            try:
                await self._commit(batch)
            except Exception as error:  # noqa: BLE001  # a fault of ours: every waiter is told, and the next is served
                self._stop(batch, translated(error))
            finally:
                self._queued_bytes -= sum(write.rows.size for write in batch)
                self._less.set()

    def _next_batch(self) -> list[_Write]:
        """As many as the bounds admit of the kind of the first: what replaces is written by a statement of its own."""
        replacing = self._queue[0].rows.replacing
        batch: list[_Write] = []
        kept: list[_Write] = []
        passed: set[Pen] = set()
        rows = size = 0
        while self._queue:
            write = self._queue[0]
            if write.rows.replacing is not replacing or write.pen in passed:
                kept.append(self._queue.popleft())
                passed.add(write.pen)  # nothing of its run may overtake it
                continue
            rows, size = rows + len(write.rows), size + write.rows.size
            if batch and (rows > self._terms.batch_rows or size > self._terms.batch_bytes):
                break
            batch.append(self._queue.popleft())
        self._queue.extendleft(reversed(kept))
        return batch

    async def _commit(self, batch: Iterable[_Write], *, asked: int = 0) -> None:
        """Write and answer all of `batch`, whatever it takes."""
        wanted = [write for write in batch if not _stopped(write)]
        if not wanted:
            return
        try:
            refused = await self._flush(wanted)
        except psycopg.Error as error:
            await self._without_the_culprit(wanted, error, asked)
            return
        await reach(Mark.FLUSH_COMMITTED)
        for write in wanted:
            if write.pen not in refused:
                write.succeed()
        for pen in refused:
            await self._ask_again(pen, [write for write in wanted if write.pen is pen], asked)

    async def _flush(self, batch: Sequence[_Write]) -> Sequence[Pen]:
        """Write the rows of every run that is held; returns the pens of those that were not, or were locked."""
        pens = list(dict.fromkeys(write.pen for write in batch))
        slots = {pen: slot for slot, pen in enumerate(pens)}
        query, encoded = ("flush_replacing", columns_replacing) if batch[0].rows.replacing else ("flush", columns)
        parameters = {
            "slots": array(INTEGER, [integer_field(slot) for slot in range(len(pens))]),
            "runs": array(TEXT, [text_field(pen.owner.run_id) for pen in pens]),
            "epochs": array(TEXT, [text_field(str(pen.owner.epoch)) for pen in pens]),
            **encoded((slots[write.pen], write.rows) for write in batch),
        }
        tenants = {pen.owner.tenant_id for pen in pens}
        return [pens[row["slot"]] for row in await self._line.run(_SQL[query], parameters, tenants=tenants)]

    async def _without_the_culprit(self, batch: Sequence[_Write], error: psycopg.Error, asked: int) -> None:
        if self._line.lost or len(batch) == 1:
            self._stop(batch, translate(error))
            return
        for part in _halves(batch):
            await self._commit(part, asked=asked)

    async def _ask_again(self, pen: Pen, batch: Sequence[_Write], asked: int) -> None:
        """Tell a run that is lost from one whose lease was locked just then."""
        owner = pen.owner
        question = {"run_id": owner.run_id, "epoch": owner.epoch}
        try:
            held = await self._line.run(_SQL["ask_again"], question, tenants={owner.tenant_id})
        except psycopg.Error as error:
            self._stop(batch, translate(error))
            return
        if not held:
            self._stop(batch, lost(owner))
        elif asked < _MOST_ASKED:
            await self._commit(batch, asked=asked + 1)
        else:
            self._stop(batch, StoreUnavailable(f"the lease of run {owner.run_id} was locked each time it was needed"))

    def _give_up(self, write: _Write) -> None:
        self._stop([write], StoreUnavailable(f"Postgres did not commit in time: {NO_TIME_LEFT}"))

    def _stop(self, batch: Iterable[_Write], trouble: HoldfastError) -> None:
        for write in batch:
            if write.pen.trouble is None:
                write.pen.trouble = trouble
                write.fail(trouble)
            else:
                write.fail(write.pen.refusal(write.pen.trouble))


def _stopped(write: _Write) -> bool:
    if write.pen.trouble is None:
        return False
    write.fail(write.pen.refusal(write.pen.trouble))
    return True


def _halves(batch: Sequence[_Write]) -> tuple[list[_Write], list[_Write]]:
    """By runs while there are several, then by order."""
    pens = list(dict.fromkeys(write.pen for write in batch))
    if len(pens) == 1:
        middle = len(batch) // 2
        return list(batch[:middle]), list(batch[middle:])
    first = set(pens[: len(pens) // 2])
    return [write for write in batch if write.pen in first], [write for write in batch if write.pen not in first]
