"""A pytest plugin for LangGraph's own tests: they get our checkpointer for theirs, and their graphs can be governed.

`make upstream` uses it; CONTRIBUTING.md says how. HOLDFAST_UPSTREAM names what to run with: `theirs` (LangGraph's own
saver, to compare with), `ours`, or `governed` (ours, and `govern` around every node).
"""

import functools
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import StateGraph

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
from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.ids import TenantId
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.contracts.verdicts import Autonomy
from holdfast.graphs.govern import govern
from holdfast.nodes.hosting import register_host, unregister_host
from holdfast.runtime.attached import AttachedTerms, Attachments
from holdfast.runtime.sessions import Doors, Gate

MODE = os.environ.get("HOLDFAST_UPSTREAM", "ours")
TENANT = TenantId("acme")
_numbers = count(1)
_server = EmbeddedServer(temporary=True)
_template = "upstream_template"


def pytest_configure() -> None:
    _server.start()
    upgrade(_under_test().create(_template).owner)


def pytest_unconfigure() -> None:
    _server.stop()


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


@pytest.fixture(autouse=True)
async def governed_run(anyio_backend: Any) -> AsyncIterator[None]:
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
    """As the engine takes a graph: its saver may read what it declares, and it is governed where that is wanted."""

    @functools.wraps(compile_graph)
    def compiled(self: Any, *args: Any, **options: Any) -> Any:
        graph = compile_graph(self, *args, **options)
        if isinstance(graph.checkpointer, FencedSaver):
            graph.checkpointer = graph.checkpointer.with_allowlist(declared_types(graph))
        if MODE != "governed":
            return graph
        try:
            return govern(graph, version="upstream")  # every test makes graphs of its own, and signatures take time
        except InvalidRequest:  # it caches its nodes, which a governed graph may not
            return graph

    return compiled


def _exchange() -> None:
    import tests.conftest_checkpointer as theirs

    theirs._checkpointer_postgres_aio = _theirs if MODE == "theirs" else _ours
    if MODE != "theirs":
        StateGraph.compile = _as_we_compile(StateGraph.compile)  # type: ignore[method-assign]


_exchange()
