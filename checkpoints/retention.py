"""Pruning and holds, on Postgres.

Events are deleted by a function of the database, which asks the terms and the holds itself: the application's role may
not delete any. Checkpoints it may, but not those that are held: a trigger refuses. Contents are written by the
application, and taken by it. A hold waits for a prune that is under way, and a prune passes by what someone else has
locked.
"""

from collections.abc import Sequence
from typing import Any

from psycopg.errors import SerializationFailure
from psycopg.types.json import Jsonb

from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.events import write_events
from holdfast.checkpoints.pruning import delete_threads, keep_latest_unless_delta
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.runs import load_runs
from holdfast.checkpoints.sealed_documents import RUNS, with_json
from holdfast.contracts.canonical import plain
from holdfast.contracts.errors import Conflict, NotFound, RuntimeErrorRecord, SealBroken, StoreUnavailable
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId, uuid_text
from holdfast.contracts.retention import LegalHold, Pruned
from holdfast.contracts.runs import Run
from holdfast.contracts.tenancy import Principal
from holdfast.policies.retention import without_words

_SQL = load_queries(__name__, "retention.sql")
_THREADS_AT_ONCE = 100
_RUNS_AT_ONCE = 100


class PostgresRetention:
    """`contracts.ports.Retention` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def hold(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        run_id = _known(principal, tenant_id, run_id)
        async with self._database.tenant(tenant_id) as conn:
            row = await _lock(conn, tenant_id, run_id)
            if (held := row["legal_hold"]) is not None:
                raise Conflict(f"run {run_id} is held already, by {held['by']!r}: {held['reason']}")
            hold = LegalHold(by=principal.user_id, reason=reason, since=row["now"])
            await _set_hold(conn, tenant_id, run_id, hold)
            await _note(conn, tenant_id, run_id, row["attempt"], EventKind.RUN_HELD, by=hold.by, reason=reason)
            [run] = await load_runs(conn, [run_id])
            return run

    async def lift(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        run_id = _known(principal, tenant_id, run_id)
        async with self._database.tenant(tenant_id) as conn:
            row = await _lock(conn, tenant_id, run_id)
            if row["legal_hold"] is None:
                raise Conflict(f"run {run_id} is not held, so there is no hold to lift")
            await _set_hold(conn, tenant_id, run_id, None)
            facts = {"by": principal.user_id, "reason": reason}
            await _note(conn, tenant_id, run_id, row["attempt"], EventKind.RUN_HOLD_LIFTED, **facts)
            [run] = await load_runs(conn, [run_id])
            return run

    async def prune(self, tenant_id: TenantId, *, at_most: int = 10_000) -> Sequence[Pruned]:
        pruned = list(await self._prune_events(tenant_id, at_most))
        for thread_id, kept in await self._threads(tenant_id):
            done = await self._prune_thread_if_quiet(tenant_id, thread_id, kept)
            pruned += [done] if done is not None else []
        return [*pruned, *await self._prune_contents(tenant_id, at_most)]

    async def _prune_events(self, tenant_id: TenantId, at_most: int) -> Sequence[Pruned]:
        async with self._database.tenant(tenant_id) as conn:
            if not await _alone(conn, tenant_id):
                return ()
            found = await conn.execute(_SQL["prune_events"], {"tenant_id": tenant_id, "at_most": at_most})
            return [Pruned(run_id=RunId(row["run_id"]), events=row["events"]) for row in await found.fetchall()]

    async def _threads(self, tenant_id: TenantId) -> Sequence[tuple[str, str]]:
        async with self._database.tenant(tenant_id) as conn:
            return await _due(conn, tenant_id)

    async def _prune_thread_if_quiet(self, tenant_id: TenantId, thread_id: str, kept: str) -> Pruned | None:
        try:
            return await self._prune_thread(tenant_id, thread_id, kept)
        except StoreUnavailable as error:
            if error.facts.get("sqlstate") == SerializationFailure.sqlstate:
                return None  # a run of it was changed meanwhile; its turn comes again
            raise

    async def _prune_thread(self, tenant_id: TenantId, thread_id: str, kept: str) -> Pruned | None:
        thread = {"tenant_id": tenant_id, "thread_id": thread_id}
        # All but the latest go in one snapshot, which does not see what a new run saves meanwhile. When all go, new
        # runs are kept out.
        async with self._database.tenant(tenant_id, snapshot=kept == "latest") as conn, conn.cursor() as cursor:
            if not await _alone(conn, tenant_id):
                return None
            if kept == "none" and await (await conn.execute(_SQL["lock_thread"], thread)).fetchone() is None:
                return None
            runs = await (await conn.execute(_SQL["lock_runs_of_thread"], thread)).fetchall()
            if (thread_id, kept) not in await _due(conn, tenant_id, thread_id):
                return None
            before = await _count(conn, thread_id)
            if kept == "none":
                await delete_threads(cursor, [thread_id])
            else:
                await keep_latest_unless_delta(cursor, thread_id)
            gone = before - await _count(conn, thread_id)
            await conn.execute(_SQL["mark_thread"], thread | {"kept": kept})
            last = runs[0]
            if gone:
                facts = {"checkpoints": gone, "kept": kept}
                await _note(conn, tenant_id, last["run_id"], last["attempt"], EventKind.RUN_PRUNED, **facts)
            return Pruned(run_id=last["run_id"], checkpoints=gone)

    async def _prune_contents(self, tenant_id: TenantId, at_most: int) -> Sequence[Pruned]:
        async with self._database.tenant(tenant_id) as conn:
            due = await _with_contents(conn, tenant_id)
        pruned: list[Pruned] = []
        for run_id in due:
            if sum(one.contents for one in pruned) >= at_most:
                break
            done = await self._prune_run(tenant_id, run_id)
            pruned += [done] if done is not None else []
        return pruned

    async def _prune_run(self, tenant_id: TenantId, run_id: RunId) -> Pruned | None:
        run = {"tenant_id": tenant_id, "run_id": run_id}
        async with self._database.tenant(tenant_id) as conn:
            if not await _alone(conn, tenant_id):
                return None
            row = await (await conn.execute(_SQL["lock_run_with_contents"], run)).fetchone()
            # Asked again now that nobody can hold the run or go on for it any more: the next statement sees who did.
            if row is None or (days := (await _with_contents(conn, tenant_id, run_id)).get(run_id)) is None:
                return None
            try:
                cause = _facts_of_cause(conn, tenant_id, run_id, row)
            except SealBroken:
                return None  # it was tampered with: that is evidence, and stays
            thread = run | {"thread_id": row["thread_id"]}
            gone = 1 + (await conn.execute(_SQL["prune_calls"], thread)).rowcount
            gone += (await conn.execute(_SQL["prune_approvals"], run)).rowcount
            await conn.execute(_SQL["prune_run"], run | cause)
            await _note(conn, tenant_id, run_id, row["attempt"], EventKind.RUN_PRUNED, contents=gone, days=days)
            return Pruned(run_id=run_id, contents=gone)


async def _alone(conn: Connection, tenant_id: TenantId) -> bool:
    row = await (await conn.execute(_SQL["be_the_only_one"], {"tenant_id": tenant_id})).fetchone()
    return row is not None and bool(row["ours"])


async def _due(conn: Connection, tenant_id: TenantId, thread_id: str | None = None) -> Sequence[tuple[str, str]]:
    wanted = {"tenant_id": tenant_id, "thread_id": thread_id, "limit": _THREADS_AT_ONCE}
    rows = await (await conn.execute(_SQL["threads_to_prune"], wanted)).fetchall()
    return list(dict.fromkeys((row["thread_id"], row["kept"]) for row in rows))


async def _with_contents(conn: Connection, tenant_id: TenantId, run_id: RunId | None = None) -> dict[RunId, int]:
    """The runs whose contents are due, the longest overdue first, and after how many days they are."""
    wanted = {"tenant_id": tenant_id, "run_id": run_id, "limit": _RUNS_AT_ONCE}
    rows = await (await conn.execute(_SQL["runs_with_contents_to_prune"], wanted)).fetchall()
    return {RunId(row["run_id"]): row["days"] for row in rows}


def _facts_of_cause(conn: Connection, tenant_id: TenantId, run_id: RunId, row: dict[str, Any]) -> dict[str, Any]:
    """What stays of the cause in a run's row, as it is stored."""
    known = conn.documents.opened(RUNS, row)["cause"]
    facts = without_words(None if known is None else RuntimeErrorRecord.model_validate(known))
    return with_json(RUNS, conn.documents.sealed(RUNS, tenant_id, run_id, {"cause": plain(facts)}))


