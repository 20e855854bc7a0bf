"""The model gateway over the memory store: real journal, ledger, events and policies; the model is a script."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.resources import files
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from lapsing import lapsing_at_the_door

from holdfast.contracts.calls import CallRecord
from holdfast.contracts.deadline import Clock, Deadline
from holdfast.contracts.errors import (
    AuthError,
    BudgetExceeded,
    ConfigurationError,
    DeadlineExceeded,
    ErrorType,
    InvalidModelOutput,
    InvalidRequest,
    LeaseLost,
    NotFound,
    NotGoverned,
    PolicyDenied,
    RateLimited,
    StoreUnavailable,
    TimedOut,
    TransientDependency,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.models import ModelRequest, ProviderReply, ToolCallRequest
from holdfast.contracts.scope import Scope
from holdfast.contracts.verdicts import Policy
from holdfast.gateway.models import ModelGateway
from holdfast.gateway.prices import Prices
from holdfast.gateway.providers import Providers
from holdfast.gateway.scripted import ScriptedReply
from holdfast.gateway.sending import Sender, SendTerms
from holdfast.policies.permissions import CedarPolicy
from holdfast.policies.retry import RetryTerms
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.clock import FixedDice, VirtualClock
from holdfast.testing.memory import MemoryStore
from holdfast.testing.scopes import rerun, scope_for
from holdfast.testing.scripted import scripted

QUICK = RetryTerms(attempts=3, base_seconds=0.002, cap_seconds=0.01)
DEFAULT_RULES = files("holdfast.policies").joinpath("default.cedar").read_text()
SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}


class LoopClock:
    """The running loop's own time, so that what a deadline leaves and what a timeout takes are the same."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return self.monotonic()


@dataclass
class Door:
    """A gateway, the store behind it, and the scope in front of it."""

    gateway: ModelGateway
    store: MemoryStore
    scope: Scope

    def request(self, model: str = "default", text: str = "how much?", **changes: Any) -> ModelRequest:
        standard: dict[str, Any] = {
            "run_id": self.scope.run.run_id,
            "agent_name": "drafter",
            "model_policy": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 100,
            "deadline": self.scope.deadline,
        }
        return ModelRequest(**{**standard, **changes})

    async def calls(self) -> Sequence[CallRecord]:
        return await self.store.journal.of_run(self.scope.owner.tenant_id, self.scope.owner.run_id)

    async def budget(self) -> BudgetState:
        return await self.store.ledger.state(self.scope.owner.tenant_id, self.scope.budgets[0])

    async def kinds(self) -> list[EventKind]:
        events = await self.store.events.read(self.scope.owner.tenant_id, self.scope.owner.run_id)
        return [event.kind for event in events if event.kind.startswith(("model.", "call.", "budget.r"))]

    async def facts(self, kind: EventKind) -> dict[str, Any]:
        events = await self.store.events.read(self.scope.owner.tenant_id, self.scope.owner.run_id)
        return dict(next(event.payload for event in events if event.kind is kind))


async def door(
    *,
    clock: Clock | None = None,
    limits: Limits | None = None,
    prices: Prices | None = None,
    policy: Policy | None = None,
    providers: Providers | None = None,
    default_model: str | None = None,
    sending: SendTerms | None = None,
    still_ours: Callable[[], bool] = lambda: True,
    journal: Callable[[Any], Any] = lambda journal: journal,
) -> Door:
    clock = clock or VirtualClock()
    store = MemoryStore(clock=clock)
    gateway = ModelGateway(
        journal=journal(store.journal),
        ledger=store.ledger,
        events=store.events,
        policy=policy or CedarPolicy.load(),
        providers=providers or Providers({}),
        prices=prices or Prices(),
        clock=clock,
        ids=SystemIds(),
        sender=Sender(dice=FixedDice(), terms=sending or SendTerms(retries=QUICK)),
    )
    scope = await scope_for(
        store, clock=clock, models=gateway, limits=limits, default_model=default_model, still_ours=still_ours
    )
    return Door(gateway, store, scope)


