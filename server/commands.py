"""What the commands do, once their arguments are values. Each returns the exit code."""

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from holdfast.checkpoints import encrypting, migrating
from holdfast.checkpoints.embedded import embedded_server
from holdfast.contracts.approvals import Approval, DecisionType
from holdfast.contracts.chain import Verification
from holdfast.contracts.errors import ConfigurationError, HoldfastError, InvalidRequest, TimedOut
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import Run, RunResult, RunStatus
from holdfast.policies.compatibility import unserved
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.server import documents, render
from holdfast.server.bootstrap import database_url, open_runtime
from holdfast.server.catalog import read_catalog
from holdfast.server.encryption import encryption
from holdfast.server.exits import Exit
from holdfast.server.settings import Settings
from holdfast.server.stopping import Stopping

_LOOK_SECONDS = 0.25
"""How often someone who watches sees new events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What every command has: the settings, and how to answer."""

    settings: Settings
    console: Console
    as_json: bool

    @property
    def watched(self) -> bool:
        """Whether a person looks on."""
        return self.console.is_terminal and not self.as_json

    @asynccontextmanager
    async def runtime(self, *, worker: bool = False) -> AsyncIterator[Runtime]:
        """The runtime; without a worker for what only looks."""
        async with open_runtime(self.settings, serve=worker) as runtime:
            yield runtime


async def start(
    session: Session,
    graph: str,
    given: Any,
    *,
    tenant: str | None,
    user: str | None,
    thread: str | None,
    limits: Limits | None,
    detach: bool,
) -> Exit:
    """Start a run, and stay until it rests unless `detach`."""
    loaded = read_catalog().load(graph)
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime(worker=not detach) as runtime:
        handle = await runtime.start(loaded, given, tenant=chosen, user=user, thread=thread, limits=limits)
        return await followed(session, runtime, handle, detach=detach)


async def listing(session: Session, *, tenant: str | None, status: str | None, thread: str | None) -> Exit:
    """The tenant's runs."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        found = await runtime.runs(tenant=chosen, thread=thread, status=status)
        nobodys = await _unserved(runtime, found)
    if session.as_json:
        documented = [documents.run_document(run) | {"served": run not in nobodys} for run in found]
        render.json_document(session.console, documented)
    else:
        render.runs(session.console, found, unserved=nobodys)
    return Exit.OK


async def show(session: Session, run_id: str, *, tenant: str | None) -> Exit:
    """Everything about one run."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        report = await runtime.show(run_id, tenant=chosen)
    if session.as_json:
        render.json_document(session.console, documents.report_document(report))
    else:
        render.report(session.console, report)
    return Exit.OK


async def events(session: Session, run_id: str, *, tenant: str | None, after: int) -> Exit:
    """What happened in a run, in order."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        log = await runtime.events(run_id, tenant=chosen, after=after)
    if session.as_json:
        render.json_document(session.console, documents.event_documents(log))
    else:
        render.events(session.console, log)
    return Exit.OK


async def follow(session: Session, run_id: str, *, tenant: str | None, after: int) -> Exit:
    """What happens in a run, as it commits, until it has ended. As JSON, a line for each event."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        async for event in runtime.follow(run_id, tenant=chosen, after=after):
            if session.as_json:
                render.json_line(session.console, *documents.event_documents([event]))
            else:
                render.event_line(session.console, event)
    return Exit.OK


async def verify(session: Session, run_id: str | None, *, tenant: str | None) -> Exit:
    """Whether the events of a run, or of all runs of a tenant, are the ones that were written."""
    chosen = session.settings.tenant_or_default(tenant)
    runs = events = 0
    broken: list[Verification] = []
    async with session.runtime() as runtime:
        if run_id is not None:
            found = await runtime.verify_events(run_id, tenant=chosen)
            say(session, documents.verification_document(found), render.verification(found))
            return Exit.OK if found.ok else Exit.RUN_FAILED
        async for found in runtime.verify_all_events(tenant=chosen):
            runs, events = runs + 1, events + found.events
            if not found.ok:
                broken.append(found)
    document = {"runs": runs, "events": events, "broken": [documents.verification_document(each) for each in broken]}
    summary = f"{events} events of {runs} runs verified; {len(broken) or 'none'} of the runs broken"
    say(session, document, "\n".join([*map(render.verification, broken), summary]))
    return Exit.RUN_FAILED if broken else Exit.OK


