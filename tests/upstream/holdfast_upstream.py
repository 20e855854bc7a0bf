"""A pytest plugin for LangGraph's own tests: they get our checkpointer for theirs, and their graphs can be governed.

`make upstream` uses it; CONTRIBUTING.md says how. HOLDFAST_UPSTREAM names what to run with: `theirs` (LangGraph's own
saver, to compare with), `ours`, or `governed` (ours, and `govern` around every node).

Most tests are handed their checkpointer by a fixture. Those on delta channels make one in memory themselves, which
ours stands for; most of them call only what is synchronous, and get one that is at home in the loop of a thread beside.
"""

import dis
import functools
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

sys.path.insert(0, str(Path(__file__).parents[1]))  # our fixtures' folder, beside LangGraph's `tests`

from fix_database import ServerUnderTest
from governing import Desk
from scenes import UNLIMITED, Scene
from stores import postgres_store

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import upgrade
from holdfast.checkpoints.saver import FencedSaver, saver_for
from holdfast.checkpoints.serialization import declared_types
from holdfast.contracts.ids import TenantId
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.contracts.verdicts import Autonomy
from holdfast.graphs.govern import govern, graphs_of
from holdfast.graphs.governed import GovernedGraph
from holdfast.nodes.hosting import register_host, unregister_host
from holdfast.runtime.attached import AttachedTerms, Attachments
from holdfast.runtime.sessions import Doors, Gate

MODE = os.environ.get("HOLDFAST_UPSTREAM", "ours")
MAKES_ITS_OWN = "test_delta_channel_"
"""The files whose tests make their checkpointer themselves."""
TENANT = TenantId("acme")
_numbers = count(1)
_server = EmbeddedServer(temporary=True)
_template = "upstream_template"
_ran: set[str] = set()
"""The files of which a test has run."""


def pytest_configure() -> None:
    _server.start()
    upgrade(_under_test().create(_template).owner)


def pytest_unconfigure() -> None:
    _server.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What runs on the saver that we stand for, and needs no other server than ours."""
    chosen = [item for item in items if _is_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.skipped:
        _ran.add(_file(report.nodeid))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _silent(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for file in _silent(terminalreporter.config):
        terminalreporter.write_line(f"NOTHING RAN of {file}: choose its tests otherwise, or take it off the list")


def _silent(config: pytest.Config) -> list[str]:
    """The files that were asked for and of which no test has run."""
    return [arg for arg in config.args if _file(arg) not in _ran]


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _is_ours(item: pytest.Item) -> bool:
    if item.path.name.startswith(MAKES_ITS_OWN):
        return True
    given = item.callspec.params if hasattr(item, "callspec") else {}
    stores = given.get("async_store", "in_memory") == "in_memory" and given.get("cache") != "redis"
    return given.get("async_checkpointer") == "postgres_aio" and stores


def _under_test() -> ServerUnderTest:
    return ServerUnderTest(_server.admin_url)


@asynccontextmanager
async def _theirs() -> AsyncIterator[Any]:
    urls = _under_test().create(f"theirs_{next(_numbers)}")
    async with AsyncPostgresSaver.from_conn_string(urls.admin) as saver:
        await saver.setup()
        yield saver


@asynccontextmanager
async def _ours() -> AsyncIterator[Any]:
    urls = _under_test().create(f"ours_{next(_numbers)}", template=_template)
    async with Database(urls.app) as database:
        owner = await Scene(postgres_store(database)).running()
        yield saver_for(database, owner)


def _saver() -> AbstractAsyncContextManager[Any]:
    return _theirs() if MODE == "theirs" else _ours()


@asynccontextmanager
async def _hosted() -> AsyncIterator[None]:
    """Where graphs are governed, a host that opens an attached run for each bare invocation."""
    if MODE != "governed":
        yield
        return
    urls = _under_test().create(f"governed_{next(_numbers)}", template=_template)
    async with Database(urls.app) as database:
        host = await _host(Desk(store=postgres_store(database), autonomy=Autonomy.AUTONOMOUS))
        register_host(host)
        yield
        unregister_host(host)


@asynccontextmanager
async def _hosted_saver() -> AsyncIterator[Any]:
    async with _hosted(), _saver() as saver:
        yield saver


@pytest.fixture(autouse=True)
async def around(request: pytest.FixtureRequest, monkeypatch: Any, anyio_backend: Any) -> AsyncIterator[None]:
    """Everything of ours that a test has, in the loop that it runs in, or beside it where it is synchronous."""
    if not request.path.name.startswith(MAKES_ITS_OWN):
        async with _hosted():
            yield
    elif _waits(request.function):
        async with _hosted_saver() as saver:
            monkeypatch.setattr(request.module, "InMemorySaver", lambda: saver)
            yield
    else:
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(_hosted_saver()) as saver:
            monkeypatch.setattr(request.module, "InMemorySaver", lambda: saver)
            if MODE == "governed":
                monkeypatch.setattr(GovernedGraph, "invoke", _invoking(portal))
            yield


def _waits(function: Any) -> bool:
    """Whether a test awaits anything: many that are `async` only call what is synchronous."""
    return any(each.opname == "GET_AWAITABLE" for each in dis.get_instructions(function))


def _invoking(portal: BlockingPortal) -> Any:
    """For `invoke`, which a governed graph refuses outside a run: the same by `ainvoke`, in the host's loop."""

    def invoke(graph: GovernedGraph, *args: Any, **options: Any) -> Any:
        return portal.call(functools.partial(graph.ainvoke, *args, **options))

    return invoke


async def _host(desk: Desk) -> Attachments:
    await desk.store.tenants.put(Tenant(tenant_id=TENANT, may_be_unlimited=True))

    def gate_for(texts: tuple[str, ...]) -> Gate:
        models, executor, version = desk.gate(texts)
        return Gate(models, executor, version)

    doors = Doors(
        store=desk.store,
        gate_for=gate_for,
        silent_gate_for=lambda store, texts: gate_for(texts),  # nothing is replayed here
        clock=desk.clock,
        ids=desk.ids,
        autonomy=desk.autonomy,
        node_slots=1024,
        cleanup_seconds=5.0,
    )
    person = Principal(user_id="dana", tenants=None, roles=("approver",))
    terms = AttachedTerms(tenant_id=TENANT, principal=person, limits=UNLIMITED)
    return Attachments(doors=doors, terms=terms, worker_id="upstream")


def _as_we_compile(compile_graph: Any) -> Any:
    """As the engine takes a graph: its saver may read what it declares, and it is governed where that is wanted, with
    what its code names besides."""

    @functools.wraps(compile_graph)
    def compiled(self: Any, *args: Any, **options: Any) -> Any:
        graph = compile_graph(self, *args, **options)
        types = declared_types(graph)
        if MODE == "governed" and not _caches(graph):  # a governed graph may not cache its nodes
            govern(graph, version="upstream")  # every test makes graphs of its own, and signatures take time
            types |= graph.governance.stored_types
        if isinstance(graph.checkpointer, FencedSaver):
            graph.checkpointer = graph.checkpointer.with_allowlist(types)
        return graph

    return compiled


def _caches(graph: Pregel) -> bool:
    return any(
        each.cache_policy is not None or any(node.cache_policy is not None for node in each.nodes.values())
        for each in graphs_of(graph)
    )


def _exchange() -> None:
    import tests.conftest_checkpointer as theirs

    theirs._checkpointer_postgres_aio = _saver
    if MODE != "theirs":
        StateGraph.compile = _as_we_compile(StateGraph.compile)  # type: ignore[method-assign]


_exchange()
