"""Whose runs a graph goes on with: what may be declared, what it holds, and which of several graphs it is."""

from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from holdfast import govern
from holdfast.contracts.errors import InvalidRequest, NotFound
from holdfast.contracts.runs import GraphVersion
from holdfast.contracts.workers import ServedGraph
from holdfast.policies.compatibility import Compatibility, serves, unserved
from holdfast.runtime.registry import Registry


class State(TypedDict, total=False):
    text: str


def graph(version: str | None = None, **terms: Any) -> Any:
    builder = StateGraph(State).add_node("node", lambda state: state).add_edge(START, "node")
    return govern(builder.compile(), name="desk", version=version, **terms)


def registered(*graphs: Any) -> Registry:
    registry = Registry()
    for each in graphs:
        registry.add(each)
    return registry


@pytest.mark.parametrize(
    ("declared", "admitted", "refused"),
    [
        ("same", [], ["2.0", "same", "code-1"]),
        (">=2.0,<3", ["2.0", "2.1.0", "2.1rc1", "2.9.9"], ["1.9", "3.0", "code-2", "two", "", "2024-11-a"]),
        ("~=2.1", ["2.1", "2.9"], ["2.0", "3.0"]),
        ("2.0", ["2.0"], ["2", "2.0.0", "2.0.1"]),
        ("code-12a3", ["code-12a3"], ["code-12a4"]),
        (["same", ">=2,<3", "blue", "1.4"], ["2.5", "blue", "1.4"], ["1.5", "green", "same"]),
        ([], [], ["2.0"]),
    ],
)
def test_what_is_declared_holds_these_versions_and_not_those(declared, admitted, refused):
    compatibility = Compatibility.of(declared, version="2.1.0")
    assert [version for version in [*admitted, *refused] if compatibility.admits(version)] == admitted
    told = ServedGraph(name="desk", version="9", compatible=compatibility.texts)
    others = [GraphVersion("desk", version) for version in [*admitted, *refused]]
    assert [each.version for each in others if serves(told, each)] == admitted, "what others are told means the same"


@pytest.mark.parametrize(
    ("declared", "version", "complaint"),
    [
        (">=two", "2.1", "is no range of version numbers"),
        (">", "2.1", "is no range of version numbers"),
        ("", "2.1", 'compatible is "same"'),
        ([2], "2.1", 'compatible is "same"'),
        (">=2,<3", None, "version= must be one"),
        (">=2,<3", "blue", "version= must be one"),
    ],
)
def test_what_is_no_declaration_is_refused_when_the_graph_is_governed(declared, version, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        graph(version, compatible=declared)


def test_a_graph_serves_its_own_version_and_no_other_graphs():
    desk = graph("2.1", compatible=">=2,<3").governance.served
    wanted = [GraphVersion("desk", "2.1"), GraphVersion("desk", "1.0"), GraphVersion("shop", "2.1")]
    assert unserved(wanted, [desk]) == set(wanted[1:])
    assert unserved(wanted, []) == set(wanted)


def test_the_very_version_is_preferred_and_then_the_one_registered_last():
    old, older, new = graph("2.0"), graph("2.1", compatible=">=2,<3"), graph("2.2", compatible=">=1,<3")
    registry = registered(older, old, new)
    assert registry.resolve("desk", "2.0") is old
    assert registry.resolve("desk", "2.1") is older
    assert registry.resolve("desk", "2.1.5") is new
    assert registry.resolve("desk", "1.5") is new
    with pytest.raises(NotFound, match=r"version '3\.0'.*its versions here are 2\.1, 2\.0, 2\.2"):
        registry.resolve("desk", "3.0")


def test_a_worker_claims_what_is_named_and_what_lies_in_a_range_of_what_there_is():
    registry = registered(graph("2.0"), graph("2.1", compatible=[">=2,<3", "blue"]))
    there = [GraphVersion("desk", "2.0.5"), GraphVersion("desk", "1.0"), GraphVersion("desk", "2.0")]
    assert registry.ranged() == ["desk"]
    assert registry.served(there) == {
        ("desk", "2.0"): "2.0",
        ("desk", "2.1"): "2.1",
        ("desk", "blue"): "2.1",
        ("desk", "2.0.5"): "2.1",
    }
    assert registered(graph("2.0", compatible="blue")).ranged() == [], "nobody need be asked which versions there are"
