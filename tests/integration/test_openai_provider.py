"""The real langchain-openai client, through the gateway, against a server on the loopback."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from holdfast.contracts.errors import (
    AuthError,
    ConfigurationError,
    ErrorType,
    InvalidModelOutput,
    InvalidRequest,
    PermanentDependency,
    RateLimited,
    TimedOut,
    TransientDependency,
)
from holdfast.contracts.events import EventKind
from holdfast.contracts.models import ModelRequest, ModelResponse, ToolCallRequest
from holdfast.contracts.scope import Scope
from holdfast.gateway.langchain_message import message_of
from holdfast.gateway.models import ModelGateway
from holdfast.gateway.prices import Prices
from holdfast.gateway.providers import Providers
from holdfast.gateway.sending import Sender, SendTerms
from holdfast.policies.permissions import CedarPolicy
from holdfast.policies.retry import RetryTerms
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.clock import FixedDice
from holdfast.testing.memory import MemoryStore
from holdfast.testing.openai_server import Reply, completion, dropped, garbage, in_turn, openai_server, refusal
from holdfast.testing.scopes import rerun, scope_for

SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look an order up.",
        "parameters": {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]},
    },
}


class LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return self.monotonic()


class Desk:
    """A node with a gateway to whatever the server answers."""

    def __init__(self, timeout_seconds: float = 20.0) -> None:
        self.store = MemoryStore(clock=LoopClock())
        terms = RetryTerms(attempts=3, base_seconds=0.002, cap_seconds=0.01)
        self.gateway = ModelGateway(
            journal=self.store.journal,
            ledger=self.store.ledger,
            events=self.store.events,
            policy=CedarPolicy.load(),
            providers=Providers({}, "openai:gpt-4o-mini"),
            prices=Prices(),
            clock=LoopClock(),
            ids=SystemIds(),
            sender=Sender(dice=FixedDice(), terms=SendTerms(timeout_seconds=timeout_seconds, retries=terms)),
        )
        self.scope: Scope

    async def ask(self, **changes: Any) -> ModelResponse:
        self.scope = await scope_for(self.store, clock=LoopClock(), models=self.gateway)
        return await self.ask_again(**changes)

    async def ask_again(self, **changes: Any) -> ModelResponse:
        standard: dict[str, Any] = {
            "run_id": self.scope.run.run_id,
            "agent_name": "drafter",
            "model_policy": "default",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "how much?"}],
            "max_tokens": 50,
            "deadline": self.scope.deadline,
        }
        return await self.gateway.call(ModelRequest(**{**standard, **changes}), scope=rerun(self.scope))

    async def kinds(self) -> list[EventKind]:
        events = await self.store.events.read(self.scope.owner.tenant_id, self.scope.owner.run_id)
        return [event.kind for event in events if event.kind.startswith(("model.", "call."))]


@pytest.fixture
async def serve(monkeypatch):
    """Starts a server and points the client at it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-tests")
    running = []

    async def start(reply: Reply):
        serving = openai_server(reply)
        running.append(serving)
        server = await serving.__aenter__()
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        return server

    yield start
    for serving in running:
        await serving.__aexit__(None, None, None)


async def test_an_answer_comes_with_its_tokens_its_cost_and_what_was_asked(serve):
    server = await serve(in_turn(completion("12 dollars", prompt_tokens=1000, completion_tokens=10)))
    desk = Desk()

    response = await desk.ask(temperature=0.5)

    assert (response.content, response.provider, response.model) == ("12 dollars", "openai", "gpt-4o-mini")
    assert (response.input_tokens, response.output_tokens) == (1000, 10)
    assert response.cost_usd == Decimal("0.000156")
    assert response.finish_reason == "stop"
    [sent] = server.requests
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "how much?"}]
    assert (sent["model"], sent["temperature"], sent["max_completion_tokens"]) == ("gpt-4o-mini", 0.5, 50)
    assert (await desk.ask_again(temperature=0.5)).replayed
    assert len(server.requests) == 1


async def test_calls_with_other_settings_do_not_get_each_others(serve):
    server = await serve(in_turn(completion("yes")))
    desk = Desk()
    await desk.ask(temperature=0.1, max_tokens=11)
    await desk.ask_again(temperature=0.9, max_tokens=99)

    settings = [(sent["temperature"], sent["max_completion_tokens"]) for sent in server.requests]

    assert settings == [(0.1, 11), (0.9, 99)]


async def test_a_model_that_takes_no_temperature_is_given_none(serve):
    server = await serve(in_turn(completion("yes", model="gpt-5")))

    await Desk().ask(model_policy="openai:gpt-5")

    assert "temperature" not in server.requests[0]


async def test_too_many_requests_are_tried_again_after_what_the_server_asked_for(serve):
    moments: list[float] = []
    answers = in_turn(refusal(429, retry_after_seconds=0.3), completion("now"))

    def reply(request):
        moments.append(asyncio.get_running_loop().time())
        return answers(request)

    await serve(reply)
    desk = Desk()

    response = await desk.ask()

    assert response.content == "now"
    assert moments[1] - moments[0] >= 0.3
    assert await desk.kinds() == [EventKind.MODEL_INTENDED, EventKind.MODEL_RETRIED, EventKind.MODEL_RETURNED]