async def decide(
    session: Session,
    approval_id: str,
    decision: DecisionType,
    *,
    by: str,
    message: str | None = None,
    args: Mapping[str, Any] | None = None,
    wait: bool,
) -> Exit:
    """Record a decision, and stay until the run rests again unless `wait` is false."""
    async with session.runtime(worker=wait) as runtime:
        approval = await runtime.decide(approval_id, decision, by=by, args=args, message=message)
        run = (await runtime.show(approval.run_id, tenant=approval.tenant_id)).run
        obstacle = await _obstacle(runtime, run) if wait else "it goes on when a worker is there"
        if obstacle is None:
            handle = await runtime.run(run.run_id, tenant=approval.tenant_id)
            return await see_through(session, runtime, handle)
        said = f"{approval.status.value} by {by}; run {run.run_id} is {run.status.value}: {obstacle}"
        say(session, _decided(approval, run), said)
        return Exit.OK


async def cancel(session: Session, run_id: str, *, tenant: str | None, by: str, reason: str) -> Exit:
    """Ask a run to stop."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        run = await runtime.cancel(run_id, tenant=chosen, by=by, reason=reason)
    told = "cancelled" if run.status is RunStatus.CANCELLED else "asked to stop; its worker is told and stops it"
    say(session, documents.run_document(run), f"run {run.run_id} is {told}")
    return Exit.OK


async def hold(session: Session, run_id: str, *, tenant: str | None, by: str, reason: str, lifting: bool) -> Exit:
    """Put a legal hold on a run, or take it off."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        act = runtime.lift if lifting else runtime.hold
        run = await act(run_id, tenant=chosen, by=by, reason=reason)
    told = "held no more" if lifting else "held: nothing of it is pruned or deleted"
    say(session, documents.run_document(run), f"run {run.run_id} is {told}")
    return Exit.OK


async def upgrade(session: Session, *, finish: bool, wait_seconds: float) -> Exit:
    """Apply what the database lacks: of the pre migrations, and with `finish` of the post ones. Whom a migration waits
    for is said on standard error."""
    settings = session.settings
    if settings.owner_database_url is None and settings.embedded:
        async with embedded_server(settings.embedded_folder):  # which upgrades itself as it starts
            say(session, {"applied": [], "waiting": []}, "the embedded database is up to date; it upgrades itself")
        return Exit.OK
    if settings.owner_database_url is None:
        raise ConfigurationError(
            "HOLDFAST_OWNER_DATABASE_URL is not set: migrations need the login that owns the tables, never the "
            "application's"
        )
    owner_url = settings.owner_database_url.get_secret_value()
    due = await asyncio.to_thread(
        migrating.upgrade, owner_url, finish=finish, wait_seconds=wait_seconds, tell=_tell_aside
    )
    applied = [str(each) for each in due]
    waiting = [str(each) for each in (await asyncio.to_thread(migrating.standing, owner_url)).pending]
    told = [f"applied {', '.join(applied)}" if applied else "the database is up to date"]
    if waiting:
        told.append(f"{', '.join(waiting)} may follow {migrating.FINISH}")
    say(session, {"applied": applied, "waiting": waiting}, "\n".join(told))
    return Exit.OK


async def status(session: Session) -> Exit:
    """Which migrations were applied, and which are pending."""
    settings = session.settings
    known = settings.owner_database_url or settings.database_url
    if known is not None:
        standing = await asyncio.to_thread(migrating.standing, known.get_secret_value())
    else:
        async with embedded_server(settings.embedded_folder) as server:
            standing = await asyncio.to_thread(migrating.standing, server.app_url)
    if session.as_json:
        render.json_document(session.console, documents.standing_document(standing))
    else:
        render.standing(session.console, standing)
    return Exit.OK


async def encrypt(session: Session, *, clear_too: bool) -> Exit:
    """Encrypt what the database holds, with the key in force."""
    wanted = encryption(session.settings.encryption)
    if wanted is None:
        raise ConfigurationError(
            "there is no key: set HOLDFAST_ENCRYPTION__KEYS, such as "
            '\'{"2026-11": "…"}\' with the output of `openssl rand -base64 32`'
        )
    async with AsyncExitStack() as stack:
        done = await encrypting.encrypt(await database_url(session.settings, stack), wanted, clear_too=clear_too)
    key_id = wanted.keyring.seals_with
    words = f"all is encrypted with {key_id}"
    if done.threads or done.rows:
        words = f"encrypted {done.threads} thread(s) and {done.rows} row(s) of runs, calls and approvals with {key_id}"
    if done.retired:
        words += f"; no process needs {', '.join(done.retired)} any more"
    say(session, {"key_id": key_id, "threads": done.threads, "rows": done.rows, "retired": list(done.retired)}, words)
    return Exit.OK


