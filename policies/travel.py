"""Who may go back in a run's history, and which runs can be gone on from."""

from holdfast.contracts.errors import BudgetExceeded, Conflict, DeadlineExceeded, NotFound, PolicyDenied
from holdfast.contracts.ids import BudgetId, TenantId
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.runs import RunStatus
from holdfast.contracts.tenancy import Principal
from holdfast.policies.refusal import refusal

TRAVELLING_ROLES = frozenset({"admin", "operator"})
"""Either of these lets a principal look at earlier states of its tenants, fork, resume and replay."""


def require_may_travel(principal: Principal, tenant_id: TenantId, action: str) -> None:
    """Raise unless `principal` may do this with the history of the tenant's runs.

    `NotFound` for one that does not belong to the tenant, as for a run that does not exist; `PolicyDenied` for one
    without such a role.
    """
    if not principal.may_act_for(tenant_id):
        raise NotFound(f"{principal.user_id!r} has no tenant {tenant_id!r}")
    if TRAVELLING_ROLES.isdisjoint(principal.roles):
        raise PolicyDenied(
            f"{principal.user_id!r} may not {action} of tenant {tenant_id!r}: that needs the role "
            f"{' or '.join(sorted(TRAVELLING_ROLES))}",
            rule="travel.role",
            action=action,
            resource=tenant_id,
        )


def require_own_checkpoints(run_id: str, *, attached: bool) -> None:
    """Raise `Conflict` for an attached run: its host keeps the checkpoints and runs its thread."""
    if attached:
        raise Conflict(f"run {run_id} is attached: its host keeps its checkpoints, and goes back and on in them")


def require_ended(run_id: str, status: RunStatus, action: str) -> None:
    """Raise `Conflict` unless the run has ended."""
    if not status.final:
        raise Conflict(f"run {run_id} is {status}, so it cannot be {action} yet; wait for its end or cancel it")


def require_resumable(run_id: str, status: RunStatus, *, attached: bool, followed_by: str | None) -> None:
    """Raise `Conflict` unless a new run can go on where this one stopped: it failed or was cancelled, and nothing has
    come after it on its thread."""
    require_own_checkpoints(run_id, attached=attached)
    require_ended(run_id, status, "resumed")
    if status is RunStatus.COMPLETED:
        raise Conflict(f"run {run_id} completed, so nothing is left to resume; start another run on its thread")
    if followed_by is not None:
        raise Conflict(
            f"run {run_id} was followed by run {followed_by} on its thread; only the last one can be resumed",
            followed_by=followed_by,
        )


def require_room_left(run_id: str, limits: Limits, before: BudgetState, *, working_seconds: float | None) -> None:
    """Raise `BudgetExceeded` or `DeadlineExceeded` when the limits of a resumed run leave it less than nothing: they
    hold for what the run before it has spent, too."""
    spent = before.spent + before.reserved
    over = refusal(BudgetId(run_id), "run", limits=limits, spent=spent, reserved=Usage(), requested=Usage())
    if over is not None:
        raise BudgetExceeded(
            f"run {run_id} has spent more than the limit {over.facts['limit_name']} of a run that would go on for it; "
            "give it a higher one",
            **over.facts,
        )
    if working_seconds == 0:
        raise DeadlineExceeded(
            f"run {run_id} has used up the {limits.deadline_seconds:g} s that it and the run that would go on for it "
            "may work together; give more",
        )
