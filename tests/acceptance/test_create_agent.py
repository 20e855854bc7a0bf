"""`langchain.agents.create_agent`, unchanged: a plain chat model, plain tools, and holdfast around them."""

import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.chat_models import init_chat_model
from langchain_core.tools import tool
from offices import Office

from holdfast import Limits, RunResult, RunStatus, govern
from holdfast.contracts.approvals import ApprovalKind, ApprovalStatus
from holdfast.contracts.errors import ErrorType
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.openai_server import HttpAnswer, OpenAIServer, completion, openai_server

IN_TIME = 20.0
READ = {"look_up": {"effect": "read"}}
"""What the operator says of one tool; of the other nobody has said anything."""


class Mail:
    """The two tools, and what they did."""

    def __init__(self, *, synchronous: bool) -> None:
        self.looked_up: list[str] = []
        self.sent: list[tuple[str, str]] = []
        self.threads: set[int] = set()
        self.tools = self._synchronous() if synchronous else self._asynchronous()

    def _synchronous(self) -> list[Any]:
        @tool
        def look_up(order: str) -> str:
            """Look an order up."""
            self.threads.add(threading.get_ident())
            self.looked_up.append(order)
            return f"{order} belongs to sam@example.com"

        @tool
        def send_mail(to: str, text: str) -> str:
            """Send a mail."""
            self.threads.add(threading.get_ident())
            self.sent.append((to, text))
            return "sent"

        return [look_up, send_mail]

    def _asynchronous(self) -> list[Any]:
        @tool
        async def look_up(order: str) -> str:
            """Look an order up."""
            self.looked_up.append(order)
            return f"{order} belongs to sam@example.com"

        @tool
        async def send_mail(to: str, text: str) -> str:
            """Send a mail."""
            self.sent.append((to, text))
            return "sent"

        return [look_up, send_mail]

    def agent(self, server: OpenAIServer, **options: Any) -> Any:
        model = init_chat_model("openai:gpt-4o-mini", base_url=server.base_url, api_key="a key", max_tokens=200)
        return create_agent(model, self.tools, name="correspondent", **options)


def reply(request: Mapping[str, Any]) -> HttpAnswer:
    """The model: looks the order up, writes to its owner, and says what came of it."""
    last = request["messages"][-1]
    done = sum(message["role"] == "tool" for message in request["messages"])
    if done == 0:
        return completion(tool_calls=[("look_up", {"order": "A-1"})])
    if done == 1:
        return completion(tool_calls=[("send_mail", {"to": last["content"].split()[-1], "text": "It is on its way."})])
    return completion(f"The mail tool said: {last['content']}")


QUESTION = {"messages": [{"role": "user", "content": "Where is A-1?"}]}


async def last_word(run: RunHandle) -> tuple[RunResult, str]:
    result = await run.result(IN_TIME)
    assert result.status is RunStatus.COMPLETED, (result.error, result.approvals)
    return result, result.output["messages"][-1]["content"]


async def journal(runtime: Runtime, run: RunHandle) -> list[tuple[str, str, str, int]]:
    calls = (await runtime.show(run.id, tenant="acme")).calls
    return [(call.identity.kind, call.identity.name, call.status, call.sends) for call in calls]


@pytest.mark.parametrize("synchronous", [True, False], ids=["sync tools", "async tools"])
async def test_agent_is_governed_as_it_is_and_asks_before_the_tool_of_which_nothing_is_known(
    office: Office, synchronous: bool
):
    mail = Mail(synchronous=synchronous)
    async with openai_server(reply) as server, office.open(tools=READ) as runtime:
        run = await runtime.start(mail.agent(server), QUESTION, tenant="acme")
        [question] = (await run.result(IN_TIME)).approvals
        assert (question.kind, question.tool_name) == (ApprovalKind.TOOL, "send_mail")
        assert question.args == {"to": "sam@example.com", "text": "It is on its way."}
        assert mail.sent == []
        await runtime.decide(question.id, "approve", by="dana")
        result, said = await last_word(run)
        assert said == "The mail tool said: sent"
        assert await journal(runtime, run) == [
            ("model", "openai:gpt-4o-mini", "returned", 1),
            ("tool", "look_up", "returned", 1),
            ("model", "openai:gpt-4o-mini", "returned", 1),
            ("tool", "send_mail", "returned", 1),
            ("model", "openai:gpt-4o-mini", "returned", 1),
        ]
        assert len(server.requests) == 3
    assert (mail.looked_up, mail.sent) == (["A-1"], [("sam@example.com", "It is on its way.")])
    assert threading.get_ident() not in mail.threads, "a synchronous tool must not hold the loop"
    assert (result.usage.model_calls, result.usage.tool_calls, result.usage.tokens_used) == (3, 2, 45)
    assert result.usage.cost_usd is not None
    assert 0 < result.usage.cost_usd < 1


