"""Many runs write at once, while answers are lost, rows are locked and runs change hands: what each was told is true.

Each history is drawn from a seed. A round is one act of each run, all at the same time, and one disturbance.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import count
from typing import Any, LiteralString

import psycopg
import pytest
from fix_database import DatabaseUrls, encrypting
from fix_proxy import Proxy
from scenes import DANA, INTENDED, RETURNED, Scene, intent, outcome
from stores import postgres_store

from holdfast.checkpoints.arrays import NULL, text_field
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.records import Records, event_row
from holdfast.checkpoints.rows import Rows
from holdfast.checkpoints.vault import Encryption
from holdfast.contracts.calls import CallIntent, Fresh
from holdfast.contracts.errors import BudgetExceeded, LeaseLost
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.runs import Owner
from holdfast.testing.invariants import assert_invariants

SEEDS = (103, 104, 108)
"""In each of these something was written twice when a flush was known by a name of its own alone."""
ROUNDS = 14
RUN, TENANT = 9, 20
"""Tool calls that a run, and a tenant, may make."""
RESERVED = Usage(tool_calls=1, cost_usd=Decimal("0.01"))

LOCKS: Sequence[LiteralString] = (
    "select from leases where run_id = %(run)s for update",
    "select from run_heads where run_id = %(run)s for no key update",
    "select from budgets where budget_id = %(run)s for no key update",
    "select from budgets where kind = 'tenant' and tenant_id = %(tenant)s for no key update",
)


@dataclass(eq=False)
class Told:
    """A run, whoever holds it now, and what its owners were told."""

    scene: Scene
    database: Database
    owner: Owner
    shared: str
    """The budget of its tenant."""
    committed: list[str] = field(default_factory=list)
    """Names of events, in order."""
    unsure: set[str] = field(default_factory=set)
    """Of those that an owner wrote when the run was taken over."""
    steps: set[str] = field(default_factory=set)
    open: list[CallIntent] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    """What became of those that were asked for."""

    async def _keep(self, name: str, writing: Awaitable[Any]) -> bool:
        try:
            await writing
        except LeaseLost:
            self.unsure.add(name)
            return False
        self.committed.append(name)
        return True

    async def tell(self, name: str) -> None:
        draft = EventDraft(kind=EventKind.TOOL_REFUSED, node=name)
        await self._keep(name, self.scene.store.events.append(self.owner, [draft]))

    async def begin(self, name: str) -> None:
        """A task, twice: it is one step."""
        begun = EventDraft(kind=EventKind.NODE_STARTED)
        with suppress(LeaseLost):
            for _ in range(2):
                await self.scene.store.runs.begin_step(self.owner, node="begun", task_id=name, event=begun)
            self.steps.add(name)
        await self.tell(name)

    async def put(self, name: str) -> None:
        """A checkpoint and an event in one."""
        fields = (*map(text_field, (self.owner.thread_id, "", name)), NULL, text_field("{}"), text_field("{}"))
        event = event_row(EventDraft(kind=EventKind.NODE_COMPLETED, node=name), self.owner.attempt)
        writer = self.database.writer
        rows, records = Rows(checkpoints=[fields]), Records(events=[event])
        await self._keep(name, writer.write(writer.pen(self.owner), rows, records))

    async def call(self, name: str, occurrence: int) -> None:
        wanted = intent(
            self.owner,
            args={"name": name},
            occurrence=occurrence,
            reservation=RESERVED,
            budgets=(self.owner.run_id, self.shared),
        )
        try:
            opened = await self.scene.store.journal.open(self.owner, wanted, event=replace(INTENDED, node=name))
        except BudgetExceeded:
            self.calls["refused"] += 1
        except LeaseLost:
            self.calls["unsure"] += 1
        else:
            assert isinstance(opened, Fresh)
            self.calls["open"] += 1
            self.open.append(wanted)

    async def call_three_times(self, name: str) -> None:
        await asyncio.gather(*(self.call(name, n) for n in range(3)))

    async def close_all(self, name: str) -> None:
        closing, self.open = self.open, []
        used = (replace_cost(RESERVED, cost) for cost in (Decimal("0.002"), None, Decimal(0)))
        await asyncio.gather(
            *(self._close(each, name, usage) for each, usage in zip(closing, (*used, *[RESERVED] * 99), strict=False))
        )

    async def _close(self, wanted: CallIntent, name: str, used: Usage) -> None:
        returned = outcome(wanted.call_id, usage=used)
        try:
            record = await self.scene.store.journal.close(self.owner, returned, event=replace(RETURNED, node=name))
        except LeaseLost:
            self.open.append(wanted)
        else:
            assert record.status == "returned"
            self.calls["closed"] += 1


def replace_cost(usage: Usage, cost: Decimal | None) -> Usage:
    return usage.model_copy(update={"cost_usd": cost})


class History:
    """A few runs of two tenants in one process, and a second process that takes runs over."""

    def __init__(self, seed: int, urls: DatabaseUrls, proxy: Proxy, far: Database, near: Database) -> None:
        self.dice = random.Random(seed)
        self.urls, self.proxy = urls, proxy
        self.far, self.near = far, near
        self.names = (f"name-{n:04}" for n in count())
        self.runs: list[Told] = []

    async def begin(self) -> None:
        scene = Scene(postgres_store(self.far))
        for tenant in ("acme", "acme", "acme", "bolt", "bolt"):
            owner = await scene.running(tenant, limits=Limits(max_tool_calls=RUN, max_cost_usd=None))
            shared = await scene.store.ledger.tenant_budget(tenant)
            self.runs.append(Told(scene, self.far, owner, shared))
        for tenant in ("acme", "bolt"):
            await scene.tenant(tenant, budget=Limits(max_tool_calls=TENANT, max_tokens=None, max_cost_usd=None))

    async def round(self) -> None:
        disturb = self.dice.choice(
            [self.lock, self.lose, self.lose_and_lock, self.take_over, self.move_a_head, self.nothing]
        )
        names = [next(self.names) for _ in self.runs]
        async with disturb(names):
            acts = [
                self.dice.choice((run.tell, run.begin, run.put, run.call_three_times, run.close_all))
                for run in self.runs
            ]
            self.acting = [asyncio.create_task(act(name)) for act, name in zip(acts, names, strict=True)]
            await asyncio.sleep(0)
        await asyncio.gather(*self.acting)

    @asynccontextmanager
    async def nothing(self, names: Sequence[str]) -> AsyncIterator[None]:
        yield

    @asynccontextmanager
    async def lock(self, names: Sequence[str]) -> AsyncIterator[None]:
        async with await psycopg.AsyncConnection.connect(self.urls.admin) as conn:
            await self._lock_one(conn)
            yield
            await self.until(self.somebody_waits)

    @asynccontextmanager
    async def lose(self, names: Sequence[str]) -> AsyncIterator[None]:
        self.proxy.lose_answer(self.dice.choice(names).encode(), cut=True)
        yield

    @asynccontextmanager
    async def lose_and_lock(self, names: Sequence[str]) -> AsyncIterator[None]:
        lost = self.proxy.answers_lost
        self.proxy.lose_answer(self.dice.choice(names).encode())
        yield
        await self.until(lambda: self.proxy.answers_lost > lost)
        async with await psycopg.AsyncConnection.connect(self.urls.admin) as conn:
            await self._lock_one(conn)
            self.proxy.start()  # resets the wire that lost it
            await self.until(self.somebody_waits)

    @asynccontextmanager
    async def take_over(self, names: Sequence[str]) -> AsyncIterator[None]:
        taken = self.dice.choice(self.runs)
        yield
        await self.change(
            "update leases set expires_at = clock_timestamp() - interval '1 second' where run_id = %s",
            taken.owner.run_id,
        )
        scene = Scene(postgres_store(self.near))
        claims: Sequence[Any] = ()
        while not claims:  # its lease may be locked by a flush just now
            claims = await scene.claim("second")
        await asyncio.wait(self.acting)
        taken.scene, taken.database, taken.owner = scene, self.near, claims[0].owner

    @asynccontextmanager
    async def move_a_head(self, names: Sequence[str]) -> AsyncIterator[None]:
        owner = self.dice.choice(self.runs).owner
        self.proxy.lose_answer(self.dice.choice(names).encode(), cut=True)
        yield
        scene = Scene(postgres_store(self.near))
        await scene.store.runs.request_cancel(DANA, owner.tenant_id, owner.run_id, reason="to move its head")

    async def _lock_one(self, conn: psycopg.AsyncConnection[Any]) -> None:
        owner = self.dice.choice(self.runs).owner
        await conn.execute(self.dice.choice(LOCKS), {"run": owner.run_id, "tenant": owner.tenant_id})

    async def somebody_waits(self) -> bool:
        async with await psycopg.AsyncConnection.connect(self.urls.admin) as conn:
            waiting = await conn.execute("select from pg_locks where not granted")
            return bool(waiting.rowcount)

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait for it, or for the end of what there is to do."""
        async with asyncio.timeout(20):
            while not all(task.done() for task in self.acting):
                if (await found if isinstance(found := holds(), Awaitable) else found) is True:
                    return
                await asyncio.sleep(0.002)

    async def change(self, statement: LiteralString, *values: object) -> None:
        async with await psycopg.AsyncConnection.connect(self.urls.admin, autocommit=True) as conn:
            await conn.execute(statement, values)

    async def require_true(self) -> None:
        for run in self.runs:
            await run.tell(next(self.names))  # after all that nobody waited for
            events = await run.scene.store.events.read(run.owner.tenant_id, run.owner.run_id)
            told = [each.node for each in events if each.kind in (EventKind.TOOL_REFUSED, EventKind.NODE_COMPLETED)]
            assert [name for name in told if name not in run.unsure] == run.committed
            assert len(set(told)) == len(told)
            begun = Counter(each.task_id for each in events if each.kind == EventKind.NODE_STARTED)
            assert all(begun[name] == 2 for name in run.steps - run.unsure)
            assert all(times <= 2 for times in begun.values())
            calls = await run.scene.store.journal.of_run(run.owner.tenant_id, run.owner.run_id)
            assert 0 <= len(calls) - run.calls["open"] <= run.calls["unsure"]
            closed = sum(each.status == "returned" for each in calls)
            assert 0 <= closed - run.calls["closed"] <= len(run.open)
            if run.calls["refused"]:  # only for want of room, which nothing gives back here
                own, shared = [await run.scene.budget(run.owner, each) for each in (run.owner.run_id, run.shared)]
                full = [state.spent.tool_calls + state.reserved.tool_calls for state in (own, shared)]
                assert full[0] == RUN or full[1] == TENANT


@pytest.mark.parametrize("encryption", [None, encrypting("one")], ids=["in the clear", "encrypted"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_comes_between_each_run_is_written_once_in_order_and_as_it_was_told(
    seed: int, encryption: Encryption | None, database_urls: DatabaseUrls, proxy: Proxy
):
    async with (
        Database(database_urls.app, encryption=encryption) as near,
        Database(proxy.url, encryption=encryption) as far,
    ):
        history = History(seed, database_urls, proxy, far, near)
        await history.begin()
        for _ in range(ROUNDS):
            await history.round()
        await history.require_true()
        await assert_invariants(near)
