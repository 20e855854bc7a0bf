"""The ready agent: on Postgres, through the public runtime, offline."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fix_database import DatabaseUrls

from holdfast.contracts.errors import ErrorType
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import RunResult, RunStatus
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.gateway.toolset import tool
from holdfast.graphs.agent import build_agent, graph
from holdfast.runtime.runtime import Runtime
from holdfast.server.bootstrap import open_runtime

DANA = Principal(user_id="dana", tenants=("acme",), roles=("approver",))
sent: list[str] = []


@tool(effect="external")
def calculate(expression: str) -> str:
    """The same name as the harmless tool, but it reaches others."""
    sent.append(expression)
    return "sent"


@asynccontextmanager
async def opened(urls: DatabaseUrls) -> AsyncIterator[Runtime]:
    async with open_runtime(
        DATABASE_URL=urls.app, tenants=[Tenant(tenant_id="acme")], principals={"dana": DANA}
    ) as runtime:
        yield runtime


async def ask(runtime: Runtime, question: str, agent: Any = graph, **options: Any) -> RunResult:
    messages = {"messages": [{"role": "user", "content": question}]}
    run = await runtime.start(agent, messages, tenant="acme", **options)
    return await run.result(timeout=60)


def said(result: RunResult) -> list[tuple[str, str]]:
    return [(message["type"], message["content"]) for message in result.output["messages"]]


async def test_a_question_without_a_tool_is_answered_in_one_turn(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        result = await ask(runtime, "Who are you?")

    assert result.status is RunStatus.COMPLETED, result.error
    assert said(result) == [("human", "Who are you?"), ("ai", "I do sums, and I count the words of a quoted text.")]
    assert (result.usage.model_calls, result.usage.tool_calls) == (1, 0)


async def test_each_tool_call_is_a_task_of_its_own_and_its_result_goes_back_to_the_model(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        result = await ask(runtime, 'What are 2 + 3 * 4 and (1 + 1) / 8, and how long is "to be or not to be"?')
        report = await runtime.show(result.run_id, tenant="acme")

    assert said(result)[-1] == ("ai", "6; 14; 0.25")
    calls = [call for call in report.calls if call.identity.kind == "tool"]
    assert sorted(call.identity.name for call in calls) == ["calculate", "calculate", "count_words"]
    assert len({call.identity.site.task_id for call in calls}) == 3
    assert (result.usage.model_calls, result.usage.tool_calls) == (2, 3)


async def test_a_tool_that_fails_tells_the_model_why(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        result = await ask(runtime, "What is 1 / 0?")

    assert result.status is RunStatus.COMPLETED, result.error
    [told] = [content for kind, content in said(result) if kind == "tool"]
    assert told.startswith("validation_error:")
    assert "division by zero" in told
    assert result.output["messages"][2]["status"] == "error"


async def test_a_next_question_on_the_thread_sees_the_conversation(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        await ask(runtime, "What is 2 + 2?", thread="talk")
        result = await ask(runtime, "And 3 + 3?", thread="talk")

    assert [content for kind, content in said(result) if kind == "human"] == ["What is 2 + 2?", "And 3 + 3?"]
    assert said(result)[-1] == ("ai", "6")


async def test_the_run_ends_where_its_limits_say(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        result = await ask(runtime, "What is 2 + 2?", limits=Limits(max_tool_calls=0))

    assert result.status is RunStatus.FAILED
    assert result.error.error_type is ErrorType.BUDGET_EXCEEDED
    assert result.usage.tool_calls == 0


async def test_an_agent_of_ones_own_asks_a_person_before_it_reaches_others(database_urls: DatabaseUrls):
    sent.clear()
    agent = build_agent(
        name="sender",
        tools=[calculate],
        instructions="Send what you are asked to.",
        prompt_version="sender-1",
        default_model="scripted:holdfast.graphs.scripts:agent",
    )

    async with opened(database_urls) as runtime:
        asked = await ask(runtime, "Send 1 + 1 and 2 + 2", agent)
        assert asked.status is RunStatus.INTERRUPTED, asked.error
        assert sent == []
        by_expression = {approval.args["expression"]: approval for approval in asked.approvals}
        await runtime.decide(by_expression["1 + 1"].id, "approve", by="dana")
        await runtime.decide(by_expression["2 + 2"].id, "reject", by="dana", message="Not that one.")
        run = await runtime.run(asked.run_id, tenant="acme")
        result = await run.result(timeout=60)

    assert result.status is RunStatus.COMPLETED, result.error
    assert sent == ["1 + 1"]
    assert "Not that one." in said(result)[-1][1]


def test_the_drawing_shows_the_loop():
    drawn = graph.get_graph().draw_mermaid()

    assert "model -.-> tools" in drawn or "model -.-> __end__" in drawn
    assert "tools --> model" in drawn