@dataclass
class Fake:
    """A provider of the test's own: outside the house, so nothing of ours is replaced by it."""

    answer: Callable[[ModelRequest], Any]
    provider: str = "openai"
    model: str = "gpt-4o-mini"
    sent: list[ModelRequest] = field(default_factory=list)

    async def send(self, request: ModelRequest, *, timeout_seconds: float) -> ProviderReply:
        self.sent.append(request)
        answer = self.answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer


class UnhurriedJournal:
    """A journal that takes its time to close a call, as a database may."""

    def __init__(self, journal: Any) -> None:
        self._journal = journal
        self.closing, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def close(self, *args: Any, **named: Any) -> CallRecord:
        self.closing.set()
        await self.go_on.wait()
        return await self._journal.close(*args, **named)


def raising(*errors: BaseException, then: ProviderReply | None = None) -> Callable[[ModelRequest], ProviderReply]:
    left = list(errors)

    def answer(request: ModelRequest) -> ProviderReply:
        if left:
            raise left.pop(0)
        assert then is not None
        return then

    return answer


async def killed_while_sent(there: Door) -> None:
    """Make the request, and end the process while it is sent, as far as the code above it is concerned."""

    def ending(request: ModelRequest) -> ProviderReply:
        raise GeneratorExit

    with pytest.raises(GeneratorExit):
        await there.gateway.call(there.request(), scope=there.scope, provider=Fake(ending))


async def cancelled_while_sent(there: Door) -> None:
    """Make the request, and cancel it after it was sent and before it is answered."""
    started = asyncio.Event()

    async def stuck(request: ModelRequest) -> ProviderReply:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    call = asyncio.create_task(there.gateway.call(there.request(), scope=there.scope, provider=Fake(stuck)))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


GOOD = ProviderReply(content="12 dollars", input_tokens=20, output_tokens=4)


# --- an answer, its record and its price


async def test_a_call_is_answered_journalled_paid_and_told():
    there = await door()
    fake = Fake(lambda request: GOOD)

    response = await there.gateway.call(there.request(prompt_version="p-3"), scope=there.scope, provider=fake)

    assert (response.content, response.provider, response.model) == ("12 dollars", "openai", "gpt-4o-mini")
    assert response.cost_usd == Decimal("0.000006")  # 20 in, 4 out, rounded up to whole micro-dollars
    assert not response.replayed
    [record] = await there.calls()
    assert (record.status, record.model, record.prompt_version) == ("returned", "openai:gpt-4o-mini", "p-3")
    assert response.raw_response_ref == f"call:{record.call_id}"
    assert "run_id" not in record.request
    state = await there.budget()
    assert state.spent == Usage(model_calls=1, tokens_used=24, cost_usd=Decimal("0.000006"))
    assert state.reserved == Usage()
    assert await there.kinds() == [EventKind.MODEL_INTENDED, EventKind.MODEL_RETURNED]


async def test_events_carry_facts_and_nothing_of_what_was_said():
    there = await door()

    await there.gateway.call(there.request(text="my card is 4111"), scope=there.scope, provider=Fake(lambda _: GOOD))

    facts = await there.facts(EventKind.MODEL_RETURNED)
    assert facts["cost_usd"] == "0.000006"
    assert (facts["input_tokens"], facts["output_tokens"], facts["agent_name"]) == (20, 4, "drafter")
    told = str(
        [
            event.payload
            for event in await there.store.events.read(there.scope.owner.tenant_id, there.scope.owner.run_id)
        ]
    )
    assert "4111" not in told
    assert "dollars" not in told


async def test_the_budget_is_reserved_while_the_model_thinks():
    there = await door()
    seen: list[BudgetState] = []

    async def thinking(request: ModelRequest) -> ProviderReply:
        seen.append(await there.budget())
        return GOOD

    await there.gateway.call(there.request(), scope=there.scope, provider=Fake(thinking))

    [during] = seen
    assert during.reserved.model_calls == 1
    assert during.reserved.tokens_used >= 24
    assert during.reserved.cost_usd is not None
    assert during.reserved.cost_usd >= Decimal("0.000006")


@pytest.mark.parametrize("text", ["plain words", "退款多少钱" * 50, "🎟️🧾" * 50, '"\\\n' * 200])
async def test_the_reservation_covers_every_token_that_a_text_can_have(text):
    there = await door()
    fake = Fake(lambda request: GOOD)

    await there.gateway.call(there.request(text=text), scope=there.scope, provider=fake)

    [record] = await there.calls()
    assert record.reservation.tokens_used - 100 >= len(text.encode())