async def test_agent_whose_tool_a_person_refuses_or_edits_goes_on_with_that(office: Office):
    async with openai_server(reply) as server, office.open(tools=READ) as runtime:
        for decision, words, sent, said in (
            ("reject", {"message": "do not write"}, [], "send_mail was not called. do not write"),
            ("respond", {"message": "I have phoned"}, [], "I have phoned"),
            ("edit", {"args": {"to": "kim@example.com", "text": "Hi"}}, [("kim@example.com", "Hi")], "sent"),
        ):
            mail = Mail(synchronous=False)
            run = await runtime.start(mail.agent(server), QUESTION, tenant="acme")
            [question] = (await run.result(IN_TIME)).approvals
            await runtime.decide(question.id, decision, by="dana", **words)
            _, told = await last_word(run)
            assert said in told
            assert mail.sent == sent


async def test_agent_stops_at_its_budget_with_its_conversation_kept(office: Office):
    mail = Mail(synchronous=False)
    async with openai_server(reply) as server, office.open(tools=READ) as runtime:
        limits = Limits(max_model_calls=1)
        run = await runtime.start(mail.agent(server), QUESTION, tenant="acme", limits=limits)
        result = await run.result(IN_TIME)
        assert len(server.requests) == 1
    assert result.status is RunStatus.FAILED
    assert result.error is not None
    assert result.error.error_type is ErrorType.BUDGET_EXCEEDED
    assert result.usage.model_calls == 1
    assert [message["type"] for message in result.output["messages"]] == ["human", "ai", "tool"]


async def test_agent_that_may_use_no_tool_ends_even_though_its_tool_node_makes_messages_of_errors(office: Office):
    mail = Mail(synchronous=False)
    async with openai_server(reply) as server, office.open(tools=READ) as runtime:
        run = await runtime.start(mail.agent(server), QUESTION, tenant="acme", limits=Limits(max_tool_calls=0))
        result = await run.result(IN_TIME)
    assert result.error is not None
    assert result.error.error_type is ErrorType.BUDGET_EXCEEDED
    assert mail.looked_up == []


async def test_langchains_own_human_in_the_loop_middleware_works_through_the_inbox(office: Office):
    free = READ | {"send_mail": {"effect": "write"}}
    async with openai_server(reply) as server, office.open(tools=free) as runtime:
        for decision, words, sent, said in (
            ("approve", {}, [("sam@example.com", "It is on its way.")], "sent"),
            ("edit", {"args": {"to": "kim@example.com", "text": "Hi"}}, [("kim@example.com", "Hi")], "sent"),
            ("reject", {"message": "do not write"}, [], "do not write"),
        ):
            mail = Mail(synchronous=False)
            ours = HumanInTheLoopMiddleware(interrupt_on={"send_mail": True})
            run = await runtime.start(mail.agent(server, middleware=[ours]), QUESTION, tenant="acme")
            [question] = (await run.result(IN_TIME)).approvals
            assert question.kind is ApprovalKind.QUESTION
            assert question.payload["action_requests"][0]["name"] == "send_mail"
            await runtime.decide(question.id, decision, by="dana", **words)
            _, told = await last_word(run)
            assert said in told
            assert mail.sent == sent
        asked = await runtime.approvals(tenant="acme", pending_only=False)
    assert [each.status for each in asked] == [ApprovalStatus.APPROVED, ApprovalStatus.EDITED, ApprovalStatus.REJECTED]


async def test_parallel_tool_calls_of_one_answer_are_asked_and_done_each_by_itself(office: Office):
    def both(request: Mapping[str, Any]) -> HttpAnswer:
        told = [message["content"] for message in request["messages"] if message["role"] == "tool"]
        if told:
            return completion(json.dumps(told))
        return completion(tool_calls=[("send_mail", {"to": to, "text": "Hi"}) for to in ("sam", "kim")])

    mail = Mail(synchronous=False)
    async with openai_server(both) as server, office.open() as runtime:
        run = await runtime.start(mail.agent(server), QUESTION, tenant="acme")
        questions = {question.args["to"]: question for question in (await run.result(IN_TIME)).approvals}
        await runtime.decide(questions["kim"].id, "approve", by="dana")
        await run.result(IN_TIME)
        await runtime.decide(questions["sam"].id, "reject", by="dana", message="no")
        _, said = await last_word(run)
    assert [text.split(": ")[-1] for text in json.loads(said)] == ["send_mail was not called. no", "sent"]
    assert mail.sent == [("kim", "Hi")]


async def test_agent_that_was_governed_by_hand_keeps_its_terms_and_its_drawing(office: Office):
    mail = Mail(synchronous=False)
    async with openai_server(reply) as server:
        drawing = mail.agent(server).get_graph().draw_mermaid()
        graph = govern(mail.agent(server), name="mine", version="7")
        assert graph.get_graph().draw_mermaid() == drawing
        async with office.open(tools=READ) as runtime:
            run = await runtime.start(graph, QUESTION, tenant="acme")
            assert (await run.result(IN_TIME)).status is RunStatus.INTERRUPTED
            record = (await runtime.show(run.id, tenant="acme")).run
    assert (record.graph_name, record.graph_version) == ("mine", "7")
