"""Finds clients of model providers that pass no door: a node that uses one is neither paid for nor recorded.

LangChain's models are carried through the gateway; a raw SDK in a node's module is out of reach in-process. This reads
the source of the modules that a graph's nodes stand in.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from langgraph.pregel import Pregel

from holdfast.graphs.govern import functions_of

RAW_CLIENTS = frozenset(
    {
        "anthropic",
        "cohere",
        "google.genai",
        "google.generativeai",
        "groq",
        "litellm",
        "mistralai",
        "ollama",
        "openai",
        "together",
    }
)
"""Packages that call a model provider by themselves."""


def raw_clients(graph: Pregel[Any, Any, Any, Any]) -> list[str]:
    """`file:line: package` for every import of a raw client in the modules of the graph's nodes, tools excepted:
    a tool that calls a model itself is a tool, and governed as one."""
    modules = {inspect.getmodule(function) for function in functions_of(graph)}
    return sorted(found for module in modules if module is not None for found in _imports_in(module))


def _imports_in(module: ModuleType) -> Iterator[str]:
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py") or _is_a_library(module):
        return
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        for package in _imported(node):
            if any(package == raw or package.startswith(f"{raw}.") for raw in RAW_CLIENTS):
                yield f"{Path(file).name}:{getattr(node, 'lineno', 0)}: {package}"


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [name.name for name in node.names]
        case ast.ImportFrom(module=str(module)) if node.level == 0:
            return [module, *(f"{module}.{name.name}" for name in node.names)]
        case _:
            return []


def _is_a_library(module: ModuleType) -> bool:
    """LangChain's own integrations import what they carry; they are carried in turn."""
    return module.__name__.startswith(("langchain", "langgraph"))
