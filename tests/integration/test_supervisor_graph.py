"""The ready supervisor: on Postgres, through the public runtime, offline."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fix_database import DatabaseUrls

from holdfast.contracts.errors import ConfigurationError, ErrorType, InvalidRequest
from holdfast.contracts.events import EventKind
from holdfast.contracts.models import ModelRequest, ToolCallRequest
from holdfast.contracts.runs import RunResult, RunStatus
from holdfast.contracts.tenancy import Tenant
from holdfast.gateway.scripted import ScriptedReply
from holdfast.gateway.toolset import tool
from holdfast.graphs.harmless import calculate, count_words
from holdfast.graphs.supervisor import Role, build_supervisor, graph
from holdfast.runtime.runtime import Runtime
from holdfast.server.bootstrap import open_runtime

SCRIPT = "scripted:holdfast.graphs.scripts:supervisor"
BOTH = 'What is 6 * 7, and how many words has "so long and thanks"?'


def role(name: str, tools: list[Any], **changes: Any) -> Role:
    return Role(name=name, expertise=name, instructions=name, prompt_version=f"{name}-1", tools=tools, **changes)


def supervisor(specialists: list[Role], **changes: Any) -> Any:
    terms = {"name": "lead", "instructions": "Answer.", "prompt_version": "lead-1", "default_model": SCRIPT}
    return build_supervisor(specialists=specialists, **terms | changes)


@asynccontextmanager
async def opened(urls: DatabaseUrls) -> AsyncIterator[Runtime]:
    async with open_runtime(DATABASE_URL=urls.app, tenants=[Tenant(tenant_id="acme")]) as runtime:
        yield runtime


async def ask(runtime: Runtime, question: str, lead: Any = graph) -> RunResult:
    run = await runtime.start(lead, {"question": question}, tenant="acme")
    return await run.result(timeout=60)


async def test_specialists_answer_side_by_side_each_on_a_share_of_the_budget(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        result = await ask(runtime, BOTH)
        events = await runtime.events(result.run_id, tenant="acme")
        report = await runtime.show(result.run_id, tenant="acme")

    assert result.status is RunStatus.COMPLETED, result.error
    assert result.output["answer"] == "arithmetic: 42\nwording: 4"
    assert [report["status"] for report in result.output["reports"]] == ["completed", "completed"]
    shares = {event.payload["specialist"] for event in events if event.kind is EventKind.BUDGET_OPENED}
    assert shares == {"arithmetic", "wording"}
    assert {call.agent_name for call in report.calls} == {"supervisor", "arithmetic", "wording"}
    assert (result.usage.model_calls, result.usage.tool_calls) == (6, 2)


async def test_only_those_who_can_help_are_sent(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        result = await ask(runtime, "What is 6 * 7?")

    assert [report["specialist"] for report in result.output["reports"]] == ["arithmetic"]


async def test_a_question_for_nobody_is_answered_without_specialists(database_urls: DatabaseUrls):
    async with opened(database_urls) as runtime:
        result = await ask(runtime, "How are you?")

    assert result.output == {"answer": "None of my specialists can help with that.", "reports": []}
    assert result.usage.model_calls == 2


async def test_a_specialist_that_fails_fails_the_run(database_urls: DatabaseUrls):
    lead = supervisor(
        [role("arithmetic", [calculate], max_turns=1, deadline_seconds=0.0), role("wording", [count_words])]
    )

    async with opened(database_urls) as runtime:
        result = await ask(runtime, BOTH, lead)

    assert result.status is RunStatus.FAILED
    assert result.error.error_type is ErrorType.TIMEOUT


async def test_where_partial_answers_are_allowed_the_answer_says_what_is_missing(database_urls: DatabaseUrls):
    lead = supervisor(
        [role("arithmetic", [calculate], deadline_seconds=0.0), role("wording", [count_words])], allow_partial=True
    )

    async with opened(database_urls) as runtime:
        result = await ask(runtime, BOTH, lead)

    assert result.status is RunStatus.COMPLETED, result.error
    missing, found = result.output["reports"]
    assert (missing["specialist"], missing["status"], missing["answer"]) == ("arithmetic", "failed", None)
    assert "arithmetic" in missing["problem"]
    assert (found["specialist"], found["status"], found["answer"]) == ("wording", "completed", "4")


async def test_a_specialist_that_only_ever_asks_for_tools_must_answer_on_its_last_turn(
    database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
):
    def restless(request: ModelRequest) -> ScriptedReply:
        if request.response_schema is not None:
            return ScriptedReply(content={"arithmetic": "work", "wording": None})
        if request.tools:
            turn = len(request.messages)
            wishes = [("calculate", {"expression": f"{turn} + 1"}), ("count_words", {"text": "not mine"})]
            calls = [ToolCallRequest(id=f"{turn}-{name}", name=name, args=args) for name, args in wishes]
            return ScriptedReply(tool_calls=tuple(calls))
        return ScriptedReply(content=str(request.messages[-1]["content"]))

    monkeypatch.setitem(sys.modules, "restless", SimpleNamespace(answer=restless))
    lead = supervisor(
        [role("arithmetic", [calculate], max_turns=3), role("wording", [count_words])],
        default_model="scripted:restless:answer",
    )

    async with opened(database_urls) as runtime:
        result = await ask(runtime, "Go on and on", lead)
        report = await runtime.show(result.run_id, tenant="acme")

    [told] = result.output["reports"]
    assert told["answer"] == "there is no tool 'count_words' here; there are calculate"
    calls = [call.identity for call in report.calls if call.agent_name == "arithmetic"]
    assert [call.kind for call in calls] == ["model", "tool", "model", "tool", "model"]
    assert {call.name for call in calls if call.kind == "tool"} == {"calculate"}


def test_a_specialists_tools_may_only_read():
    @tool(effect="external")
    def send(text: str) -> str:
        """Send a text to somebody."""
        raise AssertionError(text)

    with pytest.raises(ConfigurationError, match="may only read; send may do more"):
        supervisor([role("sender", [send])])


@pytest.mark.parametrize("specialists", [[], [role("twin", []), role("twin", [])]])
def test_specialists_have_names_of_their_own(specialists: list[Role]):
    with pytest.raises(ConfigurationError, match="each with a name of its own"):
        supervisor(specialists)


@pytest.mark.parametrize(
    ("expression", "value"), [("2 + 3 * 4", "14"), ("-(1 - 3) / 4", "0.5"), ("1e3", "1000"), ("0.1 + 0.2", "0.3")]
)
def test_sums_have_values(expression: str, value: str):
    assert calculate.invoke({"expression": expression}) == value


@pytest.mark.parametrize("expression", ["", "1 / 0", "2 ** 9", "True + 1", "__import__('os')", "(" * 99, "9" * 400])
def test_what_is_no_sum_is_refused(expression: str):
    with pytest.raises(InvalidRequest):
        calculate.invoke({"expression": expression})
