"""What a task called before this run of it: read from the journal once, and answered from memory from then on."""

from collections.abc import Mapping

from holdfast.contracts.calls import CallIdentity, CallRecord
from holdfast.contracts.ports import Journal
from holdfast.contracts.scope import Scope
from holdfast.policies.replay import counts_as_no_outcome


async def calls_before(journal: Journal, scope: Scope, task_id: str) -> Mapping[str, CallRecord]:
    """The calls of a task when it first asked here, by identity key. Nobody but this run of it can have added any."""
    if task_id not in scope.calls_before:
        found = await journal.of_task(scope.tenant.tenant_id, scope.owner.thread_id, task_id)
        scope.calls_before.setdefault(task_id, found)
    return scope.calls_before[task_id]


async def earlier(journal: Journal, scope: Scope, identity: CallIdentity) -> CallRecord | None:
    """The record of this call, unless there is none, or a failure that may be tried again."""
    record = (await calls_before(journal, scope, identity.site.task_id)).get(identity.key)
    return None if record is None or counts_as_no_outcome(record, for_run=scope.owner.run_id) else record
