"""LangChain's own agents, models and tools, unchanged, through our doors."""

import asyncio
import operator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Annotated, Any

import pytest
from governing import Desk, raising
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import InjectedToolCallId, ToolException
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command
from lapsing import lapsing_at_the_door
from pydantic import Field
from typing_extensions import TypedDict

from holdfast.contracts.errors import BudgetExceeded, ConfigurationError, HumanRequired, LeaseLost, NotGoverned
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.models import ToolCallRequest
from holdfast.contracts.scope import scope_here
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.chat_model import GatewayChatModel
from holdfast.gateway.scripted import ScriptedReply
from holdfast.gateway.toolset import tool
from holdfast.graphs.govern import govern
from holdfast.nodes import bridge
from holdfast.testing.scripted import scripted


class State(TypedDict, total=False):
    x: str
    log: Annotated[list[Any], operator.add]


class Fake(BaseChatModel):
    """A chat model as somebody else wrote it; it answers the n-th turn with the n-th reply."""

    replies: list[Any]
    sent: list[int] = Field(default_factory=list)
    temperature: float = 0.3

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _get_ls_params(self, stop=None, **settings):
        return {"ls_provider": "scripted", "ls_model_name": "fake", "ls_model_type": "chat"}

    def bind_tools(self, tools, **settings):
        return self.bind(tools=[{"type": "function", "function": {"name": each.name}} for each in tools])

    def _generate(self, messages, stop=None, run_manager=None, **settings):
        turn = sum(isinstance(message, AIMessage) for message in messages)
        self.sent.append(turn)
        reply = self.replies[turn]
        message = AIMessage(reply) if isinstance(reply, str) else reply.model_copy()
        return ChatResult(generations=[ChatGeneration(message=message)])


class Streaming(Fake):
    """One that streams when it can."""

    def _stream(self, messages, stop=None, run_manager=None, **settings):
        from langchain_core.messages import AIMessageChunk

        self.sent.append(-1)
        for part in ("one ", "two"):
            yield ChatGenerationChunk(message=AIMessageChunk(part))


def fake(*replies: Any, kind: type[Fake] = Fake) -> Fake:
    return kind(replies=list(replies), sent=[])


def wishes(*calls: tuple[str, dict]) -> AIMessage:
    numbered = [{"id": f"call-{n}", "name": name, "args": args} for n, (name, args) in enumerate(calls)]
    return AIMessage("", tool_calls=numbered)


class World:
    """What the tools really did."""

    def __init__(self) -> None:
        self.done: list[str] = []

        @langchain_tool
        def look(order: str) -> str:
            """Look at an order."""
            self.done.append(f"look {order}")
            return f"found {order}"

        look.metadata = {"effect": "read"}

        @langchain_tool
        async def pay(order: str) -> str:
            """Pay for an order."""
            self.done.append(f"pay {order}")
            return f"paid {order}"

        self.look, self.pay = look, pay


def node_graph(node, *tools):
    builder = StateGraph(State).add_node("node", node).add_edge(START, "node")
    return govern(builder.compile(), name="node", tools=tools)


def told(attempt) -> list[tuple[str, str]]:
    return [(message.status, message.content) for message in attempt.output["messages"] if message.type == "tool"]


HELLO = {"messages": [HumanMessage("hi")]}


async def test_unchanged_agent_asks_for_approval_and_is_journalled():
    world = World()
    model = fake(wishes(("look", {"order": "A"}), ("pay", {"order": "A"}), ("pay", {"order": "B"})), "done")
    agent = create_agent(model, tools=[world.look, world.pay])
    drawing = agent.get_graph(xray=True).draw_mermaid()
    attempt = await Desk().start(govern(agent, name="agent"), HELLO)
    assert agent.get_graph(xray=True).draw_mermaid() == drawing
    with raising(attempt):
        first, second = await attempt.inbox()
    assert world.done == ["look A"]
    await attempt.rest()
    await attempt.decide(first, "approve")
    await attempt.decide(second, "reject", message="too dear")
    attempt = await attempt.resume()
    with raising(attempt):
        assert told(attempt) == [
            ("success", "found A"),
            ("success", "paid A"),
            ("error", "human_required: pay was not called. too dear"),
        ]
    assert attempt.output["messages"][-1].content == "done"
    assert (world.done, model.sent) == (["look A", "pay A"], [0, 1])
    assert sorted((call.identity.kind, call.identity.name) for call in await attempt.calls()) == [
        ("model", "scripted:fake"),
        ("model", "scripted:fake"),
        ("tool", "look"),
        ("tool", "pay"),
    ]


