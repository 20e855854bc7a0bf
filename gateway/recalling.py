"""What a task called before this run of it: read from the journal once, and answered from memory from then on."""

from collections.abc import Mapping

from holdfast.contracts.calls import CallIdentity, CallRecord, CallSite
from holdfast.contracts.ports import Journal
from holdfast.contracts.scope import Scope
from holdfast.policies.replay import counts_as_no_outcome, require_recorded


async def calls_before(journal: Journal, scope: Scope, site: CallSite) -> Mapping[str, CallRecord]:
    """The calls of a task when it first asked here, by identity key. Nobody but this run of it can have added any.

    Raises `ContentsPruned` where a host lets a task run again whose run has ended so long ago.
    """
    if site.turn not in scope.calls_before:
        found = await journal.of_task(scope.tenant.tenant_id, scope.owner.thread_id, site.task_id)
        for record in found.values():
            require_recorded(record)
        scope.calls_before.setdefault(site.turn, found)
    return scope.calls_before[site.turn]


async def earlier(journal: Journal, scope: Scope, identity: CallIdentity) -> CallRecord | None:
    """The record of this call, unless there is none, or a failure that may be tried again."""
    record = (await calls_before(journal, scope, identity.site)).get(identity.key)
    return None if record is None or counts_as_no_outcome(record, for_run=scope.owner.run_id) else record
