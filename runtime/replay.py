"""A run executed again from where it began, against its record alone: what would its graph's code do with it today?

The whole graph runs once more, on checkpoints in memory. Every model and tool call is answered from the journal, every
question from the inbox, and both are found by the very identity that they were recorded under (`trail.py`). Nothing is
sent and nothing is written. What a node does past its doors it does again.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from holdfast.contracts.approvals import Approval
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.classification import contained, translated
from holdfast.contracts.errors import Conflict, ReplayStopped, RuntimeErrorRecord
from holdfast.contracts.events import Event, EventKind
from holdfast.contracts.ids import CallId
from holdfast.contracts.runs import Run, RunStatus, owner_of
from holdfast.gateway.within import calls_around
from holdfast.nodes.session import RunSession, entered_session
from holdfast.policies import rulings
from holdfast.policies.retention import require_contents
from holdfast.policies.travel import require_own_checkpoints
from holdfast.runtime.breakpoints import has_breakpoints, leave_then, refused
from holdfast.runtime.entry import RUN_MARK, entry, run_config, run_context
from holdfast.runtime.outputs import plain_output
from holdfast.runtime.recorded import RecordedStore, Stop
from holdfast.runtime.registry import Graph, Registry
from holdfast.runtime.sessions import Doors, SaverFor
from holdfast.runtime.trail import Trail

_EVENTS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What became of a replay, and where it left the record."""

    run: Run
    graph_version: str
    """Which build of the graph it was replayed with."""
    calls: Sequence[CallRecord]
    """The calls that were answered from their records, in the order of asking."""
    left_out: Sequence[CallRecord]
    """Recorded calls that were not asked for."""
    status: RunStatus
    """How it ended: `completed`, `failed`, `interrupted` (a person is waited for), or `cancelled` (it stopped)."""
    output: Any
    error: RuntimeErrorRecord | None
    """What it failed with."""
    stop: Stop | None
    """The first call or question that the record does not answer; None: it never came to one."""
    differences: Sequence[str]
    """What is not as it was recorded, in words. None where the code does the same as then."""

    @property
    def same(self) -> bool:
        """Whether the code did what was recorded, and nothing else."""
        return not self.differences