async def test_a_provider_that_counts_nothing_is_paid_as_reserved():
    there = await door()

    response = await there.gateway.call(
        there.request(), scope=there.scope, provider=Fake(lambda _: ProviderReply(content="12"))
    )

    [record] = await there.calls()
    assert record.usage == record.reservation
    assert response.input_tokens + response.output_tokens == record.reservation.tokens_used


async def test_the_price_is_that_of_the_model_that_answered():
    there = await door()
    reply = GOOD.model_copy(update={"model": "gpt-4o", "input_tokens": 1000, "output_tokens": 0})

    response = await there.gateway.call(there.request(), scope=there.scope, provider=Fake(lambda _: reply))

    assert response.model == "gpt-4o"
    assert response.cost_usd == Decimal("0.0025")


# --- the journal answers


async def test_a_node_that_runs_again_is_answered_from_the_journal():
    there = await door()
    fake = Fake(lambda request: GOOD)
    first = await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    again = await there.gateway.call(there.request(), scope=rerun(there.scope), provider=fake)

    assert len(fake.sent) == 1
    assert again == first.model_copy(update={"replayed": True})
    assert (await there.budget()).spent.model_calls == 1
    assert (await there.kinds())[-1] is EventKind.MODEL_REPLAYED


async def test_the_same_question_twice_in_one_node_is_two_calls():
    there = await door()
    with scripted("twice", "first", "second") as script:
        answers = [(await there.gateway.call(there.request(script.model), scope=there.scope)).content for _ in range(2)]

    assert answers == ["first", "second"]


async def test_another_run_id_and_deadline_make_no_other_call():
    there = await door()
    fake = Fake(lambda request: GOOD)
    await there.gateway.call(there.request(), scope=there.scope, provider=fake)
    sooner = there.request(deadline=there.scope.deadline.child(5))

    again = await there.gateway.call(sooner, scope=rerun(there.scope), provider=fake)

    assert again.replayed


async def test_a_recorded_refusal_of_the_provider_is_raised_again_and_nothing_is_sent():
    there = await door()
    fake = Fake(raising(AuthError("the key was refused")))
    with pytest.raises(AuthError):
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    with pytest.raises(AuthError, match="the key was refused"):
        await there.gateway.call(there.request(), scope=rerun(there.scope), provider=fake)

    assert len(fake.sent) == 1


async def test_a_call_that_is_cancelled_counts_as_spent_at_once_and_can_be_made_again():
    there = await door()
    await cancelled_while_sent(there)
    [record] = await there.calls()
    assert record.status == "failed"
    state = await there.budget()
    assert (state.spent, state.reserved) == (record.reservation, Usage())

    response = await there.gateway.call(there.request(), scope=rerun(there.scope), provider=Fake(lambda _: GOOD))

    assert not response.replayed
    [record] = await there.calls()
    assert (record.status, record.sends) == ("returned", 2)
    assert (await there.budget()).spent.tokens_used == record.reservation.tokens_used + 24


async def test_a_call_whose_answer_was_lost_is_sent_again_and_the_lost_one_counts_as_spent():
    there = await door()
    await killed_while_sent(there)
    [record] = await there.calls()
    assert record.status == "open"

    response = await there.gateway.call(there.request(), scope=rerun(there.scope), provider=Fake(lambda _: GOOD))

    assert not response.replayed
    [record] = await there.calls()
    assert (record.status, record.sends) == ("returned", 2)
    state = await there.budget()
    assert state.spent.tokens_used == record.reservation.tokens_used + 24
    assert state.reserved == Usage()
    assert await there.kinds() == [
        EventKind.MODEL_INTENDED,
        EventKind.CALL_RECONCILED,
        EventKind.MODEL_RETURNED,
    ]


async def test_an_answer_that_arrived_is_recorded_though_the_node_is_cancelled_at_that_moment():
    unhurried: list[UnhurriedJournal] = []
    there = await door(journal=lambda journal: unhurried.append(UnhurriedJournal(journal)) or unhurried[0])
    call = asyncio.create_task(there.gateway.call(there.request(), scope=there.scope, provider=Fake(lambda _: GOOD)))
    await unhurried[0].closing.wait()
    call.cancel()
    await asyncio.sleep(0)
    unhurried[0].go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call

    [record] = await there.calls()
    assert record.status == "returned"