async def test_unchanged_agent_stops_at_its_budget():
    world = World()
    model = fake(wishes(("look", {"order": "A"})), "done")
    agent = govern(create_agent(model, tools=[world.look]), name="agent")
    attempt = await Desk().start(agent, HELLO, limits=Limits(max_model_calls=1))
    with pytest.raises(BudgetExceeded, match="model calls"), raising(attempt):
        pass
    assert (model.sent, world.done) == ([0], ["look A"])


async def test_spent_budget_is_no_tools_answer_even_where_the_tool_node_makes_messages_of_errors():
    world = World()

    class Messages(TypedDict):
        messages: Annotated[list[Any], operator.add]

    builder = StateGraph(Messages).add_node("tools", ToolNode([world.look], handle_tool_errors=True))
    graph = govern(builder.add_edge(START, "tools").compile(), name="tools")
    attempt = await Desk().start(
        graph, {"messages": [wishes(("look", {"order": "A"}))]}, limits=Limits(max_tool_calls=0)
    )
    with pytest.raises(BudgetExceeded), raising(attempt):
        pass
    assert await attempt.nodes(EventKind.NODE_FAILED) == ["tools"]


async def test_refusals_are_told_to_the_model_and_failures_of_the_tool_are_its_own():
    world = World()

    @langchain_tool
    async def broken(order: str) -> str:
        """Break."""
        raise ToolException(f"no {order}")

    broken.metadata = {"effect": "read"}
    broken.handle_tool_error = True

    model = fake(wishes(("pay", {"order": "A"}), ("look", {"order": 3}), ("broken", {"order": "A"})), "done")
    agent = govern(create_agent(model, tools=[world.look, world.pay, broken]), name="agent")
    attempt = await Desk(autonomy=Autonomy.OBSERVE).start(agent, HELLO)
    with raising(attempt):
        denied, misfit, failed = told(attempt)
    assert denied[0] == "error"
    assert denied[1].startswith("policy_denied: ")
    assert misfit[0] == "error"
    assert "order" in misfit[1]
    assert failed == ("error", "no A")
    assert world.done == []


async def test_exception_of_a_tool_is_raised_as_it_was():
    @langchain_tool
    async def broken(order: str) -> str:
        """Break."""
        raise LookupError("as its author meant it")

    broken.metadata = {"effect": "read"}
    agent = govern(create_agent(fake(wishes(("broken", {"order": "A"})), "done"), tools=[broken]), name="agent")
    attempt = await Desk().start(agent, HELLO)
    with pytest.raises(LookupError, match="as its author meant it"), raising(attempt):
        pass


async def test_nothing_is_asked_or_done_twice_when_the_node_runs_again():
    world, model, tries = World(), fake("hello"), []

    async def node(state: State) -> dict:
        answer = await model.ainvoke("hi")
        seen = await world.look.ainvoke({"order": "A"})
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("the first attempt ends here")
        return {"log": [answer.content, seen]}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    await attempt.go(None)
    with raising(attempt):
        assert attempt.output["log"] == ["hello", "found A"]
    assert (model.sent, world.done) == ([0], ["look A"])
    assert len(await attempt.events(EventKind.MODEL_REPLAYED, EventKind.TOOL_REPLAYED)) == 2


