"""What must hold in a database after any test, simulation or demo, and whether it does."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.invariants import violations
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.tenants import PostgresTenants
from holdfast.contracts.errors import InvariantViolated
from holdfast.contracts.ids import TenantId
from holdfast.contracts.tenancy import Principal
from holdfast.runtime.entropy import SystemIds

_SQL = load_queries("holdfast.checkpoints.invariants", "invariants.sql")
_ANYBODY = Principal(user_id="invariants", tenants=None)
_SHOWN = 3
_WITNESSES = {
    "a_lease_is_of_a_running_run": ("G2",),
    "a_running_run_is_held": ("G1",),
    "a_thread_has_one_running_run": ("G2",),
    "an_interrupted_run_waits_for_somebody": ("G1",),
    "an_admitted_run_has_its_budget": ("G1", "G5"),
    "a_clock_stands_only_while_a_person_is_asked": ("G6",),
    "a_stale_worker_left_no_trace": ("G2",),
    "a_call_is_recorded_once": ("G3", "G4"),
    "a_run_ends_with_its_calls_closed": ("G3", "G9"),
    "reserved_is_what_open_calls_reserved": ("G5",),
    "spent_is_what_calls_used": ("G4", "G5"),
    "steps_are_the_tasks_that_started": ("G5",),
    "a_limit_is_passed_only_by_unforeseen_usage": ("G5",),
    "a_used_grant_has_its_call": ("G7",),
    "a_call_acts_on_a_grant": ("G7",),
    "a_finished_run_asks_nothing": ("G7",),
    "events_have_no_gaps": ("G10",),
    "events_are_chained": ("G10",),
    "a_run_has_the_event_of_its_end": ("G1", "G10"),
    "only_what_has_ended_is_pruned": ("G10",),
    "contents_are_pruned_with_their_run": ("G10",),
    "a_call_has_the_events_of_its_life": ("G10",),
    "a_row_belongs_to_its_runs_tenant": ("G8",),
}


@dataclass(frozen=True, slots=True)
class Invariant:
    """A rule that every database of ours obeys."""

    name: str
    sentence: str
    guarantees: tuple[str, ...]
    """The guarantees that it bears witness to, by their numbers."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An invariant, and what violates it."""

    invariant: Invariant
    violations: tuple[str, ...]
    """The rows that violate it, each in words; none, if all is well."""

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return not self.violations

    def __str__(self) -> str:
        if self.ok:
            return f"holds     {self.invariant.sentence}"
        more = "" if len(self.violations) <= _SHOWN else f"; and {len(self.violations) - _SHOWN} more"
        seen = "; ".join(self.violations[:_SHOWN])
        return f"VIOLATED  {self.invariant.sentence} [{self.invariant.name}] {seen}{more}"


def _sentence(query: str) -> str:
    comment = re.match(r"(-- .*\n)+", query)
    assert comment is not None, "every query has its sentence"
    return " ".join(line.removeprefix("-- ") for line in comment[0].splitlines())


INVARIANTS = tuple(Invariant(name, _sentence(_SQL[name]), guarantees) for name, guarantees in _WITNESSES.items())
"""Every invariant that is checked, in the order in which they are told."""


async def check(database: Database, *, tenants: Sequence[TenantId] | None = None) -> Sequence[Finding]:
    """What each invariant finds in the rows of `tenants` (default: of all there are).

    Each is one statement and sees one moment, so this can be asked of a database that is at work.
    """
    seen = tenants if tenants is not None else await PostgresTenants(database, SystemIds()).names(principal=_ANYBODY)
    found = await violations(database, tenants=seen)
    return [Finding(invariant, tuple(found[invariant.name])) for invariant in INVARIANTS]


async def assert_invariants(database: Database) -> Sequence[Finding]:
    """The findings, when every invariant holds; raises `InvariantViolated` with those that do not."""
    findings = await check(database)
    broken = [finding for finding in findings if not finding.ok]
    if broken:
        raise InvariantViolated(
            "\n".join(str(finding) for finding in broken),
            invariants=[finding.invariant.name for finding in broken],
        )
    return findings
