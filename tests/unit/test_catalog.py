"""Graphs found by name or reference, and one clear line for each way in which that fails."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.contracts.errors import ConfigurationError, NotFound
from holdfast.server.catalog import read_catalog, twins

MODULE = """
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

class State(TypedDict):
    text: str

builder = StateGraph(State)
builder.add_node("shout", lambda state: {"text": state["text"].upper()})
builder.add_edge(START, "shout")
builder.add_edge("shout", END)
graph = builder.compile(name="own name")
number = 7

def factory():
    return builder.compile()

def configured(config):
    return builder.compile()

def failing():
    raise RuntimeError("no key")

async def later():
    return graph
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    (tmp_path / "my_graphs.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("my_graphs", "broken", "holdfast_graph_")):
            del sys.modules[name]


def write(graphs: object) -> None:
    Path("langgraph.json").write_text(json.dumps({"graphs": graphs}), encoding="utf-8")


@pytest.mark.parametrize(
    "entry",
    [
        "./my_graphs.py:graph",
        "my_graphs:graph",
        {"path": "my_graphs:graph", "description": "shouts"},
        "my_graphs:factory",
        "my_graphs:configured",
        "my_graphs:builder",
    ],
)
def test_a_name_leads_to_a_governed_graph_however_it_is_written(entry: object) -> None:
    write({"shouter": entry})
    graph = read_catalog().load("shouter")
    assert graph.governance.name == "shouter"
    assert "shout" in graph.nodes


def test_a_file_is_loaded_once_so_that_its_graph_stays_the_same() -> None:
    write({"shouter": "./my_graphs.py:graph"})
    assert read_catalog().load("shouter") is read_catalog().load("shouter")


def test_a_reference_needs_no_file_and_is_its_own_name() -> None:
    assert read_catalog().load("my_graphs:graph").governance.name == "my_graphs:graph"


def test_a_graph_that_its_author_governed_keeps_its_terms(folder: Path) -> None:
    governed = MODULE + "\nfrom holdfast.graphs.govern import govern\ngoverned = govern(graph, name='shouting desk')\n"
    (folder / "my_graphs.py").write_text(governed, encoding="utf-8")
    assert read_catalog().load("my_graphs:governed").governance.name == "shouting desk"


NAMED_OTHERWISE = """
from holdfast.graphs.govern import govern

unnamed = govern(builder.compile(), version="1")
other = govern(builder.compile(), version="2")
desk = govern(builder.compile(), name="shouting desk", version="1")
mute = govern(builder.compile(), name="mute", version="1")
"""


@pytest.mark.parametrize(
    ("recorded", "versions"),
    [("shouting desk", ["1", "1"]), ("LangGraph", ["1", "2"]), ("mute", ["1"]), ("my_graphs:builder", [None])],
)
def test_a_run_leads_back_to_its_graph_whatever_its_author_called_it(
    folder: Path, recorded: str, versions: list[str | None]
) -> None:
    (folder / "my_graphs.py").write_text(MODULE + NAMED_OTHERWISE, encoding="utf-8")
    names = {"one": "unnamed", "two": "other", "desk": "desk", "mute": "desk", "silent": "mute"}
    write({"bad": "broken:graph", **{name: f"my_graphs:{attribute}" for name, attribute in names.items()}})
    found = [graph.governance for graph in read_catalog().recorded_as(recorded)]
    assert {each.name for each in found} == {recorded}
    assert all(version in (None, each.version) for version, each in zip(versions, found, strict=True))


def test_graphs_whose_runs_could_not_be_told_apart_are_found(folder: Path) -> None:
    again = 'again = govern(builder.compile(), version="1")\nsigned = govern(builder.compile())\n'
    again += "signed_too = govern(builder.compile())\n"
    (folder / "my_graphs.py").write_text(MODULE + NAMED_OTHERWISE + again, encoding="utf-8")
    refs = ("unnamed", "other", "desk", "mute", "again", "signed", "signed_too")
    write({"bad": "broken:graph", "alias": "my_graphs:unnamed", **{ref: f"my_graphs:{ref}" for ref in refs}})
    catalog = read_catalog()
    assert {ref: catalog.twin_of(ref) for ref in refs if catalog.twin_of(ref)} == {"again": "alias"}
    assert "both called LangGraph, of version 1" in twins(catalog, "again", "alias")


def test_a_run_of_a_graph_that_is_not_here_says_which_are() -> None:
    write({"shouter": "my_graphs:graph"})
    with pytest.raises(NotFound, match=r"no graph 'desk'; langgraph\.json names: shouter"):
        read_catalog().recorded_as("desk")


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    write({"shouter": "my_graphs:graph", "agent": "my_graphs:factory"})
    with pytest.raises(NotFound, match=r"no graph 'shuoter'; langgraph\.json names: agent, shouter"):
        read_catalog().load("shuoter")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("broken:graph", "broken cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("absent:graph", "absent cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        ("./absent.py:graph", "there is no file .*absent.py"),
        ("my_graphs:grahp", "my_graphs has no 'grahp'"),
        ("my_graphs:number", "my_graphs:number is a int, not a compiled graph"),
        ("my_graphs:failing", "its factory failed: RuntimeError: no key"),
        ("my_graphs:later", "its factory must be a plain function"),
        ("my_graphs", "is not of the form module:attribute"),
    ],
)
def test_a_graph_that_cannot_be_loaded_says_why_in_one_line(entry: str, said: str) -> None:
    write({"broken": entry})
    with pytest.raises(ConfigurationError, match=said) as refused:
        read_catalog().load("broken")
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "langgraph.json is not JSON"), ("[]", "names no graphs"), ('{"graphs": {"a": 7}}', "names no graphs")],
)
def test_a_file_that_is_none_is_refused(text: str, said: str) -> None:
    Path("langgraph.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        read_catalog()


def test_without_a_file_there_are_no_names() -> None:
    assert list(read_catalog()) == []
    with pytest.raises(ConfigurationError, match=r"absent\.json cannot be read"):
        read_catalog(Path("absent.json"))


def test_a_file_of_the_project_is_the_module_that_the_project_itself_imports():
    write({"shout": "./my_graphs.py:graph"})

    loaded = read_catalog().load("shout")

    assert loaded.builder.state_schema.__module__ == "my_graphs"


def test_a_file_that_shares_its_name_with_another_module_is_loaded_all_the_same(folder):
    (folder / "json.py").write_text(MODULE, encoding="utf-8")
    write({"shout": "./json.py:graph"})

    loaded = read_catalog().load("shout")

    assert loaded.builder.state_schema.__module__ == "holdfast_graph_json"