async def test_message_artifact_and_command_come_back_whole_from_the_journal():
    tries = []

    @langchain_tool(response_format="content_and_artifact")
    async def chart(order: str) -> tuple[str, dict]:
        """Draw."""
        return "a chart", {"points": [1, 2]}

    @langchain_tool
    async def move(order: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:
        """Move on."""
        return Command(update={"log": [ToolMessage("moved", tool_call_id=tool_call_id)]}, goto="next")

    chart.metadata = move.metadata = {"effect": "read"}

    def asked(name: str) -> dict:
        return {"type": "tool_call", "id": f"id-{name}", "name": name, "args": {"order": "A"}}

    async def node(state: State) -> dict:
        tries.append([await chart.ainvoke(asked("chart")), await move.ainvoke(asked("move"))])
        if len(tries) == 1:
            raise ConnectionError("the first attempt ends here")
        return {}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    await attempt.go(None)
    with raising(attempt):
        first, second = tries
    assert len(await attempt.events(EventKind.TOOL_REPLAYED)) == 2
    assert isinstance(second[0], ToolMessage)
    assert (second[0].content, second[0].artifact, second[0].tool_call_id) == (
        "a chart",
        {"points": [1, 2]},
        "id-chart",
    )
    assert isinstance(second[1], Command)
    assert (second[1].goto, second[1].update["log"][0].content) == ("next", "moved")
    assert first[1].goto == second[1].goto


async def test_injected_arguments_reach_the_tool_and_are_no_part_of_the_call():
    seen = []

    @langchain_tool
    async def peek(order: str, state: Annotated[dict, InjectedState]) -> str:
        """Peek."""
        seen.append(len(state["messages"]))
        return "peeked"

    peek.metadata = {"effect": "read"}
    agent = govern(create_agent(fake(wishes(("peek", {"order": "A"})), "done"), tools=[peek]), name="agent")
    attempt = await Desk().start(agent, HELLO)
    with raising(attempt):
        [call] = [call for call in await attempt.calls() if call.identity.kind == "tool"]
    assert seen == [2]
    assert call.request["input"] == {"order": "A"}


async def test_edited_arguments_are_what_the_tool_gets():
    world = World()
    agent = govern(create_agent(fake(wishes(("pay", {"order": "A"})), "done"), tools=[world.pay]), name="agent")
    attempt = await Desk().start(agent, HELLO)
    [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, "edit", args={"order": "B"})
    attempt = await attempt.resume()
    with raising(attempt):
        assert told(attempt) == [("success", "paid B")]
    assert world.done == ["pay B"]


async def test_tool_of_ours_in_an_unchanged_agent_keeps_its_terms_and_its_key():
    keys = []
    from holdfast.gateway.toolset import ToolCall

    @tool(effect="read")
    async def keyed(order: str, *, call: ToolCall) -> str:
        """Look with a key."""
        keys.append((call.idempotency_key, call.tool_call_id))
        return "ok"

    agent = govern(create_agent(fake(wishes(("keyed", {"order": "A"})), "done"), tools=[keyed]), name="agent")
    attempt = await Desk().start(agent, HELLO)
    with raising(attempt):
        [call] = [call for call in await attempt.calls() if call.identity.kind == "tool"]
    assert keys == [(call.identity.key, "call-0")]
    assert agent.governance.toolset["keyed"].terms.effect == "read"


async def test_namesake_of_a_tool_does_not_get_its_terms():
    world = World()

    @langchain_tool("look")
    async def other(order: str) -> str:
        """Do something else."""
        world.done.append("other")
        return "other"

    async def node(state: State) -> dict:
        await other.ainvoke({"order": "A"})
        return {}

    attempt = await Desk().start(node_graph(node, world.look), {"x": "1"})
    with raising(attempt):
        assert len(await attempt.inbox()) == 1, "it is not known to be harmless, so a person is asked"
    assert world.done == []


async def test_what_a_tools_body_asks_is_governed_as_well():
    model, world = fake("inside"), World()

    @langchain_tool
    async def thinking(order: str) -> str:
        """Think."""
        await world.look.ainvoke({"order": order})
        return (await model.ainvoke("hi")).text

    thinking.metadata = {"effect": "read"}

    async def node(state: State) -> dict:
        return {"log": [await thinking.ainvoke({"order": "A"})]}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["inside"]
    assert [call.identity.name for call in await attempt.calls()] == ["thinking", "look", "scripted:fake"]


async def test_person_who_says_no_to_a_tool_called_by_the_nodes_code_is_an_exception_there():
    world, caught = World(), []

    async def node(state: State) -> dict:
        try:
            await world.pay.ainvoke({"order": "A"})
        except HumanRequired as error:
            caught.append(str(error))
        return {}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, "reject", message="no")
    attempt = await attempt.resume()
    with raising(attempt):
        assert caught == ["pay was not called. no"]


