"""Graphs compiled with `interrupt_before` or `interrupt_after`: a breakpoint is a question like any other.

LangGraph goes past a breakpoint as soon as it is invoked again, whoever invokes it. So the engine asks for leave in
the inbox, one question for each checkpoint that a run stops at, and goes on only with it.
"""

from functools import lru_cache
from typing import Any

from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalRequest, ApprovalStatus
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ports import Approvals
from holdfast.contracts.runs import Owner
from holdfast.runtime.registry import Graph


@lru_cache(maxsize=1024)
def has_breakpoints(graph: Graph) -> bool:
    """Whether the graph, or a graph in it, was compiled with breakpoints."""
    inner = (sub for _, sub in graph.get_subgraphs(recurse=True) if isinstance(sub, Pregel))
    return any(each.interrupt_before_nodes or each.interrupt_after_nodes for each in (graph, *inner))


def stands_before_one(graph: Graph, snapshot: StateSnapshot) -> bool:
    """Whether the nodes that come next are ones the graph stops before. (That it has just stopped after one is not
    to be seen in a checkpoint: a worker that is lost between that stop and its question loses the question.)"""
    before = graph.interrupt_before_nodes
    return bool(snapshot.next) and (before == "*" or bool(set(before) & set(snapshot.next)))


async def leave_at(approvals: Approvals, owner: Owner, snapshot: StateSnapshot) -> Approval | None:
    """What this run was asked at this checkpoint, if anything was."""
    return await leave_then(approvals, owner, _checkpoint_id(snapshot))


async def leave_then(approvals: Approvals, owner: Owner, checkpoint_id: str | None) -> Approval | None:
    """What a run was asked at a checkpoint that was recorded, if anything was."""
    for question in _questions_at(owner, checkpoint_id):
        leave = await approvals.of_interrupt(owner.tenant_id, owner.thread_id, question)
        if leave is not None and leave.run_id == owner.run_id:
            return leave
    return None


async def ask_leave(approvals: Approvals, owner: Owner, snapshot: StateSnapshot, *, expires_in_seconds: float) -> None:
    """Put the question into the inbox; idempotent for a run and a checkpoint."""
    first, own = _questions_at(owner, _checkpoint_id(snapshot))
    payload: dict[str, Any] = {"breakpoint": {"next": list(snapshot.next)}}
    request = ApprovalRequest(
        kind=ApprovalKind.QUESTION,
        interrupt_id=first,
        node=snapshot.next[0],
        task_id="",
        payload=payload,
        allowed=("approve", "reject"),
        expires_in_seconds=expires_in_seconds,
    )
    event = EventDraft(kind=EventKind.APPROVAL_ASKED, payload=payload)
    asked = await approvals.ask(owner, request, event=event)
    if asked.run_id != owner.run_id:  # what the run was told that this one goes on for is not said to this one
        await approvals.ask(owner, request.model_copy(update={"interrupt_id": own}), event=event)


def refused(leave: Approval) -> bool:
    """Whether a person said no, or nobody said anything in time."""
    return leave.status in (ApprovalStatus.REJECTED, ApprovalStatus.EXPIRED)


def _checkpoint_id(snapshot: StateSnapshot) -> str | None:
    return (snapshot.config.get("configurable") or {}).get("checkpoint_id")


def _questions_at(owner: Owner, checkpoint_id: str | None) -> tuple[str, str]:
    """The first question at a checkpoint, and that of a run which goes on from there for one that was asked it."""
    return f"breakpoint:{checkpoint_id}", f"breakpoint:{checkpoint_id}:{owner.run_id}"
