"""What a graph may find in its state again: the data that its own code names or holds, and nothing that acts."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, NamedTuple, TypeVar

import packing
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.output_parsers import PydanticOutputParser
from langchain_core.prompt_values import StringPromptValue
from langchain_core.tools import tool
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from packaging.version import Version
from pydantic import BaseModel, ImportString
from pydantic.v1 import BaseModel as OldModel
from pydantic_settings import BaseSettings
from typing_extensions import TypedDict

from holdfast import govern
from holdfast.checkpoints.serialization import declared_types, strict_serializer
from holdfast.contracts.errors import InvalidRequest
from holdfast.graphs.stored import told_of_what_stays_plain


class State(TypedDict, total=False):
    held: Any


class Answer(BaseModel):
    text: str


class Old(OldModel):
    text: str


class Part(BaseModel):
    text: str


@dataclass
class Whole:
    parts: "list[Part]"


class Colour(Enum):
    RED = "red"


class Place(NamedTuple):
    row: int


class Money(Decimal):
    pass


class Note(HumanMessage):
    pass


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]


class Loose(BaseModel):
    """Of the same project, and used by no graph."""

    text: str


class OurModel(FakeListChatModel):
    pass


class OurParser(PydanticOutputParser[Answer]):
    pass


class OurSettings(BaseSettings):
    token: str = ""


@dataclass
class Machine:
    model: Any


class Outer:
    @dataclass
    class Machine:
        size: int


class OurDesk(BaseModel):
    model: FakeListChatModel


class OurDesks(BaseModel):
    desks: dict[str, list[OurDesk | None]]


class OurImport(BaseModel):
    what: ImportString[Any] | None = None


class Cited(BaseModel):
    """Which holds what is read anyway."""

    messages: list[AnyMessage]
    documents: list[Document]


class Early(BaseModel):
    late: "Late | None" = None


class EarlyDesk(BaseModel):
    late: "LateDesk | None" = None


class Late(BaseModel):
    text: str


class LateDesk(BaseModel):
    model: FakeListChatModel


class Client:
    def __init__(self, url: str) -> None:
        self.url = url


DATA = [Answer, Cited, Whole, Colour, Place, Money, Note, Early]


def graph_of(node: Any, **terms: Any) -> Any:
    return govern(StateGraph(State).add_node("node", node).add_edge(START, "node").compile(), **terms)


def names(graph: Any) -> set[str]:
    """The classes of these tests that a graph may find again."""
    return {name for module, name in graph.governance.stored_types if module in {__name__, packing.__name__}}


def makes(*classes: Any) -> Callable[[Any], Any]:
    """A node whose closure holds these classes."""

    def node(state: State) -> State:
        return {"held": [cls() for cls in classes]}

    return node


def by_name(state: State) -> State:
    return {"held": helper()}


def helper() -> Any:
    return Answer(text="yes")


def by_a_dot(state: State) -> State:
    return {"held": packing.Box(None, [])}


def by_annotation(state: State) -> "Answer | dict[str, list[Place]]":
    return state["held"]


class Worker:
    def __init__(self, kinds: dict[str, type]) -> None:
        self.kinds = kinds

    def __call__(self, state: State) -> State:
        return {"held": self.kinds["answer"]()}


@tool
def look_up(colour: Colour) -> str:
    """Look a colour up."""
    return str(Whole([]))


@pytest.mark.parametrize(
    ("node", "found"),
    [
        (by_name, {"Answer"}),
        (by_a_dot, {"Box", "Lid", "Inside"}),
        (by_annotation, {"Answer", "Place"}),
        (makes(*DATA), {"Answer", "Cited", "Whole", "Part", "Colour", "Place", "Money", "Note", "Early", "Late"}),
        (makes(list[Answer], Page[Place]), {"Answer", "Page", "Page[Place]", "Place"}),
        (Worker({"answer": Answer}), {"Answer"}),
        (lambda state: {"held": [Colour.RED, Page]}, {"Colour", "Page"}),
    ],
    ids=["by a name", "by a dot", "by annotation", "in a closure", "as a parameter", "in an object", "as a member"],
)
def test_data_that_the_code_of_a_graph_names_or_holds_is_found_with_what_it_consists_of(node, found):
    assert names(graph_of(node)) == found
    assert names(graph_of(node, version="1")) == found


def test_data_that_tools_and_agents_are_given_is_found():
    class Hook(AgentMiddleware):
        def after_model(self, state: Any, runtime: Any) -> Any:
            return {"held": Place(1)}

    model = FakeListChatModel(responses=["yes"])
    agent = create_agent(model, [], response_format=ToolStrategy(Answer | Whole), middleware=[Hook()])
    assert names(govern(agent)) == {"Answer", "Whole", "Part", "Place"}
    assert names(graph_of(by_name, tools=[look_up])) == {"Answer", "Colour", "Whole", "Part"}


def test_data_of_a_graph_that_a_node_calls_is_found():
    inner = StateGraph(State).add_node("node", makes(Answer)).add_edge(START, "node").compile()

    async def node(state: State) -> State:
        return await inner.ainvoke(state)

    assert names(graph_of(node)) == {"Answer"}


OURS = [OurModel, OurParser, OurSettings, OurImport, OurDesk, OurDesks, EarlyDesk, Client, Outer.Machine]
OTHERS = [FakeListChatModel, StringPromptValue, Version]


def test_what_acts_or_is_an_installed_packages_or_cannot_be_told_by_its_name_is_not_found():
    graph = graph_of(makes(*OURS, *OTHERS))
    assert graph.governance.stored_types == {(__name__, "Answer")}, "which the parser names"


def read_again(graph: Any, value: Any) -> Any:
    stored = JsonPlusSerializer().dumps_typed(value)
    return strict_serializer(declared_types(graph) | graph.governance.stored_types).loads_typed(stored)


def test_values_are_read_as_the_graph_wrote_them():
    graph = graph_of(makes(*DATA))
    cited = Cited(messages=[HumanMessage("hi")], documents=[Document("a page")])
    early = Early(late=Late(text="c"))
    values = [Answer(text="a"), cited, early, Whole([Part(text="b")]), Colour.RED, Place(1), Money("2.50"), Note("hi")]
    assert read_again(graph, values) == values
    assert [type(each) for each in read_again(graph, values)] == [type(each) for each in values]


def test_what_the_graph_does_not_reach_or_an_installed_package_has_is_read_as_plain_data():
    graph = graph_of(makes(Answer, StringPromptValue, OurModel, OurDesk))
    assert read_again(graph, [Loose(text="a"), packing.Unreached(3)]) == [{"text": "a"}, {"width": 3}]
    for value in (StringPromptValue(text="a"), OurModel(responses=["a"]), OurDesk(model=OurModel(responses=["a"]))):
        assert type(read_again(graph, value)) is dict


def test_types_that_nothing_names_can_be_declared():
    graph = graph_of(by_name, types=[Loose, Whole, Old, StringPromptValue])
    assert names(graph) == {"Answer", "Loose", "Whole", "Part", "Old"}
    for value in (Loose(text="a"), Old(text="a"), StringPromptValue(text="a")):
        assert read_again(graph, value) == value
    assert graph_of(by_name).governance.version != graph.governance.version
    # A declared class of an installed package makes nothing else of that package's the project's own.
    assert {module for module, _ in graph.governance.stored_types} == {__name__, StringPromptValue.__module__}


def test_types_that_a_graph_below_declares_are_its_callers_too():
    inner = graph_of(by_name, types=[Loose])
    assert names(graph_of(inner)) == {"Answer", "Loose"}


@pytest.mark.parametrize("wrong", [Client, "Answer", Outer.Machine, State, list[Answer]])
def test_types_of_which_nothing_can_be_made_again_are_refused(wrong):
    with pytest.raises(InvalidRequest, match="types="):
        graph_of(by_name, types=[wrong])


def test_value_without_end_hides_no_class_of_a_graph_whose_version_is_named():
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]

    def node(state: State) -> State:
        return {"held": [deep, Answer(text="a")]}

    assert "Answer" in names(graph_of(node, version="1"))


def test_class_of_which_a_value_stays_plain_is_told_once_with_what_to_do(caplog: pytest.LogCaptureFixture):
    stored = JsonPlusSerializer().dumps_typed(Answer(text="yes"))
    with told_of_what_stays_plain():
        read = [strict_serializer().loads_typed(stored) for _ in range(2)]
    assert read == [{"text": "yes"}] * 2
    strict_serializer().loads_typed(JsonPlusSerializer().dumps_typed(Colour.RED))
    [told] = [record.getMessage() for record in caplog.records if record.name == "holdfast.graphs.stored"]
    assert "types=[Answer]" in told
