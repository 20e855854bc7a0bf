"""What a graph put into its state is what it finds there after an approval, declared in a schema or not."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, NamedTuple

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.chat_models import init_chat_model
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt
from offices import Office
from pydantic import BaseModel
from typing_extensions import TypedDict

from holdfast import RunResult, RunStatus, govern
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.openai_server import HttpAnswer, completion, openai_server

IN_TIME = 20.0


class Mood(Enum):
    CALM = "calm"
    ANGRY = "angry"


class Verdict(BaseModel):
    """What the agent makes of a letter."""

    mood: Mood
    reasons: list[str]


class Spot(NamedTuple):
    shelf: int
    row: int


@dataclass
class Parcel:
    weight: int
    spot: Spot = Spot(1, 2)  # noqa: RUF009  # it never changes
    contents: "list[Ware]" = field(default_factory=list)


@dataclass
class Ware:
    name: str


@dataclass
class Job:
    parcel: Parcel


class Found(TypedDict, total=False):
    messages: Any
    structured_response: Any
    said: str


def verdict_by_tool(request: Mapping[str, Any]) -> HttpAnswer:
    return completion(tool_calls=[("Verdict", {"mood": "angry", "reasons": ["late"]})])


def verdict_as_text(request: Mapping[str, Any]) -> HttpAnswer:
    return completion('{"mood": "angry", "reasons": ["late"]}')


async def answered(runtime: Runtime, run: RunHandle) -> RunResult:
    """The run's result after every question was answered with yes."""
    while (result := await run.result(IN_TIME)).status is RunStatus.INTERRUPTED:
        for question in result.approvals:
            await runtime.decide(question.id, "respond", by="dana", message="yes")
    assert result.status is RunStatus.COMPLETED, result.error
    return result


@pytest.mark.parametrize(
    ("response_format", "reply"),
    [
        (Verdict, verdict_by_tool),
        (ToolStrategy(Verdict), verdict_by_tool),
        (ProviderStrategy(Verdict), verdict_as_text),
    ],
    ids=["class", "by tool", "by the provider"],
)
async def test_structured_response_of_an_agent_is_what_it_was_after_an_approval(
    office: Office, response_format: Any, reply: Any
):
    def file(state: Found) -> Found:
        interrupt("May it be filed?")
        return {"said": f"{state['structured_response'].mood.value}: {state['structured_response'].reasons[0]}"}

    async with openai_server(reply) as server, office.open() as runtime:
        model = init_chat_model("openai:gpt-4", base_url=server.base_url, api_key="a key", max_tokens=200)
        agent = create_agent(model, [], response_format=response_format, name="reader")
        builder = StateGraph(Found).add_node("read", agent).add_node("file", file)
        graph = builder.add_edge(START, "read").add_edge("read", "file").add_edge("file", END).compile(name="files")
        run = await runtime.start(graph, {"messages": [("user", "Where is it?")]}, tenant="acme")
        assert (await answered(runtime, run)).output["said"] == "angry: late"


class Held(TypedDict, total=False):
    held: Any
    kinds: dict[str, Any]
    seen: Annotated[list[str], operator.add]


def put(state: Held) -> Held:
    return {
        "held": [Parcel(3, contents=[Ware("lamp")]), Spot(5, 6)],
        "kinds": {"mood": Mood.CALM, "verdict": Verdict(mood=Mood.CALM, reasons=[])},
    }


def look(state: Held) -> Command[Any]:
    interrupt({"parcel": Parcel(4)})
    parcel, spot = state["held"]
    seen = f"{parcel.contents[0].name} {parcel.spot.row} {spot.shelf} {state['kinds']['mood'].name}"
    return Command(
        update={"held": state["kinds"]["verdict"], "seen": [seen]}, goto=[Send("move", Job(Parcel(n))) for n in (7, 8)]
    )


def move(job: Job) -> Held:
    interrupt("May it be moved?")
    return {"seen": [f"{job.parcel.weight} {job.parcel.spot.shelf}"]}


def end(state: Held) -> Held:
    return {"seen": [state["held"].mood.value]}


def desk() -> Any:
    builder = StateGraph(Held).add_node("put", put).add_node("look", look, destinations=("move",))
    builder.add_node("move", move, input_schema=dict).add_node("end", end)
    return builder.add_edge(START, "put").add_edge("put", "look").add_edge("move", "end").compile(name="desk")


@pytest.mark.parametrize("version", [None, "1.0"])
async def test_what_nodes_put_where_any_value_may_stand_is_what_it_was_after_an_approval(
    office: Office, version: str | None
):
    async with office.open() as runtime:
        run = await runtime.start(govern(desk(), version=version), {}, tenant="acme")
        result = await answered(runtime, run)
    assert result.output["seen"] == ["lamp 2 5 CALM", "7 1", "8 1", "calm"]
