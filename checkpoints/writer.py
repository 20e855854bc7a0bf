"""Commits what all runs of a process have to write together, each under its own fence: checkpoints, and what is
recorded beside them.

While one flush commits, the next one gathers; whoever waits, waits for no timer. A flush is one statement: it locks
the lease of every run in it, and writes all rows if every lease still has the epoch they were written under. A waiter
is answered after the commit.

What goes wrong stays with whom it concerns. A flush that cannot be written as it is writes nothing and names who is in
its way; the others are flushed again without them. A run that the fence refused is flushed again by itself, and waits:
its lease may have been locked just then, and only one that has another epoch is lost. A row that Postgres will not
have is found by splitting the batch, never a run's rows from each other before others are out of the way, and always in
order. After one refusal or failure nothing of that run and epoch is written any more. A call that cannot be opened or
closed in the company of others is no failure: whoever asked is told, and looks at it alone.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import count
from weakref import WeakValueDictionary

import psycopg
from psycopg.errors import LockNotAvailable

from holdfast.checkpoints.arrays import (
    BIGINT,
    TEXT,
    UUIDS,
    Encoded,
    array,
    bigint_field,
    boolean,
    bytes_field,
    text_field,
    uuid_field,
)
from holdfast.checkpoints.fence import lost
from holdfast.checkpoints.giving_up import NO_TIME_LEFT, Waiting, in_time
from holdfast.checkpoints.line import Line
from holdfast.checkpoints.moves import move_columns
from holdfast.checkpoints.pen import Pen
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.records import NOTHING, Records, record_columns
from holdfast.checkpoints.rows import NO_ROWS, Rows, row_columns
from holdfast.checkpoints.shift import Shift
from holdfast.checkpoints.translation import translate
from holdfast.contracts.classification import translated
from holdfast.contracts.errors import ConfigurationError, HoldfastError, InvalidRequest, StoreUnavailable
from holdfast.contracts.ids import BudgetId, RunId
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "writer.sql")
_MOST_LADEN = 4096
_SKIP_SECONDS = 5.0
"""So long no budget is waited for after one that was in vain: those who do without it are held up once."""
_LINGER_SECONDS = 0.05
"""So long something that nobody waits for may wait for company."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterTerms:
    """What the writer holds at most."""

    batch_rows: int = 10_000
    """In one flush, unless one write alone has more."""
    batch_bytes: int = 16 * 1024 * 1024
    """In one flush, unless one write alone has more."""
    queue_rows: int = 100_000
    """Handed in and not committed yet; beyond it, whoever comes waits before its rows are made."""
    queue_bytes: int = 64 * 1024 * 1024
    """The same."""

    def __post_init__(self) -> None:
        if min(self.batch_rows, self.batch_bytes, self.queue_rows, self.queue_bytes) < 1:
            raise ConfigurationError("the bounds of the writer must be above 0")


class Handed:
    """What somebody has handed in to be written as one."""

    __slots__ = ("done", "ended", "length", "number", "pen", "records", "rows", "size")

    def __init__(self, pen: Pen, rows: Rows, records: Records, done: asyncio.Future[datetime | None] | None) -> None:
        self.pen = pen
        self.rows = rows
        self.records = records
        self.done = done
        self.length = len(rows) + len(records)
        """In rows."""
        self.size = rows.size + records.size
        """In bytes."""
        self.number = 0
        """Greater than those of all that was handed in before."""
        self.ended = False
        pen.pending += 1

    @property
    def calls_alone(self) -> bool:
        """Whether who handed it in can see to it in another way."""
        return bool(self.records.moves) and not self.rows

    def touches(self, budgets: Set[str]) -> bool:
        """Whether something of it is counted on one of these."""
        paying = (budget for move in self.records.moves for budget in move.budgets)
        return not budgets.isdisjoint(paying) or (self.records.steps and self.pen.owner.run_id in budgets)

    def succeed(self, committed_at: datetime) -> None:
        if (waiter := self._end()) is not None:
            waiter.set_result(committed_at)

    def hand_back(self) -> None:
        """It was not written, and not for want of a right to."""
        if (waiter := self._end()) is not None:
            waiter.set_result(None)

    def fail(self, error: HoldfastError) -> None:
        if (waiter := self._end()) is not None:
            waiter.set_exception(error)

    def _end(self) -> asyncio.Future[datetime | None] | None:
        """Who is to be told, if anybody still waits. Whoever gave up waiting for it has ended it before."""
        self.pen.pending -= not self.ended
        self.ended = True
        return None if self.done is None or self.done.done() else self.done


