"""Reads chains page by page and has them verified: any number of events, in the memory of a page."""

from collections.abc import AsyncIterator

from holdfast.contracts.chain import Head, Verification
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.ports import Events
from holdfast.policies.chain import ChainCheck

_PAGE = 1000
_BEFORE_ALL = -(2**63)


async def verified(events: Events, tenant_id: TenantId, run_id: RunId) -> Verification:
    """Whether the run's events, up to its head as it is now, are the ones that were written."""
    while True:
        head = await events.head(tenant_id, run_id)
        if head is None:
            return Verification(run_id=run_id, events=0, head=None, broken="the head is missing")
        found = await _followed(events, tenant_id, run_id, head)
        if found.ok or not await _pruned_since(events, tenant_id, run_id, head):
            return found


async def verified_all(events: Events, tenant_id: TenantId) -> AsyncIterator[Verification]:
    """The same for every run of a tenant, by id."""
    last: RunId | None = None
    while page := await events.logs(tenant_id, after=last, limit=_PAGE):
        for run_id in page:
            yield await verified(events, tenant_id, run_id)
        last = page[-1]


async def _followed(events: Events, tenant_id: TenantId, run_id: RunId, head: Head) -> Verification:
    check, after = ChainCheck(run_id, head), _BEFORE_ALL
    while page := await events.links(tenant_id, run_id, after=after, limit=_PAGE):
        if not all(map(check.follow, page)):
            break
        after = page[-1].seq
    return check.verdict()


async def _pruned_since(events: Events, tenant_id: TenantId, run_id: RunId, head: Head) -> bool:
    now = await events.head(tenant_id, run_id)
    return now is not None and now.anchor_seq > head.anchor_seq
