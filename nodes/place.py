"""Where code stands in LangGraph: its live config, its task, the answers its task has been given.

All that we read of LangGraph's inside is read here. Keys and shapes are those of 1.2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Literal
from weakref import ref

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.pregel._algo import _xxhash_str as task_id_of_parts
from langgraph.pregel._algo import task_path_str
from langgraph.types import _interrupt_id as interrupt_id_at

from holdfast.contracts.calls import CallSite
from holdfast.contracts.canonical import digest
from holdfast.contracts.ids import ThreadId

NodeKind = Literal["node", "error_handler", "branch"]

Locator = Callable[[ThreadId, "Place", RunnableConfig], Callable[[], CallSite]]
"""Makes what reads where a call of a node stands."""

_TASK_ID = "__pregel_task_id"
_SCRATCHPAD = "__pregel_scratchpad"
_SEND = "__pregel_send"
_CALL = "__pregel_call"
_RESUMING = "__pregel_resuming"
_RUNTIME = "__pregel_runtime"
_CHECKPOINTER = "__pregel_checkpointer"
_RESUME = "__resume__"
_MOST_QUESTIONS = 1000
_PLACES = 10_000
"""How many graphs one branch of a task may call, before it comes to the numbers of another."""
_END = ":"
_PUSH, _PULL, _HANDLER = "__pregel_push", "__pregel_pull", "node_error_handler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A governed place in a graph."""

    graph: str
    node: str
    kind: NodeKind
    leaf: bool = True
    """False for a node that is a graph itself: its own nodes are counted, it is not."""

    @property
    def counted(self) -> bool:
        """Whether it is a step. A conditional edge belongs to its node's step."""
        return self.leaf and self.kind != "branch"


def live(config: RunnableConfig | None = None) -> dict[str, Any]:
    """LangGraph's `configurable` of the task that runs here: inside a `@task` another than its node's. `config` is
    the node's own, for code that runs outside LangGraph's context."""
    here = (var_child_runnable_config.get() or {}).get("configurable") or {}
    if _TASK_ID in here or config is None:
        return here
    return config.get("configurable") or {}


@contextmanager
def standing_at(config: RunnableConfig) -> Iterator[None]:
    """Lets the block stand in the task of `config`. LangGraph runs a node's body so, but its conditional edges as what
    called their graph: the node of another graph, whose calls and questions are not the edge's."""
    token = var_child_runnable_config.set(config)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def count_anew(config: RunnableConfig) -> None:
    """Let a task count the graphs and the `@task`s that it calls from the first again. LangGraph knows them, and what
    they have come to, by these numbers."""
    pad = config["configurable"][_SCRATCHPAD]
    for counter in (pad.subgraph_counter, pad.call_counter):
        counter._counter = None  # noqa: SLF001  # as LangGraph's counters begin


@contextmanager
def standing_apart(branch: str, again: bool = False) -> Iterator[None]:
    """Lets the block count the graphs and the `@task`s that it calls for itself: side by side with other branches,
    which come to their calls in another order when the node runs again. `again`: it goes on with those that it has
    called before, as LangGraph has it when it tries a task again."""
    here = var_child_runnable_config.get() or {}
    conf = here.get("configurable") or {}
    if _SCRATCHPAD not in conf:
        yield
        return
    first = (int(digest(branch)[:8], 16) + 1) * _PLACES
    pad = replace(
        conf[_SCRATCHPAD], subgraph_counter=partial(next, count(first)), call_counter=partial(next, count(first))
    )
    own: dict[str, Any] = {_SCRATCHPAD: pad}
    if again:
        own[_RESUMING] = True
    if (call := conf.get(_CALL)) is not None:  # it counts with its task's scratchpad, not with the config's
        task = _calling(call).args[0]()
        task = replace(task, config={**task.config, "configurable": {**task.config["configurable"], **own}})
        own[_CALL] = _called_by(task, call)
    with standing_at({**here, "configurable": {**conf, **own}}):
        yield


