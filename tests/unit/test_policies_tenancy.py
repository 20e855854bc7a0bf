"""A tenant's terms, and who may decide."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import DeadlineExceeded, NotFound, PolicyDenied
from holdfast.contracts.limits import Limits
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.policies.deadline import timeout_seconds
from holdfast.policies.tenancy import effective_limits, require_may_decide, require_may_hold
from holdfast.testing.clock import VirtualClock

ACME = Tenant(tenant_id="acme", defaults=Limits(deadline_seconds=60, max_model_calls=7))
APPROVAL = Approval(
    id="0198c0de-0000-7000-8000-000000000001",
    tenant_id="acme",
    run_id="r",
    thread_id="t",
    kind=ApprovalKind.TOOL,
    status=ApprovalStatus.PENDING,
    interrupt_id="i",
    node="n",
    task_id="k",
    payload={},
    allowed=("approve",),
    created_at=datetime(2030, 1, 1, tzinfo=UTC),
    expires_at=datetime(2030, 1, 2, tzinfo=UTC),
)


def test_limits_that_are_not_given_are_the_tenants():
    limits = effective_limits(ACME, Limits(max_model_calls=3))
    assert (limits.deadline_seconds, limits.max_model_calls) == (60, 3)
    assert effective_limits(ACME, None).max_model_calls == 7


def test_a_run_may_ask_for_more_than_the_default():
    assert effective_limits(ACME, Limits(max_cost_usd=Decimal(9))).max_cost_usd == 9


def test_a_limit_of_zero_is_a_limit():
    assert effective_limits(ACME, Limits(max_model_calls=0)).max_model_calls == 0


def test_unlimited_needs_the_tenants_permission_and_the_refusal_names_the_limit():
    with pytest.raises(PolicyDenied, match=r"max_cost_usd.*None") as refused:
        effective_limits(ACME, Limits(max_cost_usd=None))
    assert refused.value.facts["resource"] == "max_cost_usd"
    allowed = ACME.model_copy(update={"may_be_unlimited": True})
    assert effective_limits(allowed, Limits(max_cost_usd=None)).unlimited == ("max_cost_usd",)


def test_a_default_of_none_needs_it_too():
    with pytest.raises(PolicyDenied, match="max_steps"):
        effective_limits(Tenant(tenant_id="acme", defaults=Limits(max_steps=None)), None)


@pytest.mark.parametrize("role", ["approver", "admin"])
@pytest.mark.parametrize("tenants", [("acme",), None])
def test_an_approver_or_admin_of_the_tenant_may_decide(role, tenants):
    require_may_decide(Principal(user_id="dana", tenants=tenants, roles=(role,)), APPROVAL)


def test_a_member_without_the_role_is_told_which_it_takes():
    with pytest.raises(PolicyDenied, match="admin or approver"):
        require_may_decide(Principal(user_id="dana", tenants=("acme",), roles=("clerk",)), APPROVAL)


def test_to_a_stranger_the_approval_does_not_exist():
    with pytest.raises(NotFound):
        require_may_decide(Principal(user_id="mallory", tenants=("other",), roles=("admin",)), APPROVAL)


def test_a_timeout_is_what_is_left_of_the_deadline_and_no_more_than_its_cap():
    clock = VirtualClock()
    deadline = Deadline.after_seconds(10, clock=clock)
    assert timeout_seconds(deadline, 30) == 10
    assert timeout_seconds(deadline, 3) == 3
    assert timeout_seconds(deadline) == 10
    clock.advance(10)
    with pytest.raises(DeadlineExceeded, match="the mail"):
        timeout_seconds(deadline, 3, what="the mail")


@pytest.mark.parametrize(
    ("roles", "lifting", "may"),
    [
        (("approver",), False, True),
        (("admin",), False, True),
        (("clerk",), False, False),
        (("approver",), True, False),
        (("admin",), True, True),
    ],
)
def test_a_hold_takes_a_deciding_role_and_lifting_it_an_admin(roles: tuple[str, ...], lifting: bool, may: bool):
    principal = Principal(user_id="dana", tenants=("acme",), roles=roles)
    if may:
        require_may_hold(principal, "acme", "r", lifting=lifting)
        return
    with pytest.raises(PolicyDenied, match=r"'dana' may not .* needs the role .*admin"):
        require_may_hold(principal, "acme", "r", lifting=lifting)


def test_a_stranger_is_not_told_that_there_is_a_run_to_hold():
    with pytest.raises(NotFound):
        require_may_hold(Principal(user_id="mallory", tenants=("other",), roles=("admin",)), "acme", "r", lifting=True)
