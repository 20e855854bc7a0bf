"""Raw provider SDKs in the modules of a graph's nodes are found; LangChain's integrations are not taken for one."""

import importlib

import pytest

from holdfast.server.catalog import read_catalog
from holdfast.server.raw_clients import raw_clients

NODE = """
{imports}
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

class State(TypedDict):
    text: str

async def speak(state: State) -> State:
    return state

builder = StateGraph(State)
builder.add_node("speak", speak)
builder.add_edge(START, "speak")
builder.add_edge("speak", END)
graph = builder.compile()
"""


@pytest.mark.parametrize(
    ("imports", "package"),
    [
        ("import openai", "openai"),
        ("from anthropic import AsyncAnthropic", "anthropic"),
        ("import openai.types", "openai.types"),
    ],
)
def test_a_raw_client_in_a_nodes_module_is_found_with_its_line(imports, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"speaking_{abs(hash(imports))}"
    (tmp_path / f"{name}.py").write_text(NODE.format(imports=imports), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()

    assert f"{name}.py:2: {package}" in raw_clients(read_catalog().load(f"{name}:graph"))


def test_our_own_graphs_use_no_raw_client():
    for name in ("agent", "supervisor", "refund_desk"):
        assert raw_clients(read_catalog().load(f"holdfast.graphs.{name}:graph")) == []