async def work(session: Session) -> Exit:
    """Serve the project's graphs until SIGTERM or Ctrl-C, then hand back what is under way; see `server.stopping`."""
    catalog = read_catalog()
    if not catalog.refs:
        raise InvalidRequest(
            "there is no langgraph.json here that names graphs, so a worker has nothing to serve; start it in the "
            "folder of the project"
        )
    stopping = Stopping(_tell_aside)
    async with session.runtime(worker=True) as runtime:
        stopping.then(runtime.hand_back)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: going through it takes a full collection 60 ms, and all runs wait
        say(session, {"serving": list(catalog)}, f"serving {', '.join(catalog)}; Ctrl-C stops")
        await stopping.asked.wait()
    return Exit.OK


async def _unserved(runtime: Runtime, runs: Sequence[Run]) -> list[Run]:
    """The runs that wait for a worker, and that no worker that is there goes on with."""
    waiting = [run for run in runs if run.status in {RunStatus.QUEUED, RunStatus.RUNNING} and not run.attached]
    served = [graph for worker in await runtime.store.workers.alive() for graph in worker.serves]
    nobodys = unserved((run.version for run in waiting), served)
    return [run for run in waiting if run.version in nobodys]


async def followed(session: Session, runtime: Runtime, handle: RunHandle, *, detach: bool) -> Exit:
    """Stay until a run that was just admitted rests, unless `detach`: then say only that it is queued."""
    if not detach:
        return await see_through(session, runtime, handle)
    run = (await runtime.show(handle.run_id, tenant=handle.tenant_id)).run
    say(session, documents.run_document(run), f"run {run.run_id} is queued; it starts when a worker is there")
    return Exit.OK


async def see_through(session: Session, runtime: Runtime, handle: RunHandle) -> Exit:
    """Stay until the run rests, and show how it stands then."""
    result = await (_watch(session.console, runtime, handle) if session.watched else handle.result())
    if session.as_json:
        render.json_document(session.console, documents.result_document(result, thread=handle.thread))
    else:
        render.outcome(session.console, result)
    if result.error is not None:
        error = f"error: run {result.run_id} {result.status.value} ({result.error.error_type}): {result.error.message}"
        Console(stderr=True).print(Text(error), soft_wrap=True)
    return _exit_of(result)


async def _watch(console: Console, runtime: Runtime, handle: RunHandle) -> RunResult:
    """Show events as they commit, and the budget draining, until the run rests."""
    seen = 0
    with console.status("queued") as status:
        while True:
            try:
                result = await handle.result(timeout=_LOOK_SECONDS)
            except TimedOut:
                result = None
            for event in await handle.events(after=seen):
                render.event_line(console, event)
                seen = event.seq
            if result is not None:
                return result
            status.update(render.draining(await runtime.show(handle.run_id, tenant=handle.tenant_id)))


def register_graphs_of(runtime: Runtime, run: Run) -> None:
    """Make the graphs known that the run may be of; raises what keeps this process from it."""
    for graph in read_catalog().recorded_as(run.graph_name):
        runtime.register(graph)


async def _obstacle(runtime: Runtime, run: Run) -> str | None:
    """Why this process cannot carry the run on; None when it can, and then its graph is registered."""
    if run.attached:
        return "the program that hosts it goes on with it"
    try:
        register_graphs_of(runtime, run)
    except HoldfastError as error:
        return f"another worker must go on with it, for here {error.message}"
    if not await runtime.serves(run.run_id, tenant=run.tenant.tenant_id):
        return (
            f"another worker must go on with it, for it was started by version {run.graph_version} of its graph; "
            f"{render.UNSERVED}"
        )
    return None


def _exit_of(result: RunResult) -> Exit:
    match result.status:
        case RunStatus.COMPLETED:
            return Exit.OK
        case RunStatus.INTERRUPTED:
            return Exit.WAITS
        case _:
            return Exit.RUN_FAILED


def _decided(approval: Approval, run: Run) -> dict[str, Any]:
    return {"approval": documents.approval_document(approval), "run": documents.run_document(run)}


def _tell_aside(line: str) -> None:
    Console(stderr=True).print(Text(line), soft_wrap=True)


def say(session: Session, document: dict[str, Any], words: str) -> None:
    """Answer with the document where JSON is wanted, and with the words otherwise."""
    if session.as_json:
        render.json_document(session.console, document)
    else:
        session.console.print(Text(words), soft_wrap=True)