async def test_streams_and_batches_are_carried_in_one_piece():
    streaming, plain = fake("whole", kind=Streaming), fake("whole")

    async def node(state: State) -> dict:
        chunks = [chunk async for chunk in streaming.astream("hi")]
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        batch = await plain.abatch(["a", "b"])
        return {"log": [len(chunks), whole.text, *(answer.text for answer in batch)]}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == [1, "whole", "whole", "whole"]
    assert len(await attempt.calls()) == 3


async def test_sync_model_and_sync_tool_in_a_sync_node_are_carried():
    world, model = World(), fake("hello")

    def node(state: State) -> dict:
        parts = [chunk.text for chunk in model.stream("again")]
        return {"log": [model.invoke("hi").text, world.look.invoke({"order": "A"}), *parts]}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["hello", "found A", "hello"]
    assert [call.identity.name for call in await attempt.calls()] == ["scripted:fake", "scripted:fake", "look"]


async def test_sync_call_on_the_loop_is_refused():
    model = fake("hello")

    async def node(state: State) -> dict:
        model.invoke("hi")
        return {}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    with pytest.raises(ConfigurationError, match="await its asynchronous twin"), raising(attempt):
        pass
    assert model.sent == []


async def test_what_cannot_be_carried_is_refused():
    async def completes(state: State) -> dict:
        await FakeListLLM(responses=["x"]).ainvoke("hi")
        return {}

    async def streams(state: State) -> dict:
        stream = await fake("x", kind=Streaming).astream_events("hi", version="v3")
        await stream
        return {}

    for node in (completes, streams):
        attempt = await Desk().start(node_graph(node), {"x": "1"})
        with pytest.raises(NotGoverned, match="cannot be carried"), raising(attempt):
            pass


async def test_langchains_cache_answers_no_other_tenant():
    set_llm_cache(InMemoryCache())
    try:
        model = fake("hello")
        await model.ainvoke("hi")
        await model.ainvoke("hi")
        assert model.sent == [0], "outside a run nothing has changed"

        async def node(state: State) -> dict:
            return {"log": [(await model.ainvoke("hi")).text]}

        attempt = await Desk().start(node_graph(node), {"x": "1"})
    finally:
        set_llm_cache(None)
    with raising(attempt):
        assert model.sent == [0, 0]


@pytest.mark.parametrize("what", ["look", "pay", "model"])
async def test_nothing_carried_acts_after_the_lease_has_run_out_on_its_way(what: str):
    world, model = World(), fake("hello")

    async def node(state: State) -> dict:
        await (model.ainvoke("hi") if what == "model" else getattr(world, what).ainvoke({"order": "A-1"}))
        return {}

    with lapsing_at_the_door() as still_ours:
        attempt = await Desk().start(node_graph(node), {"x": "1"}, autonomy=Autonomy.AUTONOMOUS, still_ours=still_ours)
    assert isinstance(attempt.error, LeaseLost)
    assert (world.done, model.sent) == ([], [])
    [call] = await attempt.calls()
    assert call.status == "open"


async def test_other_settings_make_it_another_request():
    first, second = fake("hello"), fake("hello")
    second.temperature = 0.9

    async def node(state: State) -> dict:
        await first.bind(seed=1).ainvoke("hi")
        await first.bind(seed=2).ainvoke("hi")
        await first.bind(seed=1).ainvoke("hi")
        return {}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    with raising(attempt):
        calls = await attempt.calls()
    assert len({call.identity.request_digest for call in calls}) == 2
    assert [call.identity.occurrence for call in calls] == [0, 0, 1]


