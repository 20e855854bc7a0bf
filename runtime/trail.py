"""Where a run stood when it was recorded: a replay's tasks by the ids that they had then.

LangGraph makes a task's id from the checkpoint it starts from, and a replay's checkpoints are new ones. So the id of
each task is made again from the checkpoint that was recorded at the same step of the same graph.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from holdfast.contracts.calls import CallSite
from holdfast.contracts.errors import InvariantViolated
from holdfast.contracts.ids import ThreadId
from holdfast.nodes.place import Place, Task, interrupt_in, interrupt_index, locator, task_at, task_here

_SEPARATOR, _END = "|", ":"


@dataclass(frozen=True, slots=True)
class _Known:
    recorded_id: str
    own_ns: str
    """The namespace of the task in the replay."""


class Trail:
    """The recorded checkpoints by graph and step, and the replay's tasks as they come."""

    def __init__(self, recorded: Iterable[CheckpointTuple]) -> None:
        self._checkpoints: dict[tuple[str, int], str] = {}
        for each in recorded:
            place = each.config["configurable"]
            self._checkpoints.setdefault((place["checkpoint_ns"], each.metadata["step"]), place["checkpoint_id"])
        self._tasks: dict[str, _Known] = {}

    def checkpoint(self, step: int) -> str | None:
        """The recorded checkpoint of the outermost graph at a step."""
        return self._checkpoints.get(("", step))

    def locator(self, thread_id: ThreadId, place: Place, config: RunnableConfig) -> Callable[[], CallSite]:
        """What `nodes.place.locator` makes, telling where the same call stood when it was recorded."""
        own = locator(thread_id, place, config)
        self._learn(task_at(config))

        def locate() -> CallSite:
            site = own()
            self._learn(task_here())
            return replace(
                site, task_id=self._recorded(site.task_id), checkpoint_ns=self._translated(site.checkpoint_ns)
            )

        return locate

    def interrupt(self, task_id: str, interrupt_id: str) -> str:
        """The recorded id of a question that a task of the replay asks; its own where none can be told."""
        known = self._tasks.get(task_id.partition("/")[0])
        index = None if known is None else interrupt_index(known.own_ns, interrupt_id)
        if known is None or index is None:
            return interrupt_id
        return interrupt_in(self._translated(known.own_ns), index)

    def _learn(self, task: Task | None) -> None:
        if task is None or task.task_id in self._tasks:
            return
        failed = task.of_failed
        if task.id_from(task.checkpoint_id, task.graph_ns, failed=failed) != task.task_id:
            raise InvariantViolated(
                f"LangGraph names the tasks of node {task.name!r} in another way than this version of holdfast knows"
            )
        graph_ns = self._translated(task.graph_ns)
        started_from = self._started_from(task, graph_ns)
        recorded = task.task_id
        if started_from is not None:
            failed_then = None if failed is None else self._recorded(failed)
            recorded = task.id_from(started_from, graph_ns, failed=failed_then)
        own_ns = f"{task.graph_ns}{_SEPARATOR}{task.name}" if task.graph_ns else task.name
        self._tasks[task.task_id] = _Known(recorded, f"{own_ns}{_END}{task.task_id}")

    def _started_from(self, task: Task, graph_ns: str) -> str | None:
        """The recorded checkpoint that this task starts from; of a `@task`, the one of the node that called it, and of
        an error handler, that of the node that failed."""
        found = self._checkpoints.get((graph_ns, task.step - 1))
        while found is None and (task.is_call or task.of_failed is not None) and graph_ns:
            graph_ns = graph_ns.rpartition(_SEPARATOR)[0]
            found = self._checkpoints.get((graph_ns, task.step - 1))
        return found

    def _recorded(self, task_id: str) -> str:
        known = self._tasks.get(task_id)
        return task_id if known is None else known.recorded_id

    def _translated(self, namespace: str) -> str:
        if not namespace:
            return namespace
        parts = (part.rpartition(_END) for part in namespace.split(_SEPARATOR))
        return _SEPARATOR.join(f"{name}{end}{self._recorded(last)}" for name, end, last in parts)