# --- limits


async def test_a_call_that_the_budget_has_no_room_for_is_not_sent():
    there = await door(limits=Limits(max_model_calls=1))
    fake = Fake(lambda request: GOOD)
    await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    with pytest.raises(BudgetExceeded, match="max_model_calls"):
        await there.gateway.call(there.request(text="and now?"), scope=there.scope, provider=fake)

    assert len(fake.sent) == 1
    assert (await there.kinds())[-1] is EventKind.BUDGET_REFUSED
    assert (await there.facts(EventKind.BUDGET_REFUSED))["limit_name"] == "max_model_calls"


async def test_a_model_of_unknown_price_is_refused_under_a_cost_limit_and_called_without_one():
    fake = Fake(lambda request: GOOD, model="a-model-of-our-own")
    limited = await door()
    with pytest.raises(BudgetExceeded, match="unknown price"):
        await limited.gateway.call(limited.request(), scope=limited.scope, provider=fake)
    assert fake.sent == []

    free = await door(limits=Limits(max_cost_usd=None))
    response = await free.gateway.call(free.request(), scope=free.scope, provider=fake)

    assert response.cost_usd is None
    assert (await free.budget()).spent.cost_usd is None


async def test_a_call_that_used_more_than_it_reserved_is_recorded_in_full_and_stops_the_run():
    there = await door(limits=Limits(max_cost_usd=Decimal("0.25")))
    with scripted("dear", ScriptedReply(content="done", cost_usd=Decimal("0.30"))) as script:
        with pytest.raises(BudgetExceeded, match="max_cost_usd is passed"):
            await there.gateway.call(there.request(script.model), scope=there.scope)

        assert (await there.budget()).spent.cost_usd == Decimal("0.30")
        [record] = await there.calls()
        assert record.status == "returned"
        with pytest.raises(BudgetExceeded):  # and it does so when the node runs again
            await there.gateway.call(there.request(script.model), scope=rerun(there.scope))
        with pytest.raises(BudgetExceeded):  # and for every other call
            await there.gateway.call(there.request(script.model, "another"), scope=there.scope)
    assert script.sends == 1


async def test_parallel_calls_share_one_budget():
    there = await door(limits=Limits(max_model_calls=3))
    fake = Fake(lambda request: GOOD)

    ends = await asyncio.gather(
        *(there.gateway.call(there.request(text=f"question {n}"), scope=there.scope, provider=fake) for n in range(8)),
        return_exceptions=True,
    )

    assert sum(isinstance(end, BudgetExceeded) for end in ends) == 5
    assert len(fake.sent) == 3


# --- time


async def test_a_model_that_takes_too_long_is_given_up_and_paid_as_reserved():
    there = await door(clock=LoopClock(), sending=SendTerms(timeout_seconds=0.02, retries=QUICK))
    with scripted("slow", ScriptedReply(content="late", delay_seconds=60), "in time") as script:
        with pytest.raises(TimedOut, match=r"within 0\.02 s") as raised:
            await there.gateway.call(there.request(script.model), scope=there.scope)

        assert not isinstance(raised.value, DeadlineExceeded)
        [record] = await there.calls()
        assert (record.status, record.error_type) == ("failed", ErrorType.TIMEOUT)
        assert record.usage == record.reservation
        again = await there.gateway.call(there.request(script.model), scope=rerun(there.scope))
    assert again.content == "in time"


async def test_a_call_never_outlives_the_deadline_of_its_request():
    there = await door(clock=LoopClock())
    with scripted("late", ScriptedReply(content="late", delay_seconds=60)) as script:
        request = there.request(script.model, deadline=there.scope.deadline.child(0.02))
        with pytest.raises(DeadlineExceeded):
            await there.gateway.call(request, scope=there.scope)