class Replayer:
    """Replays runs. Whether someone may has been asked before."""

    def __init__(self, *, doors: Doors, registry: Registry, saver_for: SaverFor) -> None:
        self._doors = doors
        self._registry = registry
        self._saver_for = saver_for

    async def replay(self, run: Run) -> ReplayReport:
        """What the graph of that name does today with a run that has ended or waits.

        Raises `NotFound` where no such graph is registered, `Conflict` for a run that is under way, is attached, never
        came to a checkpoint, or was pruned (`ContentsPruned` where its contents were).
        """
        require_own_checkpoints(run.run_id, attached=run.attached)
        if not run.status.resting:
            raise Conflict(
                f"run {run.run_id} is {run.status}: it is still being recorded, and can be replayed when it rests"
            )
        line = await self._line_of(run)
        for each in line:
            require_contents(each.run_id, each.contents_pruned_at, f"run {run.run_id} cannot be replayed")
        graph = self._registry.latest(run.graph_name)
        events = [event async for event in self._events(run)]
        if events[0].seq > 1 or any(event.kind is EventKind.RUN_PRUNED for event in events):
            raise Conflict(f"of what was recorded of run {run.run_id} some was pruned, so it cannot be replayed")
        history = await self._history(run, graph)
        trail = Trail(history)
        store = RecordedStore(self._doors.store, run, trail, events, whose={each.run_id for each in line})
        saver = await _memory(history, run, serde=self._saver_for(owner_of(run), graph).serde)
        session = await self._session(graph, run, store, trail)
        bound = graph.copy(update={"checkpointer": saver})
        ended = await self._driven(bound, run, saver, store, trail, session)
        return await self._report(run, graph, ended, store)

    async def _session(self, graph: Graph, run: Run, store: RecordedStore, trail: Trail) -> RunSession:
        doors = replace(self._doors, store=store, gate_for=lambda texts: self._doors.silent_gate_for(store, texts))
        whole = replace(run, remaining_seconds=run.limits.deadline_seconds)
        session = await doors.session(graph, whole, owner_of(run), still_ours=lambda: True)
        return replace(session, locator=trail.locator)

    async def _driven(
        self,
        graph: Graph,
        run: Run,
        saver: BaseCheckpointSaver[Any],
        store: RecordedStore,
        trail: Trail,
        session: RunSession,
    ) -> "_Ended":
        config = run_config(run)
        try:
            async with asyncio.timeout(run.limits.deadline_seconds):
                value = await entry(store.runs, run, saver, config)
                while True:
                    with entered_session(session), contained():
                        output = await graph.ainvoke(
                            value, config, context=run_context(graph, run), durability="sync", version="v2"
                        )
                    if output.interrupts:
                        answers = _answers(store, [interrupt.id for interrupt in output.interrupts])
                        if not answers:
                            return _Ended(RunStatus.INTERRUPTED)
                        value = Command(resume=answers)
                    elif await self._waits_at_breakpoint(graph, run, trail):
                        return _Ended(RunStatus.INTERRUPTED)
                    elif has_breakpoints(graph) and (await graph.aget_state(config)).next:
                        value = None
                    else:
                        return _Ended(RunStatus.COMPLETED, plain_output(output.value))
        except ReplayStopped:
            return _Ended(RunStatus.CANCELLED, await _state(graph, run))
        except Exception as error:  # noqa: BLE001  # what the graph fails with is what is compared
            if store.progress.stop is not None:
                return _Ended(RunStatus.CANCELLED, await _state(graph, run))
            record = translated(error).record(run_id=run.run_id, step_name=session.step_of(error))
            return _Ended(RunStatus.FAILED, await _state(graph, run), record)

    async def _waits_at_breakpoint(self, graph: Graph, run: Run, trail: Trail) -> bool:
        """Whether the recorded run got no leave to pass the breakpoint that the replay stands at."""
        if not has_breakpoints(graph):
            return False
        snapshot = await graph.aget_state(run_config(run))
        if not snapshot.next:
            return False
        checkpoint_id = trail.checkpoint((snapshot.metadata or {}).get("step", 0))
        leave = await leave_then(self._doors.store.approvals, owner_of(run), checkpoint_id)
        return leave is None or _is_open(leave) or refused(leave)

    async def _history(self, run: Run, graph: Graph) -> list[CheckpointTuple]:
        """Every checkpoint of the run's thread, subgraphs' included, newest first."""
        saver = self._saver_for(owner_of(run), graph)
        history = [each async for each in saver.alist({"configurable": {"thread_id": run.thread_id}})]
        if not any(_is_of(run, each) for each in history):
            raise Conflict(
                f"run {run.run_id} never came to a checkpoint that is still there, so there is nothing to replay"
            )
        return history

    async def _line_of(self, run: Run) -> Sequence[Run]:
        """The run, and those that it goes on for."""
        line = [run]
        while (before := line[-1].resumed_from) is not None:
            line.append(await self._doors.store.runs.get(run.tenant.tenant_id, before))
        return line

    async def _events(self, run: Run) -> AsyncIterator[Event]:
        after, tenant_id = 0, run.tenant.tenant_id
        while page := await self._doors.store.events.read(tenant_id, run.run_id, after=after, limit=_EVENTS_AT_ONCE):
            for event in page:
                yield event
            after = page[-1].seq

    async def _report(self, run: Run, graph: Graph, ended: "_Ended", store: RecordedStore) -> ReplayReport:
        journal, progress = self._doors.store.journal, store.progress
        calls = await journal.of_run(run.tenant.tenant_id, run.run_id)
        own = {call.call_id: call for call in calls if call.last_run_id == run.run_id}
        answered = [store.journal.seen[call_id] for call_id in progress.replayed if call_id in store.journal.seen]
        left_out = _left_out(own, progress.replayed)
        governance: Any = graph.governance  # type: ignore[attr-defined]  # the registry admits governed graphs only
        return ReplayReport(
            run=run,
            graph_version=governance.version,
            calls=answered,
            left_out=left_out,
            status=ended.status,
            output=ended.output,
            error=ended.error,
            stop=progress.stop,
            differences=tuple(_differences(run, ended, progress.stop, left_out)),
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    status: RunStatus
    output: Any = None
    error: RuntimeErrorRecord | None = None


def _left_out(own: Mapping[CallId, CallRecord], replayed: Collection[str]) -> list[CallRecord]:
    """What was not asked for, and not inside of a call that answered from its record either."""
    known = {call.identity.key: call for call in own.values()}
    return [
        call
        for call_id, call in own.items()
        if call_id not in replayed and not any(outer.call_id in replayed for outer in calls_around(call, known))
    ]


def _answers(store: RecordedStore, asked: Sequence[str]) -> dict[str, Any]:
    found = {interrupt_id: store.approvals.answered(interrupt_id) for interrupt_id in asked}
    return {interrupt_id: rulings.answer(approval) for interrupt_id, approval in found.items() if approval is not None}


def _is_open(approval: Approval) -> bool:
    return approval.status in ("pending", "withdrawn")


async def _state(graph: Graph, run: Run) -> Any:
    with contained():
        return plain_output((await graph.aget_state(run_config(run))).values)


def _is_of(run: Run, checkpoint: CheckpointTuple) -> bool:
    """Whether it is a checkpoint of the run's own graph, and not of one below it, that the run has written."""
    return _namespace(checkpoint) == "" and checkpoint.metadata.get(RUN_MARK) == run.run_id


async def _memory(history: Sequence[CheckpointTuple], run: Run, *, serde: Any) -> InMemorySaver:
    """A saver in memory that has what the thread had when the run began."""
    saver = InMemorySaver(serde=serde)
    root = {_id(each): each for each in history if _namespace(each) == ""}
    first = min((each for each in root.values() if _is_of(run, each)), key=_id)
    start = _parent(first)
    line: set[str] = set()
    while start is not None and start in root:
        line.add(start)
        start = _parent(root[start])
    newest = max(line, default=None)
    for each in reversed(history):
        place = each.config["configurable"]
        before = _id(each) in line if _namespace(each) == "" else _outer(each) in line - {newest}
        if not before:
            continue
        parent: RunnableConfig = {"configurable": {**place, "checkpoint_id": _parent(each)}}
        await saver.aput(parent, each.checkpoint, each.metadata, each.checkpoint["channel_versions"])
        if _id(each) == newest and _namespace(each) == "":
            continue  # its tasks have not run yet
        of_task: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for task_id, channel, value in each.pending_writes or []:
            of_task[task_id].append((channel, value))
        for task_id, writes in of_task.items():
            await saver.aput_writes(each.config, writes, task_id)
    return saver


def _id(each: CheckpointTuple) -> str:
    return str(each.config["configurable"]["checkpoint_id"])


def _namespace(each: CheckpointTuple) -> str:
    return str(each.config["configurable"]["checkpoint_ns"])


def _parent(each: CheckpointTuple) -> str | None:
    return None if each.parent_config is None else str(each.parent_config["configurable"]["checkpoint_id"])


def _outer(each: CheckpointTuple) -> str | None:
    return (each.metadata.get("parents") or {}).get("")


def _differences(run: Run, ended: _Ended, stop: Stop | None, left_out: Sequence[CallRecord]) -> list[str]:
    """What is not as it was recorded. A run that did not complete was recorded up to its end, and no further: where the
    replay comes to nothing else than that, it is the same."""
    if stop is not None:
        at_its_end = not left_out and run.status is not RunStatus.COMPLETED
        return [] if at_its_end else [f"node {stop.node}: {stop.why}", *_unasked(left_out)]
    found = _unasked(left_out)
    waits = ended.status is RunStatus.INTERRUPTED and run.status is RunStatus.CANCELLED  # it was stopped while it did
    if ended.status is not run.status and not waits:
        why = (
            ""
            if ended.error is None
            else f" ({ended.error.error_type} in {ended.error.step_name}: {ended.error.message})"
        )
        return [*found, f"it ends as {ended.status}{why}, and the run is {run.status}"]
    now, then = _cause(ended.error), _cause(run.cause)
    if run.status is RunStatus.FAILED and now != then:
        found.append(f"it fails with {now}, and the run failed with {then}")
    return [*found, *_fields(ended.output, run.output)] if run.status is RunStatus.COMPLETED else found


def _unasked(left_out: Sequence[CallRecord]) -> list[str]:
    return [
        f"node {call.identity.site.node}: it does not ask for {call.identity.name}, which is recorded"
        for call in left_out
    ]


def _cause(record: RuntimeErrorRecord | None) -> str:
    return "nothing" if record is None else f"{record.error_type.value} in {record.step_name}"


def _fields(now: Any, then: Any) -> list[str]:
    """The fields of the output that are not the same. Ids of messages are left out: they are made anew each time."""
    now, then = _comparable(now), _comparable(then)
    if not isinstance(now, dict) or not isinstance(then, dict):
        return [] if now == then else ["the output is another one"]
    return [
        f"the output's {name!r} is another one" for name in sorted({*now, *then}) if now.get(name) != then.get(name)
    ]


def _comparable(value: Any) -> Any:
    return _without_ids(json.loads(json.dumps(value)))


def _without_ids(value: Any) -> Any:
    match value:
        case dict():
            is_message = "content" in value and "type" in value
            return {name: _without_ids(item) for name, item in value.items() if not (is_message and name == "id")}
        case list():
            return [_without_ids(item) for item in value]
        case _:
            return value
