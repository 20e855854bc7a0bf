"""`govern(graph)`: anyone's compiled graph, run under our terms without a change to it.

LangGraph has inferred schemas, injected arguments and drawn edges by the time a graph is compiled, so that is where
we come in: each node's body is exchanged for one that asks our middleware first. The drawing and the schemas stay.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import run_in_executor
from langgraph._internal._runnable import RunnableCallable
from langgraph.graph import StateGraph
from langgraph.graph._branch import BranchSpec
from langgraph.pregel import Pregel
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._retry import _should_retry_on as langgraph_would_retry
from langgraph.types import RetryPolicy

from holdfast.contracts.errors import HoldfastError, InvalidRequest, InvariantViolated
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.toolset import Tool, Toolset
from holdfast.graphs.governed import Governance, GovernedGraph
from holdfast.graphs.signature import signature
from holdfast.graphs.stored import require_data, stored_types
from holdfast.nodes.bridge import in_thread, on_loop
from holdfast.nodes.langchain import carry_langchain
from holdfast.nodes.middleware import around
from holdfast.nodes.place import NodeKind, Place, drop_writes, standing_at
from holdfast.nodes.session import session_of
from holdfast.policies.compatibility import Compatibility

Compiled = Pregel[Any, Any, Any, Any]
G = TypeVar("G", bound=Compiled)


def govern(
    graph: G,
    *,
    name: str | None = None,
    version: str | None = None,
    compatible: str | Sequence[str] = "same",
    tools: Sequence[Any] = (),
    policies: Sequence[str] = (),
    default_model: str | None = None,
    autonomy: Autonomy | None = None,
    types: Sequence[type] = (),
) -> G:
    """Put a compiled graph under our terms, in place, and return it: the same object, of a subclass of its class.

    Every node, subgraph, conditional edge and error handler asks the middleware first; retry policies try again only
    what may be. Doing it twice changes nothing but the terms. `name` and `version` are what runs are pinned to; left
    out, they are the graph's own name and a digest of its topology, its schemas and its code. `compatible` says whose
    runs this code goes on with besides those of its own version: `"same"` (nobody's), a range of version numbers
    (`">=2.0,<3"`, PEP 440), a version by name, or a list of these. `tools` are LangChain tools and plain functions that
    the graph may call by name; `policies` are texts of Cedar rules that hold for it beside the configuration's. `types`
    are classes of data that may be in its state besides those that its schemas and its own code name. LangChain models
    and tools of the graph's own are carried through the doors as they are. Raises `InvalidRequest` for what is not a
    compiled graph, or caches its nodes, for a range that is none, and for types of which nothing can be made again.
    """
    if isinstance(graph, StateGraph):
        raise InvalidRequest("govern() takes a compiled graph: write govern(builder.compile(), …)")
    if not isinstance(graph, Pregel):
        raise InvalidRequest(f"govern() takes a compiled LangGraph graph, not {type(graph).__name__}")
    compatibility = Compatibility.of(compatible, version=version)
    for each in graphs_of(graph):
        _require_uncached(each)
    carry_langchain()
    toolset = _toolset(graph, tools)
    given = _Given([toolset[name].source or toolset[name] for name in sorted(toolset)], _types(graph, types))
    # Both are worked out when they are first asked for: by then the modules that the functions stand in are whole.
    versioned = _versioned(graph, version, given)
    stored = cache(lambda: stored_types(graph, given.tools, given.types, body_of=_inner))
    for each in graphs_of(graph):
        _rewrite(each)
        if not isinstance(each, GovernedGraph):
            own = Governance(name=each.name, versioned=versioned, stored=stored, toolset=Toolset())
            _adopt(each, own)
    terms = Governance(
        name=name or graph.name,
        versioned=versioned,
        stored=stored,
        types=given.types,
        compatible=compatibility,
        toolset=toolset,
        policies=tuple(policies),
        default_model=default_model,
        autonomy=autonomy,
    )
    _adopt(graph, terms)
    assert_governed(graph)
    return graph


class _Given(NamedTuple):
    """What a graph is read with."""

    tools: Sequence[Any]
    types: tuple[type, ...]


def _versioned(graph: Compiled, version: str | None, given: _Given) -> Callable[[], str]:
    """The version that runs are pinned to: the one given, or the graph's signature."""
    if version is not None:
        return lambda: version
    return cache(lambda: signature(graph, given.tools, given.types, body_of=_inner))


def _require_uncached(graph: Compiled) -> None:
    cached = [name for name, node in graph.nodes.items() if node.cache_policy is not None]
    if cached or graph.cache_policy is not None:
        raise InvalidRequest(
            f"graph {graph.name!r} caches nodes ({', '.join(cached) or 'all'}): their key knows no tenant, and "
            "its hits pass every check by. Leave the cache policy out; the journal answers what a node has asked before"
        )


def graphs_of(graph: Compiled) -> list[Compiled]:
    """The graph and every graph below it that LangGraph finds: nodes that are graphs, and graphs in nodes' bodies."""
    found: dict[int, Compiled] = {}

    def visit(each: Compiled) -> None:
        if id(each) in found:
            return
        found[id(each)] = each
        for node in each.nodes.values():
            for below in node.subgraphs:
                if isinstance(below, Pregel):
                    visit(below)

    visit(graph)
    return list(found.values())


def assert_governed(graph: Compiled) -> None:
    """Raise `InvariantViolated` naming a node, edge or subgraph that escapes the middleware."""
    for each in graphs_of(graph):
        escaped = next(_escaped(each), None)
        if escaped is not None:
            raise InvariantViolated(f"{escaped} of graph {each.name!r} escapes governance; call govern() on it again")


def _nodes(graph: Compiled) -> Iterator[tuple[int, str, PregelNode]]:
    for index, each in enumerate(graphs_of(graph)):
        for name, node in each.nodes.items():
            yield index, name, node


def functions_of(graph: Compiled) -> Iterator[Any]:
    """The bodies of a graph's nodes and of the graphs in it, as they were written."""
    return (_body_of(node.bound) for _, _, node in _nodes(graph))


def _inner(bound: Any) -> Any:
    return bound.inner if isinstance(bound, GovernedNode) else bound


def _body_of(bound: Runnable[Any, Any]) -> Any:
    body = _inner(bound)
    return body if _is_graph(body) else getattr(body, "func", None) or getattr(body, "afunc", None) or body


def _escaped(graph: Compiled) -> Iterator[str]:
    if not isinstance(graph, GovernedGraph):
        yield "the whole"
    for name, node in graph.nodes.items():
        if node.bound is not DEFAULT_BOUND and not isinstance(node.bound, GovernedNode):
            yield f"node {name!r}"
        if any(_branch_of(writer) is not None for writer in node.writers):
            yield f"a conditional edge of {name!r}"


def _adopt(graph: Compiled, terms: Governance) -> None:
    base = next(kind for kind in type(graph).__mro__ if not issubclass(kind, GovernedGraph))
    own = type(f"Governed{base.__name__}", (GovernedGraph, base), {"governance": terms, "__module__": base.__module__})
    graph.__class__ = own


def _toolset(graph: Compiled, tools: Sequence[Any]) -> Toolset:
    """The tools given, and those that the graph's own tool nodes and the governed graphs below it have besides. Of two
    with one name the one given here counts; LangChain tools that are called as objects keep their own terms."""
    entries = dict(Toolset.of(tools))
    for each in graphs_of(graph):
        below = each.governance.toolset if isinstance(each, GovernedGraph) and each is not graph else Toolset()
        entries = {**below, **_of_tool_nodes(each), **entries}
    return Toolset(entries.values())


def _types(graph: Compiled, types: Sequence[type]) -> tuple[type, ...]:
    """The types given, and those that the governed graphs below were given: one saver reads for all of them."""
    for cls in types:
        require_data(cls)
    below = [each.governance for each in graphs_of(graph) if isinstance(each, GovernedGraph) and each is not graph]
    return tuple(dict.fromkeys([*types, *(cls for own in below for cls in own.types)]))


def _of_tool_nodes(graph: Compiled) -> dict[str, Tool]:
    found = [getattr(node.bound, "tools_by_name", None) or {} for node in graph.nodes.values()]
    return dict(Toolset.of({tool.name: tool for tools in found for tool in tools.values()}.values()))


def _rewrite(graph: Compiled) -> None:
    graph.retry_policy = tuple(_ours(policy) for policy in graph.retry_policy or ())
    for name, node in list(graph.nodes.items()):
        kind: NodeKind = "error_handler" if node.is_error_handler else "node"
        update: dict[str, Any] = {
            "writers": [_governed_writer(writer, graph.name, name) for writer in node.writers],
            "retry_policy": tuple(_ours(policy) for policy in node.retry_policy or ()) or None,
        }
        if node.bound is not DEFAULT_BOUND and not isinstance(node.bound, GovernedNode):
            place = Place(graph=graph.name, node=name, kind=kind, leaf=not _is_graph(node.bound))
            update["bound"] = GovernedNode(node.bound, place)
        graph.nodes[name] = node.copy(update)


def _is_graph(bound: Runnable[Any, Any]) -> bool:
    while isinstance(bound, RunnableBindingBase):
        bound = bound.bound
    return isinstance(bound, Pregel)


class GovernedNode(RunnableCallable):
    """A node's body, behind the middleware."""

    def __init__(self, inner: Runnable[Any, Any], place: Place) -> None:
        super().__init__(self._on_loop, self._governed, name=inner.get_name(), trace=False, recurse=False)
        self.inner = inner
        self.place = place

    def __getattr__(self, name: str) -> Any:
        # LangGraph's drawing reads `tools_by_name` of a ToolNode, for one.
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    async def _governed(self, input: Any, config: RunnableConfig) -> Any:  # noqa: A002  # LangGraph's word
        if _is_synchronous(self.inner):
            return await around(self.place, config, lambda: in_thread(partial(self.inner.invoke, input, config)))
        return await around(self.place, config, lambda: self.inner.ainvoke(input, config))

    def _on_loop(self, input: Any, config: RunnableConfig) -> Any:  # noqa: A002
        what = f"node {self.place.node!r}"
        return on_loop(session_of(what), lambda: self._governed(input, config), what=what)


def _is_synchronous(inner: Runnable[Any, Any]) -> bool:
    """Whether this is a plain `def` node, which LangGraph would put into the loop's own small pool of threads."""
    if not isinstance(inner, RunnableCallable):
        return False
    return inner.afunc is None or (isinstance(inner.afunc, partial) and inner.afunc.func is run_in_executor)


class GovernedBranch:
    """A conditional edge behind the middleware. When it fails, its task has not finished: LangGraph would take the
    node's writes for the whole, and a resumed run would end without ever having been routed."""

    def __init__(self, spec: BranchSpec, place: Place) -> None:
        self.spec = spec
        self.place = place

    async def aroute(self, input: Any, config: RunnableConfig, **injected: Any) -> Any:  # noqa: A002
        """LangGraph's `_aroute`, governed."""
        try:
            with standing_at(config):
                return await around(self.place, config, lambda: self.spec._aroute(input, config, **injected))  # noqa: SLF001
        except BaseException:
            drop_writes(config)
            raise

    def route(self, input: Any, config: RunnableConfig, **injected: Any) -> Any:  # noqa: A002
        """LangGraph's `_route`, for a synchronous call inside a governed run."""
        what = f"the conditional edge of {self.place.node!r}"
        return on_loop(session_of(what), lambda: self.aroute(input, config, **injected), what=what)


def _governed_writer(writer: Runnable[Any, Any], graph: str, node: str) -> Runnable[Any, Any]:
    spec = _branch_of(writer)
    if spec is None:
        return writer
    branch = GovernedBranch(spec, Place(graph=graph, node=node, kind="branch"))
    governed: Any = copy.copy(writer)
    governed.func, governed.afunc = branch.route, branch.aroute
    return governed  # type: ignore[no-any-return]  # a RunnableCallable like the one it was


def _branch_of(writer: Runnable[Any, Any]) -> BranchSpec | None:
    """The conditional edge behind a writer that is not governed yet."""
    spec = getattr(getattr(writer, "afunc", None), "__self__", None)
    return spec if isinstance(spec, BranchSpec) else None


class RetryGoverned:
    """A retry predicate: ours answer for themselves, everything else is as the graph's author said. LangGraph's
    default would try a refused budget again."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy

    def __call__(self, error: Exception) -> bool:
        """Whether to try again."""
        return error.retryable if isinstance(error, HoldfastError) else langgraph_would_retry(self.policy, error)


def _ours(policy: RetryPolicy) -> RetryPolicy:
    return policy if isinstance(policy.retry_on, RetryGoverned) else policy._replace(retry_on=RetryGoverned(policy))
