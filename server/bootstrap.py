"""The one composition root: settings in, a working runtime out. Everything else receives what it needs."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from langgraph.checkpoint.base import BaseCheckpointSaver

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.embedded import embedded_server
from holdfast.checkpoints.saver import saver_for
from holdfast.checkpoints.serialization import declared_types
from holdfast.checkpoints.store import PostgresStore
from holdfast.contracts.errors import ConfigurationError, HoldfastError, NotFound
from holdfast.contracts.ids import TenantId
from holdfast.contracts.ports import Store
from holdfast.contracts.runs import Owner
from holdfast.contracts.tenancy import Principal
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.models import ModelGateway
from holdfast.gateway.prices import Prices
from holdfast.gateway.providers import Providers, SilentProviders
from holdfast.gateway.sending import Sender, SendTerms
from holdfast.gateway.tools import ToolExecutor
from holdfast.graphs.govern import assert_governed, govern
from holdfast.graphs.stored import told_of_what_stays_plain
from holdfast.nodes.hosting import register_host, unregister_host
from holdfast.policies.permissions import CedarPolicy, default_text
from holdfast.runtime.attached import AttachedTerms, Attachments
from holdfast.runtime.blocking import BlockingRuntime
from holdfast.runtime.clock import SystemClock
from holdfast.runtime.coordinator import Coordinator
from holdfast.runtime.directory import Directory
from holdfast.runtime.entropy import SystemDice, SystemIds
from holdfast.runtime.heart import Heart
from holdfast.runtime.holds import Holds
from holdfast.runtime.registry import Graph, Registry
from holdfast.runtime.runtime import Runtime
from holdfast.runtime.sessions import Doors, Gate, SaverFor
from holdfast.runtime.wake import Wake
from holdfast.runtime.worker import Worker, WorkerTerms
from holdfast.server.catalog import read_catalog, twins
from holdfast.server.encryption import encryption
from holdfast.server.settings import Settings, load_settings
from holdfast.server.telemetry import telemetry
from holdfast.telemetry.logs import logger

log = logger(__name__)

_THREADS = 64
_NODE_SLOTS = 64
"""Nodes of one run that may work at once; more wait their turn in the middleware."""


@asynccontextmanager
async def open_runtime(
    settings: Settings | None = None, *, graphs: Iterable[Any] = (), serve: bool = True, **overrides: Any
) -> AsyncIterator[Runtime]:
    """A runtime for as long as the block lasts: the same in a notebook and in a cluster.

    Starts an embedded Postgres unless `DATABASE_URL` is set, and a worker in this process unless `serve` is False.
    The worker serves the graphs of `langgraph.json`, those in `graphs`, and every graph that is started here.
    `overrides` are settings, and come before the environment.

    Raises `ConfigurationError` for settings, policies or a database that are not fit, `StoreUnavailable` when there
    is no database.
    """
    settings = settings or load_settings(**overrides)
    # Synchronous tools and runnables work in the loop's default pool: a handful of threads on a small machine.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="holdfast"))
    async with AsyncExitStack() as stack:
        stack.enter_context(telemetry(settings.telemetry))
        stack.enter_context(told_of_what_stays_plain())
        url = await database_url(settings, stack)
        database = await stack.enter_async_context(
            Database(url, terms=settings.store_terms, encryption=encryption(settings.encryption))
        )
        store = PostgresStore(database, SystemIds())
        for tenant in settings.all_tenants():
            await store.tenants.put(tenant)
        wake, registry, doors = Wake(settings.worker.poll_seconds), Registry(), _doors(settings, store)
        own = _worker(settings, doors, registry, wake, database) if serve else None
        runtime = _runtime(settings, doors, registry, wake, database, own)
        for graph in (*(_project_graphs() if serve else ()), *graphs):
            runtime.register(graph)
        host = _attachments(settings, doors)
        register_host(host)
        stack.callback(unregister_host, host)
        await stack.enter_async_context(_beside(_listen(database, wake, own), "holdfast listener"))
        if own is not None:
            await stack.enter_async_context(
                _beside(own.work(), "holdfast worker", stop=own.stop, lost=runtime.lost_worker)
            )
        yield runtime


@contextmanager
def open_blocking_runtime(
    settings: Settings | None = None, *, graphs: Iterable[Any] = (), serve: bool = True, **overrides: Any
) -> Iterator[BlockingRuntime]:
    """`open_runtime` for scripts without a loop: it runs in a thread of its own, and every call waits."""
    with start_blocking_portal() as portal:
        opening = open_runtime(settings, graphs=graphs, serve=serve, **overrides)
        with portal.wrap_async_context_manager(opening) as runtime:
            yield BlockingRuntime(runtime, portal)


async def database_url(settings: Settings, stack: AsyncExitStack) -> str:
    """The application's address of the settings' database, or of an embedded one that runs as long as `stack`."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    server = await stack.enter_async_context(embedded_server(settings.embedded_folder))
    return server.app_url