@dataclass(frozen=True, slots=True)
class _Flushed:
    """What became of a flush."""

    committed_at: datetime | None
    """None when it was not written."""
    refused: Set[Pen]
    """Those whose runs are not held, or were locked."""
    lacking: Set[str]
    """Budgets that were locked, or have no room for all that is opened."""


class CheckpointWriter:
    """The one writer of a process, on a line of its own. Use it in one loop."""

    def __init__(self, line: Line, terms: WriterTerms = WriterTerms()) -> None:
        self._line = line
        self._terms = terms
        self._queue: deque[Handed] = deque()
        self._queued_rows = 0
        self._queued_bytes = 0
        self._last: Set[Pen] = frozenset()
        """Whose writes were flushed last."""
        self._pens: WeakValueDictionary[tuple[RunId, int], Pen] = WeakValueDictionary()
        self._laden: OrderedDict[Pen, None] = OrderedDict()
        """Pens that hold something, whether or not anyone holds them."""
        self._shift = Shift(self._work, name="checkpoint writer")
        self._waiting = Waiting()
        self._door = asyncio.Lock()
        self._outside = 0
        self._less = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = count(1)
        self._skips_until = 0.0
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
        if self._has_room and not self._outside:
            return
        self._outside += 1
        try:
            async with in_time(), self._door:
                while not self._has_room:
                    self._less.clear()
                    await self._less.wait()
        finally:
            self._outside -= 1

    async def write(self, pen: Pen, rows: Rows = NO_ROWS, records: Records = NOTHING) -> None:
        """Returns when all of it is committed. Cancelling the wait does not take it back.

        Raises `LeaseLost` when the pen's owner holds its run no more, `StoreUnavailable` when the database could not
        be reached in time (the batch goes on without those who gave up waiting), `InvalidRequest` or `NotFound` for a
        row that it will not have; and the same for every later write with this pen.
        """
        await self.answer(self.hand_in(pen, rows, records))

    def hand_in(self, pen: Pen, rows: Rows = NO_ROWS, records: Records = NOTHING) -> "Handed":
        """Have it written with the next flush; `answer` waits for it."""
        handed = Handed(self._fit(pen), rows, records, asyncio.get_running_loop().create_future())
        self._queue_up(handed)
        self._shift.begin()
        return handed

    async def answer(self, handed: "Handed") -> datetime | None:
        """When it was committed; None for calls that could not be opened or closed in the company of others, or were
        withdrawn. Raises as `write` does."""
        assert handed.done is not None, "somebody waits for it"
        # Who opens a call wants to know what became of it also after a cancellation of the wait.
        done = asyncio.shield(handed.done) if handed.records.opens else handed.done
        return await self._waiting.answer(done, partial(self._give_up, handed))

    def later(self, pen: Pen, records: Records) -> None:
        """Hand in what nobody waits for. It is written before anything that this pen hands in afterwards, and soon."""
        self._queue_up(Handed(self._fit(pen), NO_ROWS, records, None))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._tired_of_waiting)

    def stage(self, pen: Pen, task_id: str, records: Records) -> None:
        """Keep what belongs into the commit of a task's checkpoint writes."""
        self._fit(pen).stage(task_id, records)
        self.keep(pen)

    def keep(self, pen: Pen) -> None:
        """Remember what a pen holds until its attempt has ended."""
        self._laden[pen] = None
        if len(self._laden) > _MOST_LADEN:
            self._laden.popitem(last=False)  # of attempts that were lost; no process works on so many runs

    def withdraw(self, handed: "Handed") -> bool:
        """Take back what was handed in, unless it is under way by now. Returns whether it was taken back."""
        if handed not in self._queue:
            return False
        self._queue.remove(handed)
        self._let_go([handed])
        handed.hand_back()
        return True

    async def catch_up(self, owner: Owner, *, ending: bool = False) -> None:
        """Wait until all that was handed in for an owner is committed, so that what is written by other ways comes
        after it; `ending`, also what was staged for tasks that LangGraph has written nothing for."""
        pen = self._pens.get((owner.run_id, owner.epoch))
        if pen is None:
            return
        staged = pen.all_staged() if ending else NOTHING
        if pen.trouble is None and (staged or pen.pending):
            await self.write(pen, records=staged)
        if ending:
            self._laden.pop(pen, None)

    async def close(self) -> None:
        """Commit what was handed in, refuse what comes, and give the connection back."""
        self._closed = True
        self._line.be_impatient()
        self._tired_of_waiting()
        await self._shift.over()
        await self._line.close()

    def _fit(self, pen: Pen) -> Pen:
        if self._closed:
            raise StoreUnavailable("the database was closed; nothing is written any more")
        pen.require()
        return pen

    def _queue_up(self, write: "Handed") -> None:
        write.number = next(self._numbers)
        self._queue.append(write)
        self._queued_rows += write.length
        self._queued_bytes += write.size

    @property
    def _has_room(self) -> bool:
        return self._queued_rows < self._terms.queue_rows and self._queued_bytes < self._terms.queue_bytes

    def _let_go(self, writes: Iterable[Handed]) -> None:
        for write in writes:
            self._queued_rows -= write.length
            self._queued_bytes -= write.size
        self._less.set()

    def _tired_of_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._shift.begin()

    async def _work(self) -> None:
        while self._queue:
            batch = self._next_batch()
            try:
                await self._commit(batch)
            except Exception as error:  # noqa: BLE001  # a fault of ours: every waiter is told, and the next is served
                self._stop(batch, translated(error))
            finally:
                self._let_go(batch)

    def _next_batch(self) -> list[Handed]:
        """What comes first of half of the runs that are writing, as far as the bounds admit.

        The others were answered just now, or wait for the next flush: one half computes while the other is written,
        so that neither this process nor Postgres waits for the other.
        """
        most = -(-len(self._last | {write.pen for write in self._queue}) // 2)
        batch: list[Handed] = []
        left: list[Handed] = []
        taken: set[Pen] = set()
        rows = size = 0
        while self._queue:
            write = self._queue[0]
            if write.pen not in taken and len(taken) == most:
                left.append(self._queue.popleft())
                continue
            rows, size = rows + write.length, size + write.size
            if batch and (rows > self._terms.batch_rows or size > self._terms.batch_bytes):
                break
            taken.add(write.pen)
            batch.append(self._queue.popleft())
        self._queue.extendleft(reversed(left))
        self._last = taken
        return batch

    async def _commit(self, batch: Iterable[Handed], *, waiting: bool = False) -> None:
        """Write and answer all of `batch`, whatever it takes. `waiting`, for one run's writes: wait for those who have
        locked what it needs."""
        wanted = [write for write in batch if not _stopped(write)]
        if not wanted:
            return
        try:
            flushed = await self._flush(wanted, waiting=waiting)
        except (psycopg.Error, InvalidRequest) as error:
            if isinstance(error, LockNotAvailable) and not self._skips:
                self._skips_until = asyncio.get_running_loop().time() + _SKIP_SECONDS
                await self._commit(wanted, waiting=waiting)
            else:
                await self._without_the_culprit(wanted, error, waiting=waiting)
            return
        if flushed.committed_at is None:
            await self._without_those_in_the_way(wanted, flushed, waited=waiting)
            return
        await reach(Mark.FLUSH_COMMITTED)
        for write in wanted:
            write.succeed(flushed.committed_at)

    async def _flush(self, batch: Sequence[Handed], *, waiting: bool) -> _Flushed:
        """Write all of it, or nothing of it."""
        last = {write.pen: write.number for write in batch}
        slots = {pen: slot for slot, pen in enumerate(last, 1)}
        slotted = [(slots[write.pen], write) for write in batch]
        rows = [(slot, write.rows) for slot, write in slotted]
        parameters: dict[str, Encoded] = {
            "flushes": array(TEXT, [bytes_field(self._name(pen, number)) for pen, number in last.items()]),
            "waits": boolean(waiting),
            "skips": boolean(self._skips),
            "runs": array(UUIDS, [uuid_field(pen.owner.run_id) for pen in last]),
            "epochs": array(BIGINT, [bigint_field(pen.owner.epoch) for pen in last]),
            "of_tenants": array(TEXT, [text_field(pen.owner.tenant_id) for pen in last]),
            **row_columns(rows),
            **record_columns((slot, write.records) for slot, write in slotted),
            **_moved(batch),
        }
        tenants = {pen.owner.tenant_id for pen in last}
        [told] = await self._line.run(_SQL["flush"], parameters, tenants=tenants)
        pens = list(last)
        return _Flushed(
            committed_at=told["committed_at"],
            refused={pens[slot - 1] for slot in told["refused"] or ()},
            lacking={str(budget) for budget in told["lacking"] or ()},
        )

    @property
    def _skips(self) -> bool:
        """Whether somebody has kept a budget for so long, a moment ago, that none is waited for now."""
        return asyncio.get_running_loop().time() < self._skips_until

    @cached_property
    def _own_name(self) -> str:
        """What tells it from every other writer that writes under the same epoch."""
        return f"{id(self):x}.{asyncio.get_running_loop().time():.6f}"

    def _name(self, pen: Pen, number: int) -> bytes:
        """What a run's head names: by it, a flush that comes again is known, and also a part of it. A later one of the
        same run has a greater number, and as many digits."""
        return f"{self._own_name}.{pen.owner.epoch}.{number:016x}".encode()

    async def _without_those_in_the_way(self, batch: Sequence[Handed], flushed: _Flushed, *, waited: bool) -> None:
        touching = [write for write in batch if write.touches(flushed.lacking)]
        # First what would take from a budget: it may be all that the rest was in want of.
        alone = {write for write in touching if write.records.opens}
        apart = set(flushed.refused)
        if not alone:
            alone = {write for write in touching if write.calls_alone}
            apart |= {write.pen for write in touching if write not in alone}
        for write in alone:
            write.hand_back()
        left = [write for write in batch if write not in alone]
        if waited:
            await self._after_waiting(left, held=bool(alone))
            return
        await self._commit(write for write in left if write.pen not in apart)
        for pen in dict.fromkeys(write.pen for write in left if write.pen in apart):
            await self._commit((write for write in left if write.pen is pen), waiting=True)

    async def _after_waiting(self, batch: Sequence[Handed], *, held: bool) -> None:
        if held:
            await self._commit(batch, waiting=True)
        else:
            self._stop(batch, lost(batch[0].pen.owner))

    async def _without_the_culprit(
        self, batch: Sequence[Handed], error: psycopg.Error | InvalidRequest, *, waiting: bool
    ) -> None:
        if self._line.lost or (waiting and isinstance(error, LockNotAvailable)):
            self._stop(batch, _told(error))
        elif len(batch) > 1:
            for part in _halves(batch):
                await self._commit(part, waiting=waiting)
        elif batch[0].calls_alone:
            batch[0].hand_back()
        else:
            self._stop(batch, _told(error))

    def _give_up(self, write: Handed) -> None:
        self._stop([write], StoreUnavailable(f"Postgres did not commit in time: {NO_TIME_LEFT}"))

    def _stop(self, batch: Iterable[Handed], trouble: HoldfastError) -> None:
        for write in batch:
            if write.pen.trouble is None:
                write.pen.trouble = trouble
                write.fail(trouble)
            else:
                write.fail(write.pen.refusal(write.pen.trouble))


def _moved(batch: Sequence[Handed]) -> Mapping[str, Encoded]:
    moves = [(write.pen.owner.tenant_id, move) for write in batch for move in write.records.moves]
    stepping = {write.pen.owner for write in batch if write.records.steps}
    return move_columns(moves, [(owner.tenant_id, BudgetId(owner.run_id)) for owner in stepping])


def _told(error: psycopg.Error | InvalidRequest) -> HoldfastError:
    return error if isinstance(error, HoldfastError) else translate(error)


def _stopped(write: Handed) -> bool:
    if write.pen.trouble is None:
        return False
    write.fail(write.pen.refusal(write.pen.trouble))
    return True


def _halves(batch: Sequence[Handed]) -> tuple[list[Handed], list[Handed]]:
    """By runs while there are several, then by order."""
    pens = list(dict.fromkeys(write.pen for write in batch))
    if len(pens) == 1:
        middle = len(batch) // 2
        return list(batch[:middle]), list(batch[middle:])
    first = set(pens[: len(pens) // 2])
    return [write for write in batch if write.pen in first], [write for write in batch if write.pen not in first]
