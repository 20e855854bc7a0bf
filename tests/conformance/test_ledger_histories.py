"""Whatever happens in whatever order, the ledger adds up: the same histories against each store."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from decimal import Decimal

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scenes import FAILED, INTENDED, LOST, RETRIED, RETURNED, Scene, event, intent, new_id, outcome
from stores import memory_store, postgres_store

from holdfast.checkpoints.database import Database
from holdfast.contracts.calls import CallIntent, Fresh, OutcomeStatus, Recorded
from holdfast.contracts.errors import BudgetExceeded, ErrorType
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits, Usage
from holdfast.policies.refusal import refusal

LIMITS = {
    "tenant": Limits(max_model_calls=7, max_tool_calls=None, max_tokens=60, max_cost_usd=Decimal("0.08")),
    "run": Limits(max_model_calls=5, max_tool_calls=3, max_tokens=None, max_cost_usd=Decimal("0.06")),
    "history": Limits(max_model_calls=None, max_tool_calls=2, max_tokens=25, max_cost_usd=None),
    "policy": Limits(max_model_calls=3, max_tool_calls=None, max_tokens=25, max_cost_usd=Decimal("0.03")),
}
PATHS = (("run", "tenant"), ("history", "run", "tenant"), ("policy", "run", "tenant"))
NOTHING = Usage()
usages = st.builds(
    Usage,
    model_calls=st.integers(0, 1),
    tool_calls=st.integers(0, 1),
    tokens_used=st.integers(0, 12),
    cost_usd=st.integers(0, 20_000).map(lambda micro: Decimal(micro) / 1_000_000),
)


@dataclass
class Expected:
    """What a budget should hold."""

    spent: Usage = NOTHING
    reserved: Usage = NOTHING


@dataclass
class Sent:
    """A call without an outcome."""

    intent: CallIntent
    path: tuple[str, ...]
    reserved: Usage


def less(whole: Usage, part: Usage) -> Usage:
    return Usage(**{name: value - getattr(part, name) for name, value in whole})


class Histories(RuleBasedStateMachine):
    """One run with two specialists, that reserves, settles, fails, loses answers, sends again and changes hands."""

    def __init__(self, opened_store) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.closing = AsyncExitStack()
        self.scene = Scene(self.do(self.closing.enter_async_context(opened_store())))
        self.expected = {name: Expected() for name in LIMITS}
        self.sent: list[Sent] = []
        self.failed: list[Sent] = []
        self.calls = 0

    def do(self, awaitable):
        async def awaited():
            return await awaitable

        return self.runner.run(awaited())

    def teardown(self) -> None:
        self.do(self.closing.aclose())
        self.runner.close()

    @initialize()
    def begin(self) -> None:
        self.do(self._begin())

    async def _begin(self) -> None:
        scene = self.scene
        self.owner = await scene.running(limits=LIMITS["run"], ttl=0)
        await scene.tenant(budget=LIMITS["tenant"])
        self.ids = {"run": self.owner.run_id, "tenant": await scene.store.ledger.tenant_budget("acme")}
        for name in ("history", "policy"):
            self.ids[name] = await scene.store.ledger.open_share(
                self.owner,
                parent=self.owner.run_id,
                share_key=name,
                limits=LIMITS[name],
                event=event(EventKind.BUDGET_OPENED),
            )

    def has_room(self, path, wanted: Usage) -> bool:
        return not any(
            refusal(
                name,
                name,
                limits=LIMITS[name],
                spent=self.expected[name].spent,
                reserved=self.expected[name].reserved,
                requested=wanted,
            )
            for name in path
        )

    def reserve(self, path, wanted: Usage) -> None:
        for name in path:
            self.expected[name].reserved += wanted

    def settle(self, sent: Sent, used: Usage) -> None:
        for name in sent.path:
            budget = self.expected[name]
            budget.reserved, budget.spent = less(budget.reserved, sent.reserved), budget.spent + used

    def open_call(self, wanted: CallIntent, path) -> None:
        room = self.has_room(path, wanted.reservation)
        try:
            opened = self.do(self.scene.store.journal.open(self.owner, wanted, event=INTENDED))
        except BudgetExceeded:
            assert not room
            return
        assert room
        assert isinstance(opened, Fresh)
        self.reserve(path, wanted.reservation)
        self.sent.append(Sent(replace(wanted, call_id=opened.record.call_id), path, wanted.reservation))
        for name in path:
            self.within_limits(name)

    def within_limits(self, name: str) -> None:
        state = self.do(self.scene.budget(self.owner, self.ids[name]))
        total = state.spent + state.reserved
        for limit, used in (("max_model_calls", "model_calls"), ("max_tool_calls", "tool_calls")):
            assert getattr(state.limits, limit) is None or getattr(total, used) <= getattr(state.limits, limit)
        assert state.limits.max_tokens is None or total.tokens_used <= state.limits.max_tokens
        assert state.limits.max_cost_usd is None or total.cost_usd <= state.limits.max_cost_usd

    @rule(path=st.sampled_from(PATHS), reservation=usages)
    def ask(self, path, reservation) -> None:
        self.calls += 1
        budgets = tuple(self.ids[name] for name in path)
        wanted = intent(self.owner, occurrence=self.calls, reservation=reservation, budgets=budgets)
        self.open_call(wanted, path)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), used=usages, status=st.sampled_from([OutcomeStatus.RETURNED, OutcomeStatus.FAILED]))
    def end(self, data, used, status) -> None:
        sent = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        failed = status is OutcomeStatus.FAILED
        result = outcome(sent.intent.call_id, status, usage=used, error_type=ErrorType.RATE_LIMITED if failed else None)
        self.do(self.scene.store.journal.close(self.owner, result, event=FAILED if failed else RETURNED))
        self.settle(sent, used)
        if failed:
            self.failed.append(sent)

    @precondition(lambda self: self.failed)
    @rule(data=st.data())
    def try_a_failed_one_again(self, data) -> None:
        failed = self.failed[data.draw(st.integers(0, len(self.failed) - 1))]
        before = len(self.sent)
        self.open_call(failed.intent, failed.path)
        if len(self.sent) > before:
            self.failed.remove(failed)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def lose_the_answer(self, data) -> None:
        sent = data.draw(st.sampled_from(self.sent))
        lost = outcome(sent.intent.call_id, OutcomeStatus.UNKNOWN)
        self.do(self.scene.store.journal.close(self.owner, lost, event=LOST))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), reservation=usages)
    def send_again(self, data, reservation) -> None:
        sent = data.draw(st.sampled_from(self.sent))
        before = {name: replace(budget) for name, budget in self.expected.items()}
        self.settle(sent, sent.reserved)
        room = self.has_room(sent.path, reservation)
        try:
            self.do(
                self.scene.store.journal.resend(self.owner, sent.intent.call_id, reservation=reservation, event=RETRIED)
            )
        except BudgetExceeded:
            assert not room
            self.expected = before
            return
        assert room
        self.reserve(sent.path, reservation)
        sent.reserved = reservation

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def ask_for_an_open_one(self, data) -> None:
        sent = data.draw(st.sampled_from(self.sent))
        again = replace(sent.intent, call_id=new_id())
        opened = self.do(self.scene.store.journal.open(self.owner, again, event=INTENDED))
        assert not isinstance(opened, Fresh | Recorded)

    @rule()
    def another_worker_takes_over(self) -> None:
        [claim] = self.do(self.scene.claim("worker-2", ttl=0))
        self.owner = claim.owner

    @invariant()
    def the_ledger_holds_what_it_should(self) -> None:
        for name, expected in self.expected.items():
            if hasattr(self, "ids"):
                state = self.do(self.scene.budget(self.owner, self.ids[name]))
                assert (state.spent, state.reserved) == (expected.spent, expected.reserved), name


def test_the_ledger_in_memory_adds_up():
    class Opened:
        async def __aenter__(self):
            return memory_store()

        async def __aexit__(self, *exc):
            pass

    run_state_machine_as_test(lambda: Histories(Opened), settings=settings(deadline=None, max_examples=60))


def test_the_ledger_in_postgres_adds_up(make_database_url):
    class Opened:
        async def __aenter__(self):
            self.database = Database(make_database_url())
            await self.database.open()
            return postgres_store(self.database)

        async def __aexit__(self, *exc):
            await self.database.close()

    run_state_machine_as_test(
        lambda: Histories(Opened),
        settings=settings(
            deadline=None, max_examples=5, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
