"""What a tenant's terms mean for a run, and who may decide for a tenant."""

from holdfast.contracts.approvals import Approval
from holdfast.contracts.errors import NotFound, PolicyDenied
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.tenancy import Principal, Tenant

DECIDING_ROLES = frozenset({"approver", "admin"})
"""Either of these lets a principal decide approvals of its tenants."""

LIFTING_ROLES = frozenset({"admin"})
"""This lets a principal take a legal hold off again, after which the terms of retention delete what was held."""


def effective_limits(tenant: Tenant, requested: Limits | None) -> Limits:
    """The limits a run gets: what was requested, and the tenant's default wherever nothing was.

    A request may be above the defaults: they are for runs that name none, and `Tenant.budget` holds for all runs
    together. `None` written out raises `PolicyDenied` unless the tenant may be unlimited; so does a default of None
    that the tenant has no right to.
    """
    limits = (requested or Limits()).over(tenant.defaults)
    if limits.unlimited and not tenant.may_be_unlimited:
        names = ", ".join(limits.unlimited)
        raise PolicyDenied(
            f"tenant {tenant.tenant_id!r} may not run without a limit: {names} is None. Give it a number, or set "
            "may_be_unlimited in the tenant's terms",
            rule="tenancy.unlimited",
            action="start a run",
            resource=names,
        )
    return limits


def require_may_hold(principal: Principal, tenant_id: TenantId, run_id: RunId, *, lifting: bool) -> None:
    """Raise unless `principal` may put a legal hold on a run of the tenant; to lift one takes the role `admin`.

    `NotFound` for one that does not belong to the tenant, `PolicyDenied` without such a role.
    """
    if not principal.may_act_for(tenant_id):
        raise NotFound(f"tenant {tenant_id!r} has no run {run_id} for {principal.user_id!r}")
    needed = LIFTING_ROLES if lifting else DECIDING_ROLES
    if needed.isdisjoint(principal.roles):
        raise PolicyDenied(
            f"{principal.user_id!r} may not {'lift a hold' if lifting else 'hold runs'} of tenant {tenant_id!r}: that "
            f"needs the role {' or '.join(sorted(needed))}",
            rule="tenancy.hold",
            action="lift" if lifting else "hold",
            resource=run_id,
        )


def require_may_decide(principal: Principal, approval: Approval) -> None:
    """Raise unless `principal` may decide `approval`.

    `NotFound` for one that does not belong to the tenant, as for an approval that does not exist; `PolicyDenied` for
    one without a deciding role. Who asked for the run may decide it too.
    """
    if not principal.may_act_for(approval.tenant_id):
        raise NotFound(f"there is no approval {approval.id} for {principal.user_id!r}")
    if DECIDING_ROLES.isdisjoint(principal.roles):
        raise PolicyDenied(
            f"{principal.user_id!r} may not decide approvals of tenant {approval.tenant_id!r}: that needs the role "
            f"{' or '.join(sorted(DECIDING_ROLES))}",
            rule="tenancy.role",
            action="decide",
            resource=approval.id,
        )
