"""What a node may use while it runs. A scope is set around every governed node and closed when the node ends."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from holdfast.contracts.approvals import Approval
from holdfast.contracts.calls import CallIdentity, CallKind, CallRecord, CallSite, Turn
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import LeaseLost, NotGoverned
from holdfast.contracts.ids import BudgetId
from holdfast.contracts.limits import Limits
from holdfast.contracts.models import ModelDoor
from holdfast.contracts.runs import Owner, RunIdentity
from holdfast.contracts.tenancy import TenantContext
from holdfast.contracts.verdicts import Autonomy

_SHORT = 16
"""How much of a key tells the calls of one task apart."""


def part_of(identity: CallIdentity) -> str:
    """The part of a task that the body of a call's tool is, as the ids of tasks are written."""
    return f"{identity.site.task_id}/{identity.key[:_SHORT]}"


@dataclass(slots=True, kw_only=True)
class Scope:
    """The rights of one node while it runs, or of one specialist below it."""

    run: RunIdentity
    owner: Owner
    tenant: TenantContext
    graph_name: str
    node: str
    agent_name: str
    deadline: Deadline
    limits: Limits
    budgets: tuple[BudgetId, ...]
    """Who pays, the innermost first: specialist, run, tenant."""
    autonomy: Autonomy
    models: ModelDoor
    """The door for model calls, for LangChain code that is carried through it."""
    default_model: str | None
    """The model that the route `default` means when the configuration names none: the graph's own offline model."""
    locate: Callable[[], CallSite]
    """Where the caller stands now; inside a `@task` that is another task than the node's own."""
    still_ours: Callable[[], bool]
    """The last check before anything is sent to the outside: is the lease still ours, by our own clock?"""
    apart: Callable[[str, bool], AbstractContextManager[None]] = lambda _, __: nullcontext()
    """Makes the block, known by this name, count the graphs that it calls for itself; and go on with them where it is
    run again."""
    fork: str = ""
    above: "Scope | None" = None
    """The scope that this one is a part of, and closed with."""
    closed: bool = False
    occurrences: Counter[tuple[Turn, str, str, str]] = field(default_factory=Counter)
    calls_before: dict[Turn, Mapping[str, CallRecord]] = field(default_factory=dict, repr=False)
    """What each task had called when it first called something here, by identity key: read once, not for each call."""
    approvals_before: dict[Turn, Sequence[Approval]] = field(default_factory=dict, repr=False)
    """What each task had asked people when it first called a tool here, oldest first."""
    acted: set[str] = field(default_factory=set, repr=False)
    """The keys of the calls whose tools have acted here, or begun to."""
    identified: defaultdict[Turn, set[str]] = field(default_factory=lambda: defaultdict(set), repr=False)
    """The keys of the calls that each task has asked for here."""

    def identify(self, kind: CallKind, name: str, request_digest: str) -> CallIdentity:
        """The identity of the next call with this digest here; each call of this method counts one."""
        site = self.locate()
        spot = (site.turn, kind, name, request_digest)
        occurrence = self.occurrences[spot]
        self.occurrences[spot] += 1
        identity = CallIdentity(
            site=site, kind=kind, name=name, request_digest=request_digest, occurrence=occurrence, fork=self.fork
        )
        self.identified[site.turn].add(identity.key)
        return identity

    def below(self, name: str) -> "Scope":
        """A scope for what is done below this one: a part of the same node that counts what it asks for by itself."""

        def locate() -> CallSite:
            here = self.locate()
            return replace(here, task_id=f"{here.task_id}/{name}")

        return replace(
            self,
            above=self,
            locate=locate,
            occurrences=Counter(),
            calls_before={},
            approvals_before={},
            acted=set(),
            identified=defaultdict(set),
        )

    @contextmanager
    def acting(self, key: str) -> Iterator[None]:
        """Lets the body of a tool act, below the call that has this key. It is run as often as the call is sent, and
        what it asks for is the same each time, whatever the node has asked for beside it."""
        if scope_here() is None:  # nothing that the body asks for would be found to be a node's
            yield
            return
        own = self.below(key[:_SHORT])
        try:
            with entered(own), self.apart(key, key in self.acted):
                self.acted.add(key)
                yield
        finally:
            own.closed = True

    def require_open(self, what: str) -> None:
        """Raise `NotGoverned` if the node has ended: a task that outlived it must not act."""
        if self.above is not None:
            self.above.require_open(what)
        if self.closed:
            raise NotGoverned(
                f"{what} was called after {self._whose()} had ended; await everything that it starts",
                action=what,
                rule="scope.closed",
            )

    def _whose(self) -> str:
        node = f"node {self.node!r}"
        return node if self.above is None else f"a tool or a specialist of {node}"

    def require_ours(self) -> None:
        """Raise `LeaseLost` when the lease has run out: the last thing before every send to the outside."""
        if not self.still_ours():
            raise LeaseLost(
                f"run {self.owner.run_id} is no longer ours: the lease of epoch {self.owner.epoch} has run out",
                run_id=self.owner.run_id,
                epoch=self.owner.epoch,
            )


_scope: ContextVar[Scope | None] = ContextVar("holdfast_scope", default=None)


def scope_here() -> Scope | None:
    """The scope of the node that runs here, if any."""
    return _scope.get()


def current_scope(what: str) -> Scope:
    """The open scope of the node that runs here; raises `NotGoverned` outside one."""
    scope = _scope.get()
    if scope is None:
        raise NotGoverned(
            f"{what} was called outside a governed node. Run the graph with Runtime.start(...), "
            "or govern(graph) and open_runtime() where another engine hosts it",
            action=what,
            rule="scope.absent",
        )
    scope.require_open(what)
    return scope


class entered:  # noqa: N801  # reads as a word: `with entered(scope):`
    """Makes `scope` the current one for the block."""

    def __init__(self, scope: Scope | None) -> None:
        self._scope = scope

    def __enter__(self) -> Scope | None:
        self._token = _scope.set(self._scope)
        return self._scope

    def __exit__(self, *exc: object) -> None:
        _scope.reset(self._token)