async def test_a_server_that_asks_for_an_hour_is_not_waited_for(serve):
    server = await serve(in_turn(refusal(429, retry_after_seconds=3600)))

    with pytest.raises(RateLimited) as raised:
        await Desk().ask()

    assert raised.value.facts["retry_after_seconds"] == 3600
    assert len(server.requests) == 1


async def test_server_errors_are_tried_again_a_bounded_number_of_times(serve):
    server = await serve(in_turn(refusal(500)))
    desk = Desk()

    with pytest.raises(TransientDependency):
        await desk.ask()

    assert len(server.requests) == 3
    state = await desk.store.ledger.state(desk.scope.owner.tenant_id, desk.scope.budgets[0])
    assert state.spent.tokens_used == 0


async def test_a_dropped_connection_is_tried_again(serve):
    server = await serve(in_turn(dropped(), completion("here")))

    response = await Desk().ask()

    assert response.content == "here"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "error", "error_type"),
    [
        (401, AuthError, ErrorType.AUTH_ERROR),
        (404, PermanentDependency, ErrorType.PERMANENT_DEPENDENCY),
        (400, PermanentDependency, ErrorType.PERMANENT_DEPENDENCY),
    ],
)
async def test_a_refusal_is_typed_and_not_tried_again(serve, status, error, error_type):
    server = await serve(in_turn(refusal(status, "no")))

    with pytest.raises(error) as raised:
        await Desk().ask()

    assert raised.value.error_type is error_type
    assert raised.value.facts["status"] == status
    assert len(server.requests) == 1


async def test_garbage_is_a_typed_error_and_counts_as_paid(serve):
    await serve(in_turn(garbage()))
    desk = Desk()

    with pytest.raises(InvalidModelOutput, match="could not be read"):
        await desk.ask()

    [record] = await desk.store.journal.of_run(desk.scope.owner.tenant_id, desk.scope.owner.run_id)
    assert (record.status, record.usage) == ("failed", record.reservation)


async def test_a_slow_server_is_a_timeout(serve):
    await serve(in_turn(completion("late").after(60)))

    with pytest.raises(TimedOut):
        await Desk(timeout_seconds=0.3).ask()


async def test_a_structured_answer_is_asked_for_by_its_schema_and_parsed(serve):
    server = await serve(in_turn(completion('{"amount": 12}')))

    response = await Desk().ask(response_schema=SCHEMA)

    assert response.parsed == {"amount": 12}
    asked = server.requests[0]["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["schema"]["required"] == ["amount"]


async def test_a_structured_answer_of_the_wrong_shape_is_repaired_once(serve):
    server = await serve(in_turn(completion('{"amount": "twelve"}'), completion('{"amount": 12}')))

    response = await Desk().ask(response_schema=SCHEMA)

    assert response.parsed == {"amount": 12}
    assert "does not fit" in server.requests[1]["messages"][-1]["content"]


async def test_a_structured_answer_that_stays_wrong_is_an_error(serve):
    server = await serve(in_turn(completion('{"amount": "twelve"}')))

    with pytest.raises(InvalidModelOutput):
        await Desk().ask(response_schema=SCHEMA)

    assert len(server.requests) == 2


async def test_tools_are_offered_and_a_wish_for_one_comes_back(serve):
    server = await serve(in_turn(completion(tool_calls=[("look_up", {"order": "A-1"})])))

    response = await Desk().ask(tools=[LOOK_UP], tool_choice="look_up")

    assert response.tool_calls == (ToolCallRequest(id="call_1", name="look_up", args={"order": "A-1"}),)
    assert server.requests[0]["tools"][0]["function"]["name"] == "look_up"
    assert server.requests[0]["tool_choice"] == {"type": "function", "function": {"name": "look_up"}}
    message = message_of(response)
    assert isinstance(message, AIMessage)
    assert message.tool_calls[0]["args"] == {"order": "A-1"}


async def test_tools_and_a_schema_go_together(serve):
    server = await serve(in_turn(completion('{"amount": 12}')))

    response = await Desk().ask(tools=[LOOK_UP], response_schema=SCHEMA)

    assert response.parsed == {"amount": 12}
    [sent] = server.requests
    assert sent["tools"]
    assert [message["role"] for message in sent["messages"]] == ["system", "system", "user"]
    assert '"required": ["amount"]' in sent["messages"][1]["content"]


async def test_the_answers_and_results_of_tools_are_told_in_openais_form(serve):
    server = await serve(in_turn(completion("it is on its way")))
    history = [
        {"role": "user", "content": "where is A-1?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"order": "A-1"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sent"},
    ]

    await Desk().ask(messages=history, tools=[LOOK_UP])

    told = server.requests[0]["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool"]
    assert told[1]["tool_calls"][0]["function"]["name"] == "look_up"
    assert told[2]["tool_call_id"] == "call_1"


async def test_messages_of_another_form_are_refused_before_anything_is_sent(serve):
    server = await serve(in_turn(completion("yes")))

    with pytest.raises(InvalidRequest, match="'nobody'"):
        await Desk().ask(messages=[{"role": "nobody", "content": "hi"}])

    assert server.requests == []


async def test_a_missing_key_is_said_in_one_line(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY") as raised:
        await Desk().ask()

    assert "\n" not in str(raised.value)