async def _count(conn: Connection, thread_id: str) -> int:
    row = await (await conn.execute(_SQL["count_checkpoints"], {"thread_id": thread_id})).fetchone()
    return 0 if row is None else int(row["checkpoints"])


async def _lock(conn: Connection, tenant_id: TenantId, run_id: RunId) -> dict[str, Any]:
    row = await (await conn.execute(_SQL["hold_of_run"], {"tenant_id": tenant_id, "run_id": run_id})).fetchone()
    if row is None:
        raise _no_run(tenant_id, run_id)
    return row


async def _set_hold(conn: Connection, tenant_id: TenantId, run_id: RunId, hold: LegalHold | None) -> None:
    document = None if hold is None else Jsonb(hold.model_dump(mode="json"))
    await conn.execute(_SQL["set_hold"], {"tenant_id": tenant_id, "run_id": run_id, "hold": document})


async def _note(
    conn: Connection, tenant_id: TenantId, run_id: RunId, attempt: int, kind: EventKind, **facts: Any
) -> None:
    draft = EventDraft(kind=kind, payload=facts)
    await write_events(conn, tenant_id=tenant_id, run_id=run_id, attempt=attempt, drafts=[draft])


def _known(principal: Principal, tenant_id: TenantId, run_id: RunId) -> RunId:
    if not principal.may_act_for(tenant_id):
        raise _no_run(tenant_id, run_id)
    return RunId(uuid_text(run_id, what="run"))


def _no_run(tenant_id: TenantId, run_id: RunId) -> NotFound:
    return NotFound(f"tenant {tenant_id!r} has no run {run_id}", run_id=run_id)