async def test_a_request_cannot_outlive_its_node_by_naming_a_later_deadline():
    clock = VirtualClock()
    there = await door(clock=clock, limits=Limits(deadline_seconds=10))
    clock.advance(11)
    fake = Fake(lambda request: GOOD)

    later = there.request(deadline=Deadline.after_seconds(1000, clock=clock))
    with pytest.raises(DeadlineExceeded):
        await there.gateway.call(later, scope=there.scope, provider=fake)

    assert fake.sent == []
    assert await there.calls() == []
    assert await there.kinds() == [EventKind.MODEL_REFUSED]


# --- failures that pass, and those that do not


async def test_a_transient_failure_is_tried_again_under_the_same_record():
    there = await door()
    fake = Fake(raising(TransientDependency("try later"), RateLimited("slow down"), then=GOOD))

    response = await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    assert response.content == "12 dollars"
    [record] = await there.calls()
    assert record.status == "returned"
    assert (await there.budget()).spent == record.usage
    assert (await there.kinds()).count(EventKind.MODEL_RETRIED) == 2


async def test_tries_are_bounded_and_the_last_failure_is_recorded():
    there = await door()
    fake = Fake(raising(*(TransientDependency(f"failure {n}") for n in range(9))))

    with pytest.raises(TransientDependency, match="failure 2"):
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    assert len(fake.sent) == QUICK.attempts
    assert (await there.kinds())[-1] is EventKind.MODEL_FAILED
    state = await there.budget()
    assert state.spent == Usage(model_calls=1)
    assert state.reserved == Usage()


async def test_a_connection_lost_after_the_send_counts_as_paid_before_it_is_tried_again():
    there = await door()
    fake = Fake(raising(ConnectionResetError("gone"), then=GOOD))

    await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    [record] = await there.calls()
    assert record.sends == 2
    assert (await there.budget()).spent.tokens_used == record.reservation.tokens_used + 24


class JournalOutOfReach:
    """A journal whose database is gone when it is to write that a call is sent again."""

    def __init__(self, journal: Any) -> None:
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def resend(self, *given: Any, **more: Any) -> CallRecord:
        raise StoreUnavailable("Postgres is not available")


async def test_a_connection_lost_after_the_send_counts_as_paid_though_the_second_send_cannot_be_written_down():
    there = await door(journal=JournalOutOfReach)
    fake = Fake(raising(ConnectionResetError("gone"), then=GOOD))

    with pytest.raises(StoreUnavailable):
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    assert len(fake.sent) == 1
    [record] = await there.calls()
    assert record.status == "failed"
    state = await there.budget()
    assert state.spent == record.reservation
    assert state.reserved == Usage()


async def test_a_lost_connection_is_not_tried_again_when_the_budget_has_no_room_for_both():
    there = await door(limits=Limits(max_model_calls=1))
    fake = Fake(raising(ConnectionResetError("gone"), then=GOOD))

    with pytest.raises(TransientDependency, match="gone"):
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    assert len(fake.sent) == 1
    [record] = await there.calls()
    assert record.status == "failed"
    state = await there.budget()
    assert state.spent == record.reservation
    assert state.reserved == Usage()


async def test_a_lost_answer_is_not_asked_for_again_when_the_budget_has_no_room_for_both():
    there = await door(limits=Limits(max_model_calls=1))
    await killed_while_sent(there)

    with pytest.raises(BudgetExceeded, match="max_model_calls"):
        await there.gateway.call(there.request(), scope=rerun(there.scope), provider=Fake(lambda _: GOOD))

    [record] = await there.calls()
    assert record.status == "failed"
    state = await there.budget()
    assert state.spent == record.reservation
    assert state.reserved == Usage()


async def test_a_call_still_waiting_when_its_node_ends_is_not_sent_and_can_be_made_again():
    there = await door(sending=SendTerms(retries=QUICK, max_concurrency=1))
    release = asyncio.Event()

    async def holding(request: ModelRequest) -> ProviderReply:
        await release.wait()
        return GOOD

    fake = Fake(holding)
    first = asyncio.create_task(there.gateway.call(there.request(), scope=there.scope, provider=fake))
    second = asyncio.create_task(there.gateway.call(there.request(text="and?"), scope=there.scope, provider=fake))
    while len(await there.calls()) < 2:  # noqa: ASYNC110  # the store has no event to wait for
        await asyncio.sleep(0)
    there.scope.closed = True
    release.set()

    assert (await first).content == "12 dollars"
    with pytest.raises(NotGoverned):
        await second
    assert len(fake.sent) == 1
    again = await there.gateway.call(there.request(text="and?"), scope=rerun(there.scope), provider=fake)
    assert not again.replayed


