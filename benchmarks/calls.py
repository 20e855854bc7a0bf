"""What the journal costs: intent and outcome of a call, each durable, with budgets, events and fence.

And how fast a node that runs again is answered.
"""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

from psycopg_pool import AsyncConnectionPool

from benchmarks.measuring import Measured, Rounds, quantile, table
from benchmarks.servers import durable_server, our_database
from holdfast.checkpoints.database import Database, PoolSizes
from holdfast.checkpoints.journal import PostgresJournal
from holdfast.checkpoints.store import PostgresStore
from holdfast.contracts.calls import CallIdentity, CallIntent, CallOutcome, CallSite, OutcomeStatus
from holdfast.contracts.canonical import digest
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import BudgetId, CallId, RunId, TenantId
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.runs import GraphVersion, Owner, RunRequest
from holdfast.contracts.tenancy import Tenant, TenantContext
from holdfast.contracts.tools import Effect
from holdfast.runtime.entropy import SystemIds

OURS = "the journal"
ALONE = "each alone: the same records by the same statements, one for each intent and each outcome, 20 connections"
ROWS = "bare rows: one INSERT and one UPDATE, without fence, budgets, events and chain, pool of 20"
REQUEST, RESPONSE = {"text": "q" * 580}, {"text": "a" * 880}
ONE = Usage(model_calls=1, tokens_used=100)
INTENDED = EventDraft(kind=EventKind.MODEL_INTENDED, node="node")
RETURNED = EventDraft(kind=EventKind.MODEL_RETURNED, node="node")
UNLIMITED = Limits(**dict.fromkeys(Limits.model_fields))  # type: ignore[arg-type]
Call = Callable[[int], Awaitable[None]]
_numbers = count()


async def measure(call: Call, *, calls: int, at_once: int) -> Measured:
    """`at_once` callers make `calls` calls in all."""
    todo, seconds = iter(range(calls)), list[float]()

    async def caller(number: int) -> None:
        for _ in todo:
            began = time.perf_counter()
            await call(number)
            seconds.append(time.perf_counter() - began)

    gc.collect()
    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(at_once)))
    total = time.perf_counter() - began
    return Measured(calls / total, quantile(seconds, 0.5) * 1000, quantile(seconds, 0.99) * 1000)


async def owners(store: PostgresStore, number: int) -> Sequence[Owner]:
    """Owners of runs that are claimed already, of four tenants."""
    for tenant in range(4):
        await store.tenants.put(Tenant(tenant_id=TenantId(f"t{tenant}"), may_be_unlimited=True, max_queued=number))
    for run in range(number):
        who = TenantContext(tenant_id=TenantId(f"t{run % 4}"), user_id="u", roles=(), policy_version="p")
        await store.runs.admit(
            RunRequest(
                run_id=RunId(SystemIds().new()),
                thread_key=str(uuid4()),
                graph_name="g",
                graph_version="1",
                tenant=who,
                input=b"{}",
                input_type="json",
                context=None,
                limits=UNLIMITED,
            )
        )
    graphs = {GraphVersion("g", "1"): "1"}
    claims = await store.leases.claim("here", tenants=None, graphs=graphs, slots=number, ttl_seconds=3600)
    return [claim.owner for claim in claims]


def intent_of(owner: Owner, budgets: tuple[BudgetId, ...], ids: SystemIds, task_id: str) -> CallIntent:
    site = CallSite(thread_id=owner.thread_id, checkpoint_ns="", task_id=task_id, node="node")
    identity = CallIdentity(
        site=site, kind="model", name="openai:gpt", request_digest=digest(REQUEST), occurrence=next(_numbers)
    )
    return CallIntent(
        call_id=CallId(ids.new()),
        identity=identity,
        agent_name="agent",
        request=REQUEST,
        effect=Effect.READ,
        idempotent=True,
        reservation=ONE,
        budgets=budgets,
        timeout_seconds=30.0,
        policy_version="p",
    )


@dataclass(frozen=True)
class Prepared:
    """What one call has to record, made before the clock starts: it is what a journal is given."""

    owner: Owner
    intent: CallIntent
    outcome: CallOutcome


async def prepared(store: PostgresStore, held: Sequence[Owner], number: int) -> list[Prepared]:
    """So many calls, the runs in turns."""
    ids, tenant_budgets = SystemIds(), {}
    for owner in held:
        tenant_budgets[owner.tenant_id] = await store.ledger.tenant_budget(owner.tenant_id)
    made = []
    for n in range(number):
        owner = held[n % len(held)]
        intent = intent_of(owner, (BudgetId(owner.run_id), tenant_budgets[owner.tenant_id]), ids, "task")
        outcome = CallOutcome(
            call_id=intent.call_id, status=OutcomeStatus.RETURNED, usage=ONE, response=RESPONSE, latency_ms=1
        )
        made.append(Prepared(owner, intent, outcome))
    return made