def counting_here(config: RunnableConfig) -> RunnableConfig:
    """A config of the task that code runs in here, as LangChain has handed it on from before its block stood apart;
    with what the block counts. That of another task stays as it is."""
    here, conf = live(), config.get("configurable") or {}
    if _TASK_ID not in here or conf.get(_TASK_ID) != here[_TASK_ID]:
        return config
    own = {key: here[key] for key in (_SCRATCHPAD, _CALL, _RESUMING) if key in here}
    return {**config, "configurable": {**conf, **own}}


def _called_by(task: Any, call: Any) -> Any:
    """The way to `@task`s as it is for that task."""
    real = _calling(call)
    own = partial(real.func, ref(task), *real.args[1:], **real.keywords)
    if call is real:
        return own
    [guard] = [cell.cell_contents for cell in call.__closure__ if cell.cell_contents is not real]
    return guard._guard_call(own)  # noqa: SLF001  # as LangGraph has it for a timed node


def _calling(call: Any) -> Any:
    """The way to `@task`s itself. A timed node's is a closure over the real one."""
    if isinstance(call, partial):
        return call
    return next(cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, partial))


def task_id_of(config: RunnableConfig) -> str:
    """The id of a node's own task; not `execution_info`'s, which error handlers inherit from the node that failed."""
    return str(config["configurable"][_TASK_ID])


def is_retry(config: RunnableConfig) -> bool:
    """Whether LangGraph runs a node again in the same attempt, after it has failed."""
    return bool(_info(config["configurable"], "node_attempt", 1) > 1)


def locator(thread_id: ThreadId, place: Place, config: RunnableConfig) -> Callable[[], CallSite]:
    """Reads where a call of this node stands, at the time of the call."""
    node = place.node if place.kind != "branch" else f"{place.node}?"  # a router's calls are not its node's
    own = task_id_of(config)

    def locate() -> CallSite:
        here = live(config)
        task_id = str(here[_TASK_ID])
        return CallSite(
            thread_id=thread_id,
            checkpoint_ns=str(here.get("checkpoint_ns") or ""),
            task_id=task_id,
            node=node if task_id == own else _node_name(node),
            checkpoint_id=_checkpoint_id(here),
            execution=_execution(here),
        )

    return locate


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What LangGraph makes a task's id from, but for the checkpoint that it starts from."""

    task_id: str
    checkpoint_id: str
    graph_ns: str
    """The namespace of the graph whose task it is; empty for the outermost."""
    step: int
    name: str
    path: tuple[Any, ...]
    triggers: tuple[str, ...]

    @property
    def is_call(self) -> bool:
        """Whether it is a `@task`: its namespace is below that of the task that called it."""
        return self.path[0] == _PUSH and self.path[-1] is True

    @property
    def of_failed(self) -> str | None:
        """The id of the task whose failure this one handles, and below which LangGraph puts it; None for any other."""
        return self.graph_ns.rpartition(_END)[2] if _HANDLER in self.path else None

    def id_from(self, checkpoint_id: str, graph_ns: str, *, failed: str | None = None) -> str:
        """The id that this task has where it starts from that checkpoint; `failed` is that of the one it handles."""
        namespace = f"{graph_ns}|{self.name}" if graph_ns else self.name
        return task_id_of_parts(
            bytes.fromhex(checkpoint_id.replace("-", "")), namespace, str(self.step), self.name, *self._told(failed)
        )

    def _told(self, failed: str | None) -> tuple[str, ...]:
        match self.path:
            case _ if failed is not None:
                return _PUSH, _HANDLER, failed
            case (kind, parent, index, True) if kind == _PUSH:
                return _PUSH, task_path_str(parent), str(index)
            case (kind, index, *_) if kind == _PUSH:
                return _PUSH, str(index)
            case _:
                return _PULL, *self.triggers


def task_here() -> Task | None:
    """The task that code runs in here: inside a `@task` another than its node's. None outside of any."""
    return task_at(var_child_runnable_config.get() or {})


def task_at(here: RunnableConfig) -> Task | None:
    """The task of a config; None where LangGraph says nothing of one."""
    conf, told = here.get("configurable") or {}, here.get("metadata") or {}
    checkpoint_id = _checkpoint_id(conf)
    if _TASK_ID not in conf or checkpoint_id is None or "langgraph_path" not in told:
        return None
    return Task(
        task_id=str(conf[_TASK_ID]),
        checkpoint_id=checkpoint_id,
        graph_ns=str(told["langgraph_checkpoint_ns"]).rpartition("|")[0],
        step=told["langgraph_step"],
        name=told["langgraph_node"],
        path=tuple(told["langgraph_path"]),
        triggers=tuple(told["langgraph_triggers"]),
    )