async def test_a_permanent_failure_is_not_tried_again():
    there = await door()
    fake = Fake(raising(ZeroDivisionError("a bug of the provider's")))

    with pytest.raises(Exception, match="a bug of the provider's") as raised:
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    assert len(fake.sent) == 1
    assert type(raised.value).__name__ == "UnclassifiedFailure"


async def test_a_provider_that_wants_to_be_left_alone_past_the_deadline_is_not_waited_for():
    there = await door(limits=Limits(deadline_seconds=30), sending=SendTerms(retries=QUICK, longest_wait_seconds=3600))
    fake = Fake(raising(RateLimited("come back", retry_after_seconds=31), then=GOOD))

    with pytest.raises(RateLimited):
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    assert len(fake.sent) == 1


async def test_nothing_is_sent_once_the_lease_has_run_out_and_nothing_is_written():
    there = await door(still_ours=lambda: False)
    fake = Fake(lambda request: GOOD)

    with pytest.raises(LeaseLost):
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    assert fake.sent == []
    [record] = await there.calls()
    assert record.status == "open"


@pytest.mark.parametrize("where", ["on the loop", "in a thread"])
async def test_a_model_that_comes_to_its_turn_after_the_lease_has_run_out_is_not_asked(monkeypatch, where: str):
    asked: list[str] = []

    class Model(FakeListChatModel):
        def _call(self, *args: Any, **settings: Any) -> str:
            asked.append("here")
            return "12 dollars"

    class InAThread(Model):
        async def _agenerate(self, *args: Any, **settings: Any) -> Any:
            return await asyncio.to_thread(self._generate, *args, **settings)

    kind = Model if where == "on the loop" else InAThread
    monkeypatch.setattr("holdfast.gateway.providers.init_chat_model", lambda *args, **settings: kind(responses=[]))
    there = await door(limits=Limits(max_cost_usd=None))
    with lapsing_at_the_door() as there.scope.still_ours, pytest.raises(LeaseLost):
        await there.gateway.call(there.request("fake:model"), scope=there.scope)
    assert asked == []
    [record] = await there.calls()
    assert record.status == "open"
    there.scope.still_ours = lambda: True
    await there.gateway.call(there.request("fake:model"), scope=rerun(there.scope))
    assert asked == ["here"], "with its lease it is asked"


async def test_at_most_so_many_calls_are_under_way_at_one_provider():
    there = await door(sending=SendTerms(retries=QUICK, max_concurrency=2))
    under_way, most = 0, 0

    async def counting(request: ModelRequest) -> ProviderReply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1
        return GOOD

    fake = Fake(counting)
    await asyncio.gather(
        *(there.gateway.call(there.request(text=f"q{n}"), scope=there.scope, provider=fake) for n in range(7))
    )

    assert most == 2


# --- answers by a schema


async def test_an_answer_that_fits_its_schema_is_parsed():
    there = await door()
    with scripted("fits", {"amount": 12}) as script:
        response = await there.gateway.call(there.request(script.model, response_schema=SCHEMA), scope=there.scope)

    assert response.parsed == {"amount": 12}


async def test_an_answer_that_does_not_fit_is_repaired_once_by_a_second_paid_call():
    there = await door()
    with scripted("repaired", "twelve", {"amount": 12}) as script:
        request = there.request(script.model, response_schema=SCHEMA)
        response = await there.gateway.call(request, scope=there.scope)

        assert response.parsed == {"amount": 12}
        assert script.requests[1].messages[-2] == {"role": "assistant", "content": "twelve"}
        assert [record.status for record in await there.calls()] == ["returned", "returned"]
        assert (await there.budget()).spent.model_calls == 2
        again = await there.gateway.call(request, scope=rerun(there.scope))
    assert again.parsed == {"amount": 12}
    assert script.sends == 2


async def test_an_answer_that_does_not_fit_twice_is_an_error_that_says_why():
    there = await door()
    with (
        scripted("hopeless", "twelve", {"amount": "12"}) as script,
        pytest.raises(InvalidModelOutput, match="after one repair") as raised,
    ):
        await there.gateway.call(there.request(script.model, response_schema=SCHEMA), scope=there.scope)

    assert "$.amount" in raised.value.facts["complaint"]
    assert script.sends == 2


