"""Reads for many runs at once what each of them begins with: every attempt and every subgraph with its thread's latest
checkpoint, every task that makes calls with those it has made before.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import psycopg
from psycopg.rows import DictRow

from holdfast.checkpoints.arrays import INTEGER, TEXT, array, integer_field, text_field
from holdfast.checkpoints.giving_up import NO_TIME_LEFT, Waiting
from holdfast.checkpoints.line import Line
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.shift import Shift
from holdfast.checkpoints.translation import translate
from holdfast.contracts.classification import translated
from holdfast.contracts.errors import HoldfastError, StoreUnavailable
from holdfast.contracts.ids import TenantId

_SQL = load_queries(__name__, "reader.sql")
_MOST_AT_ONCE = 64


class _Question:
    __slots__ = ("answer", "fields", "query", "tenant_id")

    def __init__(
        self, query: str, tenant_id: TenantId, fields: Sequence[bytes], answer: asyncio.Future[Sequence[DictRow]]
    ) -> None:
        self.query = query
        self.tenant_id = tenant_id
        self.fields = fields
        self.answer = answer

    def fail(self, error: HoldfastError) -> None:
        if not self.answer.done():
            self.answer.set_exception(type(error)(error.message, **error.facts))

    def give_up(self) -> None:
        self.fail(StoreUnavailable(f"Postgres did not answer in time: {NO_TIME_LEFT}"))


class CheckpointReader:
    """The one reader of a process, on a line of its own. Use it in one loop."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._asked: deque[_Question] = deque()
        self._shift = Shift(self._work, name="checkpoint reader")
        self._waiting = Waiting()
        self._closed = False

    async def latest(self, tenant_id: TenantId, thread_id: str, checkpoint_ns: str) -> DictRow | None:
        """The row of the latest checkpoint there, with its blobs and writes, or None where the tenant has none.

        Raises `InvalidRequest` for names that no text of Postgres can hold, and `StoreUnavailable`.
        """
        rows = await self._ask("latest_checkpoints", tenant_id, thread_id, checkpoint_ns)
        return rows[0] if rows else None

    async def calls(self, tenant_id: TenantId, thread_id: str, task_id: str) -> Sequence[DictRow]:
        """The rows of the calls that a task of a thread has made. Raises the same."""
        return await self._ask("calls_of_tasks", tenant_id, thread_id, task_id)

    async def approvals(self, tenant_id: TenantId, thread_id: str, task_id: str) -> Sequence[DictRow]:
        """The rows of what a task of a thread has asked people, oldest first. Raises the same."""
        return await self._ask("approvals_of_tasks", tenant_id, thread_id, task_id)

    async def _ask(self, query: str, tenant_id: TenantId, thread_id: str, name: str) -> Sequence[DictRow]:
        if self._closed:
            raise StoreUnavailable("the database was closed; nothing is read any more")
        fields = [text_field(part) for part in (tenant_id, thread_id, name)]
        question = _Question(query, tenant_id, fields, asyncio.get_running_loop().create_future())
        self._asked.append(question)
        self._shift.begin()
        return await self._waiting.answer(question.answer, question.give_up)

    async def close(self) -> None:
        """Answer what was asked, refuse what comes, and give the connection back."""
        self._closed = True
        self._line.be_impatient()
        await self._shift.over()
        await self._line.close()

    async def _work(self) -> None:
        while self._asked:
            batch = self._next_batch()
            try:
                await self._read(batch)
            except psycopg.Error as error:
                _fail(batch, translate(error))
            except Exception as error:  # noqa: BLE001  # a fault of ours: every waiter is told, and the next is served
                _fail(batch, translated(error))

    def _next_batch(self) -> Sequence[_Question]:
        """The first that was asked, and others of its kind."""
        batch: list[_Question] = []
        others: deque[_Question] = deque()
        while self._asked and len(batch) < _MOST_AT_ONCE:
            question = self._asked.popleft()
            (batch if not batch or question.query == batch[0].query else others).append(question)
        self._asked.extendleft(reversed(others))
        return batch

    async def _read(self, batch: Sequence[_Question]) -> None:
        tenants, threads, names = zip(*(question.fields for question in batch), strict=True)
        parameters = {
            "slots": array(INTEGER, [integer_field(slot) for slot in range(len(batch))]),
            "tenants": array(TEXT, tenants),
            "threads": array(TEXT, threads),
            "names": array(TEXT, names),
        }
        asking = {question.tenant_id for question in batch}
        rows: list[list[DictRow]] = [[] for _ in batch]
        for row in await self._line.run(_SQL[batch[0].query], parameters, tenants=asking):
            rows[row["slot"]].append(row)
        for question, found in zip(batch, rows, strict=True):
            if not question.answer.done():
                question.answer.set_result(found)


def _fail(batch: Sequence[_Question], error: HoldfastError) -> None:
    for question in batch:
        question.fail(error)
