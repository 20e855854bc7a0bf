"""Ways to take one defence away, in a worker's process alone, so that the simulation can show that it would notice.

Nothing of this is a switch in the product: each replaces a method or the text of a query in a process that is forked
for one schedule.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from holdfast.checkpoints import fence, journal, leases, moves, writer
from holdfast.checkpoints.journal import PostgresJournal
from holdfast.contracts.calls import CallIntent, CallRecord, Fresh, Opened, Recorded, Unknown
from holdfast.contracts.events import EventKind
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.scope import Scope
from holdfast.gateway import tools
from holdfast.gateway.reconciling import Reconciler
from holdfast.policies.replay import counts_as_no_outcome

MUTANTS: dict[str, Callable[[], None]] = {}


def apply(name: str | None) -> None:
    """Take the defence of that name away from this process."""
    if name is not None:
        MUTANTS[name]()


def mutant(take_away: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[take_away.__name__] = take_away
    return take_away


def replaced(queries: Any, name: str, old: str, new: str) -> None:
    text = queries[name]
    assert text.count(old) == 1, f"{name} does not have {old!r} once; look at it again"
    queries[name] = text.replace(old, new)


@mutant
def no_fence() -> None:
    """Whatever is written is written whoever holds the run: what flushes carry, and what has a transaction alone."""
    the_epochs_there_are = (
        "(select array_agg(l.epoch order by asked.n) from unnest(%(runs)s::uuid[]) with ordinality as asked(run_id, n) "
        "join leases l using (run_id))"
    )
    replaced(writer._SQL, "flush", "%(epochs)s", the_epochs_there_are)
    for name in ("hold_lease", "hold_lease_alone"):
        replaced(fence._SQL, name, " and epoch = %(epoch)s", "")


@mutant
def same_epoch() -> None:
    """A claim leaves the epoch as it was."""
    replaced(leases._SQL, "claim_runs", "epoch = r.epoch + 1", "epoch = greatest(r.epoch, 1)")


@mutant
def no_memory_of_flushes() -> None:
    """A flush that is sent again is taken for a new one."""
    names_nobody_has_seen = (
        "(select array_agg(gen_random_uuid()::text || name order by n) "
        "from unnest(%(flushes)s::text[]) with ordinality as given(name, n))"
    )
    replaced(writer._SQL, "flush", "%(flushes)s", names_nobody_has_seen)


@mutant
def always_ours() -> None:
    """Nobody looks at the end of the lease before a send."""
    Scope.require_ours = lambda self: None  # type: ignore[method-assign]


@mutant
def no_intent() -> None:
    """The intent is written with the outcome, after the call."""
    waiting: dict[str, Any] = {}
    really_open, really_close, really_resend = PostgresJournal.open, PostgresJournal.close, PostgresJournal.resend

    async def open_(self: PostgresJournal, owner: Any, intent: CallIntent, *, event: Any) -> Opened:
        found = await self.find(owner.tenant_id, owner.thread_id, intent.identity.key)
        if found is not None and not counts_as_no_outcome(found, for_run=owner.run_id):
            return Unknown(found) if found.status in {"open", "unknown"} else Recorded(found)
        if found is not None:
            return await really_open(self, owner, intent, event=event)
        waiting[intent.call_id] = (owner, intent, event)
        return Fresh(_record_of(owner, intent))

    async def caught_up(self: PostgresJournal, call_id: str) -> None:
        if call_id in waiting:
            owner, intent, event = waiting.pop(call_id)
            await really_open(self, owner, intent, event=event)

    async def close(self: PostgresJournal, owner: Any, outcome: Any, *, event: Any) -> CallRecord:
        await caught_up(self, outcome.call_id)
        return await really_close(self, owner, outcome, event=event)

    async def resend(self: PostgresJournal, owner: Any, call_id: Any, **rest: Any) -> CallRecord:
        await caught_up(self, call_id)
        return await really_resend(self, owner, call_id, **rest)

    PostgresJournal.open, PostgresJournal.close = open_, close  # type: ignore[method-assign]
    PostgresJournal.resend = resend  # type: ignore[method-assign]


def _record_of(owner: Any, intent: CallIntent) -> CallRecord:
    facts = {name: getattr(intent, name) for name in ("identity", "agent_name", "request", "effect", "idempotent")}
    known = dict.fromkeys(("response", "error_type", "error_message", "latency_ms", "opened_at", "closed_at"))
    return CallRecord(
        call_id=intent.call_id,
        tenant_id=owner.tenant_id,
        run_id=owner.run_id,
        last_run_id=owner.run_id,
        status="open",
        reservation=intent.reservation,
        usage=intent.reservation,
        error_facts={},
        sends=1,
        model=intent.model,
        prompt_version=intent.prompt_version,
        policy_version=intent.policy_version,
        **facts,
        **known,  # type: ignore[arg-type]
    )


@mutant
def resend_instead_of_reconcile() -> None:
    """A call in doubt is simply sent again."""

    async def settled(self: Reconciler, sending: Any, record: CallRecord, approval: Any) -> Any:
        return await self._sent_again(sending, record, EventKind.TOOL_RETRIED, reason="the answer was lost")

    Reconciler.settled = settled  # type: ignore[method-assign]


@mutant
def check_then_reserve() -> None:
    """Whether a budget has room is looked up for each call by itself, beside others that take from it."""
    really_add = moves._Sums.add

    def add(self: Any, move: moves.Move) -> None:
        others = list(self.asked)
        really_add(self, move)
        if move.used is None:
            self.asked = [None if None in pair else max(pair) for pair in zip(others, move.reserved, strict=True)]

    moves._Sums.add = add  # type: ignore[method-assign]


@mutant
def settle_in_a_second_commit() -> None:
    """The outcome is committed first, and the money after it."""
    really_close, really_settle = PostgresJournal.close, journal.settle
    put_off: ContextVar[list[Any] | None] = ContextVar("put_off", default=None)

    async def later(conn: Any, *given: Any, **amounts: Any) -> None:
        if (waiting := put_off.get()) is None:
            await really_settle(conn, *given, **amounts)
        else:
            waiting.append((given, amounts))

    async def close(self: PostgresJournal, owner: Any, outcome: Any, *, event: Any) -> CallRecord:
        self._open.pop(outcome.call_id, None)  # by a transaction, which can be taken apart
        token = put_off.set(waiting := [])
        try:
            record = await really_close(self, owner, outcome, event=event)
        finally:
            put_off.reset(token)
        await reach(Mark.OUTCOME_RECORDED)
        for given, amounts in waiting:
            async with self._database.tenant(owner.tenant_id) as conn:
                await really_settle(conn, *given, **amounts)
        return record

    journal.settle, PostgresJournal.close = later, close  # type: ignore[method-assign]


@mutant
def grant_not_used_up() -> None:
    """An approval lets any number of calls through."""
    replaced(journal._SQL, "use_grant", "set used_at = clock_timestamp()", "set used_at = used_at")


@mutant
def no_answers_from_the_journal() -> None:
    """A tool call that has an outcome is made again when its node runs again."""
    really_open = PostgresJournal.open

    async def open_(self: PostgresJournal, owner: Any, intent: CallIntent, *, event: Any) -> Opened:
        opened = await really_open(self, owner, intent, event=event)
        return Fresh(opened.record) if isinstance(opened, Recorded) and intent.identity.kind == "tool" else opened

    async def nothing(journal: Any, scope: Any, identity: Any) -> None:
        return None

    PostgresJournal.open = open_  # type: ignore[method-assign]
    tools.earlier = nothing