def interrupt_in(ns: str, index: int) -> str:
    """LangGraph's id of the n-th question, from 0, of the task in this namespace."""
    return interrupt_id_at(ns, index)


def interrupt_index(ns: str, interrupt_id: str) -> int | None:
    """Which question of the task in this namespace an interrupt is, from 0; None for one of another task."""
    return next((index for index in range(_MOST_QUESTIONS) if interrupt_id_at(ns, index) == interrupt_id), None)


def _checkpoint_id(conf: Mapping[str, Any]) -> str | None:
    """The checkpoint that the task started from. The config's own `checkpoint_id` is empty while a graph runs."""
    info = getattr(conf.get(_RUNTIME), "execution_info", None)
    return getattr(info, "checkpoint_id", None) or None


def _execution(conf: Mapping[str, Any]) -> str:
    """Which try of the task this is, and of which beginning of it: a `@task` is begun again with the one around it."""
    return f"{_info(conf, 'node_first_attempt_time', 0)}#{_info(conf, 'node_attempt', 1)}"


def _info(conf: Mapping[str, Any], name: str, default: Any) -> Any:
    return getattr(getattr(conf.get(_RUNTIME), "execution_info", None), name, default)


def _node_name(default: str) -> str:
    metadata = (var_child_runnable_config.get() or {}).get("metadata") or {}
    return str(metadata.get("langgraph_node") or default)


def parent_context(config: RunnableConfig | None) -> Any:
    """The context object a graph would inherit from the node it is called in; None at the top."""
    here = ((config or {}).get("configurable") or {}).get(_RUNTIME) or live().get(_RUNTIME)
    return getattr(here, "context", None)


def has_checkpointer(config: RunnableConfig | None) -> bool:
    """Whether whoever calls the graph brings a checkpointer for it."""
    return ((config or {}).get("configurable") or {}).get(_CHECKPOINTER) is not None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the task's n-th interrupt was answered with, and that interrupt's id."""

    interrupt_id: str
    value: Any


def answers(config: RunnableConfig) -> list[Answer]:
    """The answers that a task is resumed with, in the order of its questions; none outside of any."""
    conf = config["configurable"]
    if _SCRATCHPAD not in conf:
        return []
    pad, ns = conf[_SCRATCHPAD], conf["checkpoint_ns"]
    values = list(pad.resume)
    if (scalar := pad.get_null_resume(False)) is not None:
        values.append(scalar)
    return [Answer(interrupt_id_at(ns, index), value) for index, value in enumerate(values)]


def pass_question(answer: Any) -> None:
    """Go past the place of an interrupt that has been answered elsewhere, as `interrupt()` would with its answer.

    LangGraph finds answers by the order of questions in a task. A question that is not asked again, because our
    inbox knows the answer, would hand its place and its answer to the next one.
    """
    conf = live()
    pad = conf[_SCRATCHPAD]
    index = pad.interrupt_counter()
    if index == len(pad.resume):
        scalar = pad.get_null_resume(True)
        pad.resume.append(answer if scalar is None else scalar)
    if index < len(pad.resume):
        conf[_SEND]([(_RESUME, pad.resume[: index + 1])])


def drop_writes(config: RunnableConfig) -> None:
    """Take back what a task has written so far, but for answers it was given: it did not finish."""
    pending = _writes_behind(config["configurable"][_SEND])
    answered = [write for write in pending if write[0] == _RESUME]
    pending.clear()
    pending.extend(answered)


def _writes_behind(send: Any) -> Any:
    """The task's writes. A timed node's `send` is a closure over the real one."""
    while not hasattr(send, "__self__"):
        cells: Sequence[Any] = [cell.cell_contents for cell in send.__closure__ or ()]
        send = next(content for content in cells if callable(content) and not hasattr(content, "acquire"))
    return send.__self__
