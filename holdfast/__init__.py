"""holdfast runs LangGraph agents in production.

The public face. `open_runtime()` gives a `Runtime`; `govern()` puts a compiled graph under our terms; `RunContext` and
`current()` are what a node sees; `tool` declares what a tool does to the world.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.contracts.errors import HoldfastError
    from holdfast.contracts.limits import Limits
    from holdfast.contracts.runs import RunResult, RunStatus
    from holdfast.contracts.tenancy import Principal
    from holdfast.gateway.chat_model import chat_model
    from holdfast.gateway.toolset import ToolCall, tool
    from holdfast.graphs.govern import govern
    from holdfast.nodes.context import RunContext, current
    from holdfast.nodes.fanout import Specialist
    from holdfast.server.bootstrap import open_blocking_runtime, open_runtime

__all__ = [
    "HoldfastError",
    "Limits",
    "Principal",
    "RunContext",
    "RunResult",
    "RunStatus",
    "Specialist",
    "ToolCall",
    "chat_model",
    "current",
    "govern",
    "open_blocking_runtime",
    "open_runtime",
    "tool",
]

# Loaded when first asked for (PEP 562): every room imports this package, and none should pay for all the others.
_ROOM = {
    "HoldfastError": "contracts.errors",
    "Limits": "contracts.limits",
    "Principal": "contracts.tenancy",
    "RunContext": "nodes.context",
    "RunResult": "contracts.runs",
    "RunStatus": "contracts.runs",
    "Specialist": "nodes.fanout",
    "ToolCall": "gateway.toolset",
    "chat_model": "gateway.chat_model",
    "current": "nodes.context",
    "govern": "graphs.govern",
    "open_blocking_runtime": "server.bootstrap",
    "open_runtime": "server.bootstrap",
    "tool": "gateway.toolset",
}


def __getattr__(name: str) -> object:
    if name not in _ROOM:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(f"holdfast.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return __all__
