"""Whether a recorded call answers for itself when its node runs again."""

from holdfast.contracts.calls import CallRecord
from holdfast.contracts.classification import recalled
from holdfast.policies.retry import may_retry


def counts_as_no_outcome(record: CallRecord) -> bool:
    """Whether the record is a failure that may be tried again: then the call is opened anew instead of replayed."""
    if record.status != "failed" or record.error_type is None:
        return False
    error = recalled(record.error_type, record.error_message or "", record.error_facts)
    return may_retry(error, effect=record.effect, idempotent=record.idempotent)