def journalled(store: PostgresStore, calls: Iterable[Prepared]) -> Call:
    """The next of `calls`, whoever asks."""

    async def call(number: int) -> None:
        each = next(coming)
        await store.journal.open(each.owner, each.intent, event=INTENDED)
        await store.journal.close(each.owner, each.outcome, event=RETURNED)

    coming = iter(calls)
    return call


@asynccontextmanager
async def lone_journals(database: Database, number: int) -> AsyncIterator[Sequence[PostgresJournal]]:
    """Journals on the same database, each with a writer and a connection of its own."""
    each = [copy(database) for _ in range(number)]
    for database in each:
        database.writer = database._new_writer()  # noqa: SLF001
    try:
        yield [PostgresJournal(database) for database in each]
    finally:
        await asyncio.gather(*(database.writer.close() for database in each))


def alone(journals: Iterable[PostgresJournal], calls: Iterable[Prepared]) -> Call:
    """The same records in the same statements, autocommitted: a journal has one call at a time."""
    free = asyncio.LifoQueue[PostgresJournal]()
    for journal in journals:
        free.put_nowait(journal)

    async def call(number: int) -> None:
        each, journal = next(coming), await free.get()
        await journal.open(each.owner, each.intent, event=INTENDED)
        await journal.close(each.owner, each.outcome, event=RETURNED)
        free.put_nowait(journal)

    coming = iter(calls)
    return call


def two_statements(pool: AsyncConnectionPool[Any]) -> Call:
    request, response = json.dumps(REQUEST).encode(), json.dumps(RESPONSE).encode()

    async def call(number: int) -> None:
        key = str(uuid4())
        async with pool.connection() as conn:
            await conn.execute(
                "insert into plain_calls (key, run, request) values (%s, %s, %s)", [key, number, request]
            )
        async with pool.connection() as conn:
            await conn.execute("update plain_calls set response = %s where key = %s", [response, key])

    return call


async def bench(rounds: int, loads: Sequence[int] = (1, 8, 32, 128)) -> str:
    found = {load: Rounds() for load in loads}
    async with durable_server() as server, Database(server.app_url, sizes=PoolSizes(app=20)) as database:
        store = PostgresStore(database, SystemIds())
        held = await owners(store, max(loads))
        settings = {"autocommit": True, "prepare_threshold": 0}
        async with (
            lone_journals(database, 20) as journals,
            AsyncConnectionPool(our_database(server), min_size=20, max_size=20, kwargs=settings, open=False) as pool,
        ):
            async with pool.connection() as conn:
                await conn.execute(
                    "create table plain_calls (key uuid primary key, run int, request bytea, response bytea)"
                )
            for load in loads:
                calls = max(200, min(3000, 60 * load))
                ready, others = [await prepared(store, held[:load], calls * (rounds + 1)) for _ in range(2)]
                alternatives = {
                    OURS: journalled(store, ready),
                    ALONE: alone(journals, others),
                    ROWS: two_statements(pool),
                }
                cells = {name: partial(measure, call, calls=calls, at_once=load) for name, call in alternatives.items()}
                await Rounds().play(cells, 1)  # to warm up
                await found[load].play(cells, rounds)
        replayed = await _replayed(store, held[0])
    rows = [_row(load, name, found[load]) for load in loads for name in (OURS, ALONE, ROWS)]
    header = ["calls at once", "how", "calls/s", "to each alone", "to bare rows", "p50, ms", "p99, ms"]
    return f"{table(header, rows)}\n\n{replayed}"


async def _replayed(store: PostgresStore, owner: Owner) -> str:
    """How long a task with 1,000 recorded calls takes to know them all, by one read."""
    ids, task_id = SystemIds(), "replayed"
    budgets = (BudgetId(owner.run_id),)
    intents = [intent_of(owner, budgets, ids, task_id) for _ in range(1000)]

    async def record(intent: CallIntent) -> None:
        await store.journal.open(owner, intent, event=INTENDED)
        outcome = CallOutcome(call_id=intent.call_id, status=OutcomeStatus.RETURNED, usage=ONE, response=RESPONSE)
        await store.journal.close(owner, outcome, event=RETURNED)

    await asyncio.gather(*map(record, intents))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        known = await store.journal.of_task(owner.tenant_id, owner.thread_id, task_id)
        seconds.append(time.perf_counter() - began)
    assert len(known) == len(intents)
    each = quantile(seconds, 0.5) / len(intents) * 1_000_000
    return f"A task that runs again reads its calls once: {each:.0f} µs for each of 1,000 recorded ones."


def _row(load: int, name: str, found: Rounds) -> list[str]:
    return [
        str(load),
        name,
        f"{found.per_second(name):.0f}",
        _ratio(found, name, ALONE),
        _ratio(found, name, ROWS),
        f"{found.p50_ms(name):.1f}",
        f"{found.p99_ms(name):.1f}",
    ]


def _ratio(found: Rounds, name: str, to: str) -> str:
    low, high = found.range_of_ratio(name, to)
    return f"**{found.ratio(name, to):.2f}** ({low:.2f} to {high:.2f})"
