"""Schedules: which runs there are, and what goes wrong in which worker. Drawn from a seed, or made for a mark."""

import random
from dataclasses import dataclass, field

from simulation.nursery import TENANTS
from simulation.worlds import KINDS, LEASE_SECONDS

from holdfast import Limits
from holdfast.contracts.marks import Mark
from holdfast.testing.faults import Action, Fault, Plan


@dataclass(frozen=True)
class Job:
    """One run of a schedule."""

    graph: str
    tenant: str
    kinds: tuple[str, ...] = ()
    """Of an errands run: its branches."""
    limits: Limits = field(default_factory=lambda: Limits(deadline_seconds=120))
    sample: str = ""
    """Of a refund desk run: the e-mail."""
    may_fail: bool = False
    """Whether its budget is too small for it."""
    cancelled_after: float | None = None


@dataclass(frozen=True)
class Schedule:
    """Everything that is decided before anything happens."""

    seed: int
    """It also rolls the dice of who decides. 0: this schedule was not drawn."""
    plans: tuple[Plan, ...]
    """Of the workers in the order in which they come, two at a time; those after the last meet no faults."""
    jobs: tuple[Job, ...]
    quarrel: bool = False
    """Whether two people decide at once."""
    desk: Plan | None = None
    """Of a process that starts the runs and decides, in the conductor's place."""
    mutant: str | None = None
    """The defence that all its processes are without."""

    def __str__(self) -> str:
        jobs = ", ".join(f"{job.graph}({'+'.join(job.kinds) or job.sample})" for job in self.jobs)
        plans = " | ".join(str(plan) or "-" for plan in self.plans)
        desk = "" if self.desk is None else f"; desk: {self.desk}"
        mutant = "" if self.mutant is None else f"; without {self.mutant}"
        return f"seed {self.seed}: {jobs}; workers: {plans}{desk}{mutant}"

    @property
    def faults(self) -> list[Fault]:
        """All that may go wrong."""
        return [fault for plan in (*self.plans, self.desk or Plan()) for fault in plan.faults]

    @property
    def restarts(self) -> bool:
        """Whether the database is restarted."""
        return any(fault.action is Action.RESTART for fault in self.faults)


AT_THE_DESK = (Mark.RUN_ADMITTED, Mark.APPROVAL_DECIDED)
"""The marks that whoever starts runs and decides comes to."""
AT_THE_DESK_ACTIONS = {Action.CRASH: 6, Action.CUT: 2, Action.RESTART: 1, Action.PAUSE: 1}
AT_WORK = (
    *(mark for mark in Mark if mark not in AT_THE_DESK),
    *(Mark.INTENT_RECORDED, Mark.TOOL_SENDING, Mark.TOOL_SENT, Mark.TOOL_ANSWERED, Mark.OUTCOME_RECORDED) * 3,
    *(Mark.CHECKPOINT_COMMITTING, Mark.WRITES_COMMITTING, Mark.OUTCOME_RECORDING, Mark.NODE_STARTING) * 2,
)
"""The marks that a worker comes to; those around a send and before a write more than once, to be drawn oftener."""


def drawn(seed: int) -> Schedule:
    """The schedule of a seed."""
    dice = random.Random(seed)
    jobs = tuple(_job(dice) for _ in range(dice.choice((1, 2, 2, 3))))
    seconds = (0.5 * LEASE_SECONDS, 3 * LEASE_SECONDS)
    plans = tuple(Plan.drawn(dice, most=4, marks=AT_WORK, seconds=seconds) for _ in range(2))
    desk = None
    if dice.random() < 0.15:
        desk = Plan.drawn(dice, most=2, marks=AT_THE_DESK, actions=AT_THE_DESK_ACTIONS, seconds=seconds)
    return Schedule(seed, plans, jobs, quarrel=dice.random() < 0.3, desk=desk)


_BEFORE: dict[Mark, str] = {
    Mark.RESEND_RECORDED: "model.sent#1=lose",
    Mark.RECONCILE_ASKING: "tool.sent#1=lose",
    Mark.RECONCILE_ANSWERED: "tool.sent#1=lose",
    Mark.DRAIN_BEGUN: "node.started#1=drain",
    Mark.RUN_RELEASING: "node.started#1=drain",
    Mark.RUN_RELEASED: "node.started#1=drain",
    Mark.LEASE_RENEWING: "node.started#1=stall:1.5",
    Mark.LEASE_RENEWED: "node.started#1=stall:1.5",
}
"""What has to happen first, so that a mark is come to."""
_LOOKS_UP = (Mark.RECONCILE_ASKING, Mark.RECONCILE_ANSWERED)
NOT_OF_REFUNDS = (*_LOOKS_UP,)
"""The refund desk's one effect honours its key, so nobody is asked what became of it."""
_AT_THE_END = (Mark.RUN_FINISHING, Mark.RUN_FINISHED)
WHOLE_HOUSE = (Job("errands", "acme", KINDS), Job("refunds", "bolt", sample="large"))
LOOKED_UP = (Job("errands", "acme", ("looked_up",) * 3),)


def crash_at(mark: Mark, jobs: tuple[Job, ...] = WHOLE_HOUSE) -> Schedule:
    """The schedule in which every process of the first generation dies where it first comes to `mark`."""
    plan = _crashing(mark)
    if mark in _LOOKS_UP:
        jobs = LOOKED_UP
    if mark in AT_THE_DESK:
        return Schedule(0, (), jobs, desk=plan)
    return Schedule(0, (plan, plan), jobs)


def crashes_in_turn(chains: int) -> list[Schedule]:
    """A crash at each mark, several in one schedule: one worker after the other dies where it first comes to its own,
    and what is left is the next one's. A worker may find that its mark is past; `crash_at` is for that one."""
    at_work = [mark for mark in Mark if mark not in {*AT_THE_DESK, *_LOOKS_UP, *_AT_THE_END}]
    desks = [*map(_crashing, AT_THE_DESK), *(None,) * chains]
    drawn_out = [at_work[first::chains] for first in range(chains)]
    for marks, last in zip(drawn_out, _AT_THE_END, strict=False):
        marks.append(last)
    turns = [
        Schedule(0, tuple(map(_crashing, marks)), WHOLE_HOUSE, desk=desk)
        for marks, desk in zip(drawn_out, desks, strict=False)
    ]
    return [*turns, Schedule(0, tuple(map(_crashing, _LOOKS_UP)), LOOKED_UP)]


def _crashing(mark: Mark) -> Plan:
    return Plan.read(f"{_BEFORE.get(mark, '')} {mark}#1=crash")


def _job(dice: random.Random) -> Job:
    tenant = dice.choice(TENANTS)
    match dice.choices(("errands", "refunds", "rush", "cancelled"), (60, 20, 12, 8))[0]:
        case "errands":
            return Job("errands", tenant, tuple(dice.choices(KINDS, k=dice.randint(1, 4))))
        case "refunds":
            return Job("refunds", tenant, sample=dice.choice(("large", "small", "denied")))
        case "rush":
            limits = Limits(deadline_seconds=120, max_tool_calls=2)
            return Job("errands", tenant, ("keyed",) * 4 + ("blind",) * 2, limits, may_fail=True)
        case _:
            return Job("errands", tenant, tuple(dice.choices(KINDS, k=2)), cancelled_after=dice.uniform(0.2, 3))
