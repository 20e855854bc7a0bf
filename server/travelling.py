"""What the commands do that go back in a thread's history, and on from it. Each returns the exit code."""

from collections.abc import Mapping
from typing import Any

from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import Run
from holdfast.runtime.runtime import Runtime
from holdfast.server import documents, render
from holdfast.server.commands import Session, followed, register_graphs_of
from holdfast.server.exits import Exit


async def history(
    session: Session, run_id: str, *, tenant: str | None, by: str, limit: int, before: str | None
) -> Exit:
    """The checkpoints of a run's thread."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        await _served(runtime, run_id, chosen)
        entries = await runtime.history(run_id, tenant=chosen, by=by, limit=limit, before=before)
    if session.as_json:
        render.json_document(session.console, [documents.history_document(entry) for entry in entries])
    else:
        render.history(session.console, entries)
    return Exit.OK


async def state(session: Session, run_id: str, *, tenant: str | None, at: str, by: str | None) -> Exit:
    """The state of a run's thread at a checkpoint."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        await _served(runtime, run_id, chosen)
        values = await runtime.state(run_id, tenant=chosen, at=at, by=by)
    render.json_document(session.console, values)
    return Exit.OK


async def fork(
    session: Session,
    run_id: str,
    *,
    tenant: str | None,
    by: str,
    at: str | None,
    thread: str | None,
    values: Mapping[str, Any] | None,
    limits: Limits | None,
    detach: bool,
) -> Exit:
    """Go on from a checkpoint on a new thread, and stay until the fork rests unless `detach`."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime(worker=not detach) as runtime:
        await _served(runtime, run_id, chosen)
        handle = await runtime.fork(run_id, tenant=chosen, by=by, at=at, thread=thread, values=values, limits=limits)
        return await followed(session, runtime, handle, detach=detach)


async def resume(
    session: Session, run_id: str, *, tenant: str | None, by: str, limits: Limits | None, detach: bool
) -> Exit:
    """Go on where a run ended, and stay until the new run rests unless `detach`."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime(worker=not detach) as runtime:
        await _served(runtime, run_id, chosen)
        handle = await runtime.resume(run_id, tenant=chosen, by=by, limits=limits)
        return await followed(session, runtime, handle, detach=detach)


async def replay(session: Session, run_id: str, *, tenant: str | None, by: str) -> Exit:
    """Execute a run again against its record; the exit code tells whether the code does the same."""
    chosen = session.settings.tenant_or_default(tenant)
    async with session.runtime() as runtime:
        await _served(runtime, run_id, chosen)
        report = await runtime.replay(run_id, tenant=chosen, by=by)
    if session.as_json:
        render.json_document(session.console, documents.replay_document(report))
    else:
        render.replay(session.console, report)
    return Exit.OK if report.same else Exit.RUN_FAILED


async def _served(runtime: Runtime, run_id: str, tenant: str) -> Run:
    """The run, its graph being one that this process knows; raises what keeps it from that."""
    run = (await runtime.show(run_id, tenant=tenant)).run
    if not run.attached:
        register_graphs_of(runtime, run)
    return run