async def test_a_wish_to_call_a_tool_is_not_held_against_the_schema():
    there = await door()
    wish = ToolCallRequest(id="call_1", name="look_up", args={})
    with scripted("wishes", ScriptedReply(tool_calls=(wish,))) as script:
        response = await there.gateway.call(there.request(script.model, response_schema=SCHEMA), scope=there.scope)

    assert response.tool_calls == (wish,)
    assert response.parsed is None


async def test_a_schema_that_is_none_is_refused_before_anything_is_paid():
    there = await door()

    with pytest.raises(InvalidRequest, match="no JSON Schema"):
        await there.gateway.call(there.request(response_schema={"type": "objekt"}), scope=there.scope)

    assert await there.calls() == []


async def test_an_answer_that_cannot_be_stored_is_a_typed_failure_and_paid():
    there = await door()
    fake = Fake(lambda request: GOOD.model_copy(update={"content": "12\x00dollars"}))

    with pytest.raises(InvalidModelOutput, match="NUL"):
        await there.gateway.call(there.request(), scope=there.scope, provider=fake)

    [record] = await there.calls()
    assert record.status == "failed"
    assert (await there.budget()).spent.tokens_used == 24


# --- who may call, and whom


async def test_a_call_after_its_node_has_ended_is_refused():
    there = await door()
    there.scope.closed = True

    with pytest.raises(NotGoverned):
        await there.gateway.call(there.request(), scope=there.scope, provider=Fake(lambda _: GOOD))


async def test_a_request_of_another_run_is_refused():
    there = await door()

    with pytest.raises(NotGoverned, match="somebody-else"):
        await there.gateway.call(there.request(run_id="somebody-else"), scope=there.scope)

    assert await there.calls() == []


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ('@id("dear")\nforbid (principal, action == Action::"call_model", resource);', "dear"),
        (
            '@id("look")\n@verdict("ask")\npermit (principal, action == Action::"call_model", resource);',
            "cannot be asked",
        ),
    ],
)
async def test_a_model_that_policy_denies_or_wants_asked_is_neither_opened_nor_sent(rule, says):
    there = await door(policy=CedarPolicy([DEFAULT_RULES, rule]))

    with pytest.raises(PolicyDenied, match=says) as raised:
        await there.gateway.call(there.request("scripted:no.such.module:answer"), scope=there.scope)

    assert raised.value.facts["resource"] == "scripted:no.such.module:answer"
    assert await there.kinds() == [EventKind.MODEL_REFUSED]
    assert await there.calls() == []


async def test_routes_the_default_and_direct_names_reach_their_models():
    with scripted("routed", *(["hello"] * 4)) as script:
        routed = await door(providers=Providers({"cheap": script.model}))
        assert (await routed.gateway.call(routed.request("cheap"), scope=routed.scope)).content == "hello"
        assert (await routed.gateway.call(routed.request(script.model), scope=routed.scope)).content == "hello"

        configured = await door(providers=Providers({}, script.model), default_model="scripted:no.such:one")
        assert (await configured.gateway.call(configured.request(), scope=configured.scope)).content == "hello"

        own = await door(default_model=script.model)
        assert (await own.gateway.call(own.request(), scope=own.scope)).content == "hello"


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("cheap", NotFound, "routes are dear, default"),
        ("default", ConfigurationError, "HOLDFAST_MODEL"),
        ("groq:llama", ConfigurationError, "langchain-groq"),
        ("nonsense:model", ConfigurationError, "nonsense"),
        ("openai:gpt-4o-mini", ConfigurationError, "OPENAI_API_KEY"),
        ("scripted:no.such:one", ConfigurationError, "scripted:no.such:one"),
    ],
)
async def test_a_model_that_cannot_be_reached_is_refused_in_one_line_before_anything_is_recorded(
    model, error, says, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    there = await door(providers=Providers({"dear": "openai:gpt-4o"}))

    with pytest.raises(error, match=says) as raised:
        await there.gateway.call(there.request(model), scope=there.scope)

    assert "\n" not in str(raised.value)
    assert await there.calls() == []
