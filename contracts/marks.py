"""Named places in the code where a crash, a pause or a lost answer matters.

Nothing is bound to a mark in production, and passing one costs a tenth of a microsecond. The simulation binds faults to
them (`holdfast.testing.faults`), and fails for a mark that none of its worlds reaches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

from holdfast.contracts.errors import ConfigurationError


class Mark(StrEnum):
    """A place by its name. What is said of each holds when it is reached."""

    RUN_ADMITTED = "run.admitted"
    """The run is committed; whoever asked for it has not been told."""
    RUN_CLAIMED = "run.claimed"
    """Leases are committed; nothing has been started."""
    RUN_HYDRATED = "run.hydrated"
    """The graph has its saver; it has not been called."""
    NODE_STARTING = "node.starting"
    """A node may run; neither its step nor its event is on its way."""
    NODE_STARTED = "node.started"
    """The step is counted and its event on its way to the writer; the node's code has not run."""
    NODE_COMPLETED = "node.completed"
    """The node has come to its end and its event waits for its writes; LangGraph has not been told."""
    SHARE_OPENED = "share.opened"
    """A specialist's budget is committed; the specialist has not begun."""
    INTENT_RECORDING = "intent.recording"
    """A call is let through; its intent is not written."""
    INTENT_RECORDED = "intent.recorded"
    """An intent is committed, and its budget reserved; nothing is sent."""
    RESEND_RECORDED = "resend.recorded"
    """It is committed that a call is sent once more; it has not been."""
    MODEL_SENDING = "model.sending"
    """A model is about to be asked; that the run is still ours is checked once more first."""
    MODEL_SENT = "model.sent"
    """A model has been asked and has done its work; its answer can still be lost."""
    MODEL_ANSWERED = "model.answered"
    """A model's answer is here; nothing of it is written."""
    TOOL_SENDING = "tool.sending"
    """A tool is about to act; that the run is still ours is checked once more first."""
    TOOL_SENT = "tool.sent"
    """A tool has acted; its answer can still be lost."""
    TOOL_ANSWERED = "tool.answered"
    """A tool's answer is here; nothing of it is written."""
    OUTCOME_RECORDING = "outcome.recording"
    """What became of a call is known, and not written."""
    OUTCOME_RECORDED = "outcome.recorded"
    """An outcome is committed with its settlement; the node has not been told."""
    RECONCILE_ASKING = "reconcile.asking"
    """A tool is about to be asked what became of a call."""
    RECONCILE_ANSWERED = "reconcile.answered"
    """A tool has said what became of a call; it is not written."""
    APPROVAL_ASKING = "approval.asking"
    """A person is to be asked; the question is not on its way to the inbox."""
    APPROVAL_ASKED = "approval.asked"
    """A question waits for the writes of its task; the graph has not paused for it."""
    APPROVAL_DECIDED = "approval.decided"
    """A decision is committed and its run queued again; whoever decided has not been told."""
    FENCE_HELD = "fence.held"
    """A transaction has its lease locked; it has written nothing."""
    CHECKPOINT_COMMITTING = "checkpoint.committing"
    """LangGraph has handed a checkpoint over; it is not written."""
    CHECKPOINT_COMMITTED = "checkpoint.committed"
    """A checkpoint is committed; LangGraph has not been told."""
    WRITES_COMMITTING = "writes.committing"
    """LangGraph has handed a task's writes over; they are not written."""
    WRITES_COMMITTED = "writes.committed"
    """A task's writes are committed; LangGraph has not been told."""
    FLUSH_COMMITTED = "flush.committed"
    """The rows of several runs are committed together; none of them has been told."""
    RUN_RESTING = "run.resting"
    """A run is about to be parked for a person."""
    RUN_RESTED = "run.rested"
    """A run is parked and its lease given back; the worker still counts it as its own."""
    RUN_FINISHING = "run.finishing"
    """A run has come to its end, which is not written."""
    RUN_FINISHED = "run.finished"
    """A run's end is committed; the worker still counts it as its own."""
    RUN_RELEASING = "run.releasing"
    """A run is about to be handed back to the queue."""
    RUN_RELEASED = "run.released"
    """A run is handed back to the queue; the worker still counts it as its own."""
    LEASE_RENEWING = "lease.renewing"
    """A heartbeat is about to be sent."""
    LEASE_RENEWED = "lease.renewed"
    """A heartbeat has been answered; the worker has not moved the ends of its leases."""
    DRAIN_BEGUN = "drain.begun"
    """The worker takes nothing new, and has told its runs to stop at their next boundary."""


class Marks(Protocol):
    """What happens at a mark while it is bound: nothing, a pause, an exception, or the end of the process."""

    async def reach(self, mark: Mark) -> None:
        """A task has come to `mark`."""
        ...

    def reach_in_thread(self, mark: Mark) -> None:
        """The same for code that runs beside the loop."""
        ...


_bound: Marks | None = None  # of the process, as its death is: a writer that serves many runs passes marks too


async def reach(mark: Mark) -> None:
    """Come to `mark`. It yields to nobody unless something is bound."""
    if _bound is not None:
        await _bound.reach(mark)


def reach_in_thread(mark: Mark) -> None:
    """The same in a thread beside the loop."""
    if _bound is not None:
        _bound.reach_in_thread(mark)


@contextmanager
def bound(marks: Marks) -> Iterator[None]:
    """Let `marks` be told of every mark that this process comes to, for as long as the block lasts."""
    global _bound
    if _bound is not None:
        raise ConfigurationError("marks are bound already in this process")
    _bound = marks
    try:
        yield
    finally:
        _bound = None
