"""LangChain's models and tools, unchanged, carried through the doors.

As instrumentations do, the base classes are given a watchful entry once per process. Outside governed nodes nothing
changes. Inside one a model's request is the gateway's and a tool's call is the executor's: policy, budget, deadline,
journal and approval hold, and what goes out at the far end is the original.

Carried: chat models by `invoke`, `ainvoke` and batches, and by `stream` and `astream` (in one piece); tools by every
way. Refused inside a node: text-completion models, and a model's own `stream_events(version="v3")`. Out of reach: raw
provider SDKs and embeddings. Threads and pools that a node starts carry its scope (`nodes.threads`).
"""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools import Tool as SimpleTool

from holdfast.contracts.classification import contained
from holdfast.contracts.errors import NotGoverned
from holdfast.contracts.scope import scope_here
from holdfast.nodes.bridge import in_thread, on_loop
from holdfast.nodes.carried_models import as_chunk, carried_model
from holdfast.nodes.carried_tools import carried_tool
from holdfast.nodes.carrying import carry
from holdfast.nodes.inside import is_asking_model, is_performing, performing
from holdfast.nodes.place import counting_here
from holdfast.nodes.retries import carry_retries
from holdfast.nodes.session import session_of
from holdfast.nodes.threads import carry_threads


def carry_langchain() -> None:
    """See to it that LangChain's models and tools are carried wherever a scope is. Doing it twice changes nothing."""
    carry_threads()
    carry_retries()
    for owner, name, watch in (
        (BaseChatModel, "_agenerate_with_cache", _ask),
        (BaseChatModel, "_generate_with_cache", _ask_from_thread),
        (BaseChatModel, "astream", _astream),
        (BaseChatModel, "stream", _stream),
        (BaseChatModel, "_achat_model_stream_v3", _refused_events),
        (BaseChatModel, "_chat_model_stream_v3", _refused_events),
        (BaseLLM, "generate", _refused_completion),
        (BaseLLM, "agenerate", _refused_completion),
        (BaseLLM, "stream", _refused_completion),
        (BaseLLM, "astream", _refused_completion),
        (StructuredTool, "_arun", _contained),
        (StructuredTool, "ainvoke", _on_the_loop),
        (SimpleTool, "ainvoke", _on_the_loop),
        (BaseTool, "arun", _use),
        (BaseTool, "run", _use_from_thread),
    ):
        carry(owner, name, watch)


def _standing_here(options: dict[str, Any]) -> dict[str, Any]:
    """A tool's options with the config that its body is to stand in: it was made before the executor had it act."""
    config = options.get("config")
    return options if config is None else {**options, "config": counting_here(config)}


def _carries() -> bool:
    return scope_here() is not None and not is_asking_model()


def _ask(original: Callable[..., Any]) -> Callable[..., Any]:
    async def ask(
        self: BaseChatModel, messages: Any, stop: Any = None, run_manager: Any = None, **settings: Any
    ) -> Any:
        if not _carries():
            return await original(self, messages, stop=stop, run_manager=run_manager, **settings)

        async def send(model: BaseChatModel) -> Any:
            return await original(model, messages, stop=stop, run_manager=run_manager, **settings)

        return await carried_model(self, messages, stop, settings, send)

    return ask


def _ask_from_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    def ask(self: BaseChatModel, messages: Any, stop: Any = None, run_manager: Any = None, **settings: Any) -> Any:
        if not _carries():
            return original(self, messages, stop=stop, run_manager=run_manager, **settings)

        async def send(model: BaseChatModel) -> Any:
            return await in_thread(
                functools.partial(original, model, messages, stop=stop, run_manager=run_manager, **settings)
            )

        what = f"{type(self).__name__}.invoke()"
        return on_loop(session_of(what), lambda: carried_model(self, messages, stop, settings, send), what=what)

    return ask


def _astream(original: Callable[..., Any]) -> Callable[..., Any]:
    async def astream(self: BaseChatModel, *args: Any, **options: Any) -> AsyncIterator[Any]:
        if _carries():
            yield as_chunk(await self.ainvoke(*args, **options))
            return
        async for chunk in original(self, *args, **options):
            yield chunk

    return astream


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def stream(self: BaseChatModel, *args: Any, **options: Any) -> Iterator[Any]:
        if _carries():
            yield as_chunk(self.invoke(*args, **options))
            return
        yield from original(self, *args, **options)

    return stream


def _refused_events(original: Callable[..., Any]) -> Callable[..., Any]:
    return _refused(original, 'stream_events(version="v3") of a model', "use ainvoke or astream")


def _refused_completion(original: Callable[..., Any]) -> Callable[..., Any]:
    return _refused(original, "a text-completion model", "use a chat model, or context.models.call")


def _refused(original: Callable[..., Any], what: str, instead: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **options: Any) -> Any:
        if _carries():
            raise NotGoverned(
                f"{what} cannot be carried through the gateway, so a governed node may not use it; {instead}",
                action=type(self).__name__,
                rule="langchain.carried",
            )
        return original(self, *args, **options)

    return call


def _contained(original: Callable[..., Any]) -> Callable[..., Any]:
    """LangChain gives a tool's body a task of its own, from where `sys.exit()` would end the loop."""

    async def act(self: StructuredTool, *args: Any, **arguments: Any) -> Any:
        with contained():
            return await original(self, *args, **arguments)

    return act


def _on_the_loop(original: Callable[..., Any]) -> Callable[..., Any]:
    """A synchronous tool's `ainvoke` would wait for the executor in one of the loop's few threads, while the executor
    may need one to ask the tool for its preview. Carried, it waits on the loop, and only its body has a thread."""

    async def use(self: BaseTool, *args: Any, **options: Any) -> Any:
        if scope_here() is None or is_performing(self):
            return await original(self, *args, **options)
        return await BaseTool.ainvoke(self, *args, **options)

    return use


def _use(original: Callable[..., Any]) -> Callable[..., Any]:
    async def use(self: BaseTool, tool_input: Any, *args: Any, **options: Any) -> Any:
        if scope_here() is None:
            return await original(self, tool_input, *args, **options)
        if is_performing(self):
            with performing(None):
                return await original(self, tool_input, *args, **options)

        async def act(given: Any) -> Any:
            return await original(self, given, *args, **_standing_here(options))

        return await carried_tool(self, tool_input, options.get("tool_call_id"), act)

    return use


def _use_from_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    def use(self: BaseTool, tool_input: Any, *args: Any, **options: Any) -> Any:
        if scope_here() is None:
            return original(self, tool_input, *args, **options)
        if is_performing(self):
            with performing(None):
                return original(self, tool_input, *args, **options)

        async def act(given: Any) -> Any:
            return await in_thread(functools.partial(original, self, given, *args, **_standing_here(options)))

        what = f"{self.name}.invoke()"
        carried = functools.partial(carried_tool, self, tool_input, options.get("tool_call_id"), act)
        return on_loop(session_of(what), carried, what=what)

    return use
