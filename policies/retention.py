"""Contents that retention has taken: what stays of them, and who cannot do without."""

from datetime import datetime

from holdfast.contracts.errors import ContentsPruned, RuntimeErrorRecord
from holdfast.contracts.ids import RunId

TERM = "contents_days"
"""The term of a tenant's retention that lets go of contents."""

NO_FORK = "nothing can be forked from it; start a new run"
NO_RESUME = "nothing can go on from it; start a new run"


def require_contents(run_id: RunId, pruned_at: datetime | None, otherwise: str) -> None:
    """Raise `ContentsPruned` for a run whose contents were pruned; `otherwise` says what that leaves to do or not."""
    if pruned_at is not None:
        raise ContentsPruned(
            f"the contents of run {run_id} (its input and output, its calls and approvals) were pruned on "
            f"{pruned_at:%Y-%m-%d %H:%M:%S} UTC by its tenant's term {TERM}: {otherwise}",
            run_id=run_id,
            term=TERM,
            pruned_at=pruned_at.isoformat(),
        )


def without_words(cause: RuntimeErrorRecord | None) -> RuntimeErrorRecord | None:
    """The facts of what ended a run: where, of which type and class. What was quoted in it is gone."""
    if cause is None:
        return None
    known = {name: fact for name, fact in cause.metadata.items() if name == "class"}
    return cause.model_copy(update={"message": f"what it said was pruned ({TERM})", "metadata": known})
