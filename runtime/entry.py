"""How a run enters its graph: with its input or from a checkpoint, under which config, and known by which marks."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.types import Command
from pydantic import BaseModel

from holdfast.contracts.ports import Runs
from holdfast.contracts.runs import Run
from holdfast.runtime.registry import Graph

RUN_MARK = "holdfast_run"
"""Metadata of every checkpoint: which run of the thread wrote it."""
ATTEMPT_MARK = "holdfast_attempt"
"""Metadata of every checkpoint: which attempt of that run."""
_UNBOUNDED_STEPS = 1_000_000
_NO_TASK = "00000000-0000-0000-0000-000000000000"
"""LangGraph's id for what no task wrote: a command's update, say."""


async def entry(runs: Runs, run: Run, saver: BaseCheckpointSaver[Any], config: RunnableConfig) -> Any:
    """What to invoke the graph with. None: go on from the thread's latest checkpoint.

    That is what a run does once it has written a checkpoint itself, and one that goes on for an ended run once that
    one has. A fork goes on from the copied history, after its update of the state, if it has one.
    """
    latest = await saver.aget_tuple(config)
    mark = None if latest is None else latest.metadata.get(RUN_MARK)
    if mark == run.run_id:
        return None
    first = run
    while first.resumed_from is not None:
        first = await runs.get(first.tenant.tenant_id, first.resumed_from)
        if mark == first.run_id:
            return None
    given = saver.serde.loads_typed((first.input_type, first.input))
    if first.forked_from is None:
        return given
    return None if given is None or _is_updated(latest) else Command(update=given)


def _is_updated(latest: CheckpointTuple | None) -> bool:
    """Whether the update of a fork is there already; LangGraph would apply a second one beside it."""
    writes = [] if latest is None else latest.pending_writes or []
    return any(task_id == _NO_TASK for task_id, *_ in writes)


def run_config(run: Run) -> RunnableConfig:
    """LangGraph's config of an attempt at a run. Nothing secret: it is stored in the clear."""
    return {
        "configurable": {"thread_id": run.thread_id, "__pregel_strict_resume": True},
        "metadata": {RUN_MARK: run.run_id, ATTEMPT_MARK: run.attempt},
        "recursion_limit": run.limits.max_steps + 1 if run.limits.max_steps is not None else _UNBOUNDED_STEPS,
    }


def run_context(graph: Graph, run: Run) -> Any:
    """The context that the graph's nodes get; the schema's defaults where the run was given none."""
    if run.context is not None:
        return run.context
    schema = graph.context_schema
    return {} if isinstance(schema, type) and issubclass(schema, BaseModel) else None