async def test_gateways_own_chat_model_is_not_carried_twice():
    async def node(state: State) -> dict:
        return {"log": [(await GatewayChatModel(route="scripted:governing_script:answer").ainvoke("hi")).text]}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    with raising(attempt):
        assert attempt.output["log"] == ["scripted"]
    assert len(await attempt.calls()) == 1


async def test_calls_left_running_by_a_failed_gather_end_with_their_node():
    started, ended = asyncio.Event(), asyncio.Event()

    @langchain_tool
    async def slow(order: str) -> str:
        """Take long."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    slow.metadata = {"effect": "read"}

    async def fail() -> None:
        await started.wait()
        raise LookupError("broken")

    async def node(state: State) -> dict:
        await asyncio.gather(slow.ainvoke({"order": "A"}), fail())
        return {}

    attempt = await Desk().start(node_graph(node), {"x": "1"})
    with pytest.raises(LookupError), raising(attempt):
        pass
    assert ended.is_set()


async def test_an_agent_on_the_gateways_own_chat_model_is_paid_for_once():
    @langchain_tool
    def look_up(order: str) -> str:
        """Look an order up."""
        return f"{order} was sent on Monday"

    look_up.metadata = {"effect": "read"}
    wish = ScriptedReply(tool_calls=(ToolCallRequest(id="call_1", name="look_up", args={"order": "A-1"}),))
    with scripted("gateway-agent", wish, "It was sent on Monday.") as script:
        graph = govern(create_agent(GatewayChatModel(route=script.model), tools=[look_up]), name="own")
        attempt = await Desk().start(graph, {"messages": [HumanMessage("where is A-1?")]})

    assert attempt.output["messages"][-1].content == "It was sent on Monday."
    assert sorted(call.identity.kind for call in await attempt.calls()) == ["model", "model", "tool"]
    assert script.sends == 2


def threads_of(model: Any, look_up: Any) -> Any:
    """A synchronous node that calls models and tools in a pool and in a thread of its own."""

    def fan_out(state: State) -> State:
        with ThreadPoolExecutor(2) as pool:
            texts = [answer.text for answer in pool.map(lambda text: model.invoke(text), ["one", "two"])]
        said: list[str] = []
        thread = Thread(target=lambda: said.append(look_up.invoke({"order": "A-1"})))
        thread.start()
        thread.join()
        return {"log": [*texts, *said]}

    return StateGraph(State).add_node("fan_out", fan_out).add_edge(START, "fan_out").compile()


async def test_models_and_tools_in_threads_of_a_node_are_carried_too():
    @langchain_tool
    def look_up(order: str) -> str:
        """Look an order up."""
        return f"{order} was sent"

    look_up.metadata = {"effect": "read"}
    attempt = await Desk().start(govern(threads_of(Fake(replies=["fine"]), look_up)), {"log": []})

    assert attempt.error is None
    assert attempt.output["log"] == ["fine", "fine", "A-1 was sent"]
    assert sorted(call.identity.kind for call in await attempt.calls()) == ["model", "model", "tool"]


async def test_a_pool_that_outlives_its_node_keeps_no_scope_of_it():
    pool = ThreadPoolExecutor(1)

    def use(state: State) -> State:
        return {"log": [pool.submit(lambda: scope_here() is not None).result()]}

    graph = govern(StateGraph(State).add_node("use", use).add_edge(START, "use").compile())
    attempt = await Desk().start(graph, {"log": []})

    assert attempt.output["log"] == [True]
    assert pool.submit(scope_here).result() is None
    pool.shutdown()


async def test_a_node_that_blocks_the_loop_on_its_own_thread_is_told_instead_of_hanging(monkeypatch):
    monkeypatch.setattr(bridge, "_TAKEN_UP_SECONDS", 0.2)

    async def block(state: State) -> State:
        with ThreadPoolExecutor(1) as pool:
            return {"log": [pool.submit(Fake(replies=["fine"]).invoke, "hi").result()]}

    graph = govern(StateGraph(State).add_node("block", block).add_edge(START, "block").compile())
    attempt = await Desk().start(graph, {"log": []})

    assert isinstance(attempt.error, ConfigurationError)
    assert "asyncio.to_thread" in str(attempt.error)
