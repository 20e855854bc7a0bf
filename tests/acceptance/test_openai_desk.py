"""The refund desk on the real langchain-openai client, against a server on the loopback that speaks its protocol."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from offices import Office

from holdfast import Limits, RunResult, RunStatus
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import ErrorType
from holdfast.contracts.events import EventKind
from holdfast.contracts.models import ModelRequest
from holdfast.graphs.refund_desk import graph, sample, store
from holdfast.graphs.refund_desk.script import answer
from holdfast.graphs.refund_desk.store import RefundLedger
from holdfast.runtime.clock import SystemClock
from holdfast.testing.openai_server import HttpAnswer, Reply, completion, garbage, openai_server, refusal

IN_TIME = 30.0
AGENTS = {
    "Claim": "intake",
    "HistoryFinding": "order_history",
    "PolicyFinding": "refund_policy",
    "FraudFinding": "fraud_signals",
    "Draft": "decision",
    "Reply": "reply",
}
"""Who asks, by the form that is asked for."""


def agent_of(request: Mapping[str, Any]) -> str:
    return AGENTS[request["response_format"]["json_schema"]["name"]]


def desk_reply(request: Mapping[str, Any]) -> HttpAnswer:
    """What the desk's offline model would say."""
    asked = ModelRequest(
        run_id="any",
        agent_name=agent_of(request),
        model_policy="default",
        messages=request["messages"],
        deadline=Deadline.after_seconds(60, clock=SystemClock()),
    )
    return completion(answer(asked), prompt_tokens=1000, completion_tokens=100)


def at_first(agent: str, *answers: HttpAnswer) -> Reply:
    """Answers this agent with these at first, and everything else as the desk's model does."""
    remaining = list(answers)

    def reply(request: Mapping[str, Any]) -> HttpAnswer:
        return remaining.pop(0) if agent_of(request) == agent and remaining else desk_reply(request)

    return reply


def always(agent: str, wrong: HttpAnswer) -> Reply:
    return lambda request: wrong if agent_of(request) == agent else desk_reply(request)


class Desk:
    """Handles one e-mail with a server that answers in a given way."""

    def __init__(self, office: Office, ledger: RefundLedger, point_at: Callable[[str], None]) -> None:
        self.office = office
        self.ledger = ledger
        self.requests: list[dict[str, Any]] = []
        self.kinds: list[EventKind] = []
        self._point_at = point_at

    async def handle(self, reply: Reply, *, limits: Limits | None = None, email: str = "small") -> RunResult:
        async with openai_server(reply) as server:
            self._point_at(server.base_url)
            async with self.office.open(model="openai:gpt-4o-mini", graphs=[graph]) as runtime:
                run = await runtime.start("refund_desk", {"email": sample(email)}, tenant="acme", limits=limits)
                result = await run.result(IN_TIME)
                self.requests, self.kinds = server.requests, [event.kind for event in await run.events()]
        return result

    @property
    def refunds(self) -> list[str]:
        return [refund.order_id for refund in self.ledger.refunds()]


@pytest.fixture
def desk(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    ledger = store.configure(tmp_path / "refunds.sqlite3")
    return Desk(office, ledger, lambda url: monkeypatch.setenv("OPENAI_BASE_URL", url))


async def test_desk_completes_and_what_it_cost_is_known_to_the_micro_dollar(desk: Desk):
    result = await desk.handle(desk_reply)
    assert result.status is RunStatus.COMPLETED, result.error
    assert "we have refunded $34.90" in result.output["reply"]["body"]
    assert desk.refunds == ["A-1042"]
    assert len(desk.requests) == result.usage.model_calls == 6
    # gpt-4o-mini: 0.15 dollars for a million input tokens, 0.60 for a million output tokens.
    assert result.usage.cost_usd == 6 * (1000 * Decimal("0.15") + 100 * Decimal("0.60")) / 1_000_000
    assert result.usage.tokens_used == 6 * 1100


async def test_model_that_wants_to_be_left_alone_is_asked_again(desk: Desk):
    busy = refusal(429, "slow down", retry_after_seconds=0.05)
    result = await desk.handle(at_first("intake", busy, busy))
    assert result.status is RunStatus.COMPLETED, result.error
    assert desk.refunds == ["A-1042"]
    assert len(desk.requests) == 8
    assert desk.kinds.count(EventKind.MODEL_RETRIED) == 2


@pytest.mark.parametrize(
    ("wrong", "error_type", "sends"),
    [
        (refusal(429, "slow down", retry_after_seconds=0.01), ErrorType.RATE_LIMITED, 3),
        (refusal(401, "who are you?"), ErrorType.AUTH_ERROR, None),
        (refusal(400, "what?"), ErrorType.PERMANENT_DEPENDENCY, 1),
        (refusal(500, "oh"), ErrorType.TRANSIENT_DEPENDENCY, 3),
        (completion("this is not JSON"), ErrorType.VALIDATION_ERROR, 2),
        (completion('{"claim": "of another form"}'), ErrorType.VALIDATION_ERROR, 2),
    ],
    ids=["always 429", "401", "400", "always 500", "never JSON", "another form"],
)
async def test_failure_that_stays_ends_the_run_with_its_type_and_nothing_refunded(
    desk: Desk, wrong: HttpAnswer, error_type: ErrorType, sends: int | None
):
    result = await desk.handle(always("intake", wrong))
    assert result.status is RunStatus.FAILED
    assert result.error is not None
    assert (result.error.error_type, result.error.step_name) == (error_type, "read_email")
    assert sends is None or len(desk.requests) == sends
    assert desk.refunds == []


async def test_garbage_ends_the_run_with_a_typed_cause_and_the_state_up_to_then(desk: Desk):
    result = await desk.handle(always("decision", garbage()))
    assert result.status is RunStatus.FAILED
    assert result.error is not None
    assert (result.error.error_type, result.error.step_name) == (ErrorType.VALIDATION_ERROR, "decide")
    assert set(result.output["findings"]) == {"order_history", "refund_policy", "fraud_signals"}
    assert desk.refunds == []


async def test_answer_of_another_form_is_repaired_once_and_both_calls_are_paid_for(desk: Desk):
    result = await desk.handle(at_first("intake", completion('{"claim": "of another form"}')))
    assert result.status is RunStatus.COMPLETED, result.error
    assert result.usage.model_calls == len(desk.requests) == 7


async def test_model_that_is_too_slow_ends_the_run_at_its_deadline(desk: Desk):
    result = await desk.handle(always("intake", completion("too late").after(60)), limits=Limits(deadline_seconds=2.0))
    assert result.status is RunStatus.FAILED
    assert result.error is not None
    assert (result.error.error_type, result.error.step_name) == (ErrorType.TIMEOUT, "read_email")
    assert len(desk.requests) == 1


async def test_cost_limit_is_not_passed_and_ends_the_run(desk: Desk):
    result = await desk.handle(desk_reply, limits=Limits(max_cost_usd=Decimal("0.0015")))
    assert result.status is RunStatus.FAILED
    assert result.error is not None
    assert result.error.error_type is ErrorType.BUDGET_EXCEEDED
    assert 1 <= len(desk.requests) < 6
    assert result.usage.cost_usd is not None
    assert result.usage.cost_usd <= Decimal("0.0015")
    assert desk.refunds == []