def _doors(settings: Settings, store: PostgresStore) -> Doors:
    clock, ids, dice = SystemClock(), SystemIds(), SystemDice()
    prices = Prices(
        {name: (price.input_usd_per_million, price.output_usd_per_million) for name, price in settings.prices.items()}
    )
    sender = Sender(dice=dice, terms=SendTerms())
    files = [_policy_text(path) for path in settings.policy_files]

    @cache
    def policy_for(texts: tuple[str, ...]) -> CedarPolicy:
        return CedarPolicy([default_text(), *files, *texts])

    def gate(store: Store, texts: tuple[str, ...], providers: Providers) -> Gate:
        policy = policy_for(texts)
        models = ModelGateway(
            journal=store.journal,
            ledger=store.ledger,
            events=store.events,
            policy=policy,
            providers=providers,
            prices=prices,
            clock=clock,
            ids=ids,
            sender=sender,
        )
        executor = ToolExecutor(
            journal=store.journal, ledger=store.ledger, events=store.events, policy=policy, ids=ids, dice=dice
        )
        return Gate(models, executor, policy.version)

    providers = Providers(settings.routes, settings.model)
    gate_for = cache(lambda texts: gate(store, texts, providers))
    gate_for(())  # a policy that is not sound is found at start
    return Doors(
        store=store,
        gate_for=gate_for,
        silent_gate_for=lambda other, texts: gate(other, texts, SilentProviders(settings.routes, settings.model)),
        clock=clock,
        ids=ids,
        autonomy=settings.autonomy or Autonomy.SUPERVISED,
        node_slots=_NODE_SLOTS,
        cleanup_seconds=settings.worker.cleanup_seconds,
        tools=settings.tools,
        approval_expires_seconds=settings.approval_expires_seconds,
    )


def _runtime(
    settings: Settings, doors: Doors, registry: Registry, wake: Wake, database: Database, worker: Worker | None
) -> Runtime:
    return Runtime(
        doors=doors,
        registry=registry,
        directory=Directory(settings.principals, bare_names=settings.embedded and not settings.principals),
        wake=wake,
        govern=govern,
        saver_for=_saver_for(database),
        max_input_bytes=settings.max_input_bytes,
        max_attempts=settings.worker.max_attempts,
        worker=worker,
    )


def _worker(settings: Settings, doors: Doors, registry: Registry, wake: Wake, database: Database) -> Worker:
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{doors.ids.new()[-8:]}"
    lease = settings.lease_terms
    heart = Heart(doors.store.heartbeat(within_seconds=lease.beat_seconds), worker_id, lease)
    return Worker(
        worker_id,
        coordinator=Coordinator(
            doors=doors, registry=registry, saver_for=_saver_for(database), assert_governed=assert_governed
        ),
        holds=Holds(doors.store.leases, heart, worker_id, lease),
        registry=registry,
        approvals=doors.store.approvals,
        workers=doors.store.workers,
        retention=doors.store.retention,
        tenants=doors.store.tenants,
        wake=wake,
        terms=WorkerTerms(slots=settings.worker.slots, lease=lease, prune_seconds=settings.worker.prune_seconds),
    )


def _attachments(settings: Settings, doors: Doors) -> Attachments:
    tenant_id = _attached_tenant(settings)
    user = settings.principals.get(settings.attached_user) or Principal(
        user_id=settings.attached_user,
        tenants=(tenant_id,) if tenant_id else (),
        roles=("approver",) if settings.embedded else (),
    )
    return Attachments(
        doors=doors, terms=AttachedTerms(tenant_id=tenant_id, principal=user), worker_id=f"attached:{os.getpid()}"
    )


def _attached_tenant(settings: Settings) -> TenantId | None:
    try:
        return TenantId(settings.tenant_or_default(settings.attached_tenant))
    except NotFound:
        if settings.attached_tenant is not None:
            raise
        return None  # said when something is to be hosted: most processes host nothing


def _saver_for(database: Database) -> SaverFor:
    def saver(owner: Owner, graph: Graph) -> BaseCheckpointSaver[Any]:
        governance: Any = graph.governance  # type: ignore[attr-defined]  # the registry admits governed graphs only
        return saver_for(database, owner).with_allowlist(declared_types(graph) | governance.stored_types)

    return saver


def _project_graphs() -> Iterator[Graph]:
    """The graphs of `langgraph.json`. One that cannot be loaded must not keep the others from their runs."""
    catalog = read_catalog()
    for name in catalog:
        try:
            if (twin := catalog.twin_of(name)) is not None:
                raise ConfigurationError(twins(catalog, name, twin))
            yield catalog.load(name)
        except HoldfastError as error:
            log.warning("graph_not_loaded", graph=name, reason=str(error))


def _policy_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the policy file {path} cannot be read: {error}") from error


async def _listen(database: Database, wake: Wake, worker: Worker | None) -> None:
    async with aclosing(database.listen()) as hints:
        async for hint in hints:
            if hint.stop is not None and worker is not None:
                worker.asked_to_stop(hint.stop)
            wake.ring()


@asynccontextmanager
async def _beside(
    work: Coroutine[Any, Any, None],
    name: str,
    *,
    stop: Callable[[], None] | None = None,
    lost: Callable[[BaseException], None] | None = None,
) -> AsyncIterator[None]:
    """Runs `work` beside the block and sees it end: by `stop`, or by cancelling it. Not a TaskGroup, which would wrap
    what the block itself raises; `lost` is told instead when `work` dies."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(partial(_report, lost))
    try:
        yield
    finally:
        if stop is None:
            task.cancel()
        else:
            stop()
        await asyncio.wait([task])


def _report(lost: Callable[[BaseException], None] | None, task: asyncio.Task[None]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    log.error("background_task_failed", task=task.get_name(), exc_info=error)
    if lost is not None:
        lost(error)
