"""Whether a recorded call answers for itself when its node runs again."""

from holdfast.contracts.calls import CallRecord
from holdfast.contracts.classification import recalled
from holdfast.contracts.errors import ErrorType
from holdfast.contracts.ids import RunId
from holdfast.policies.retention import require_contents
from holdfast.policies.retry import may_retry


def counts_as_no_outcome(record: CallRecord, *, for_run: RunId) -> bool:
    """Whether the record is a failure that `for_run` may try again: then the call is opened anew instead of replayed.

    What failed for good in a run that has ended is tried again by the run that goes on for it: a key has been renewed
    meanwhile, say. A failure means that it was not done; one that was given up without anyone knowing stands.
    """
    if record.status != "failed" or record.error_type is None:
        return False
    if record.last_run_id != for_run:
        return record.error_type is not ErrorType.HUMAN_REQUIRED
    error = recalled(record.error_type, record.error_message or "", record.error_facts)
    return may_retry(error, effect=record.effect, idempotent=record.idempotent)


def require_recorded(record: CallRecord) -> None:
    """Raise `ContentsPruned` for a call of which only the facts are left: it can neither answer nor be made again."""
    what = f"its node {record.identity.site.node!r} cannot be answered from them when it runs again; start a new thread"
    require_contents(record.last_run_id, record.contents_pruned_at, what)
