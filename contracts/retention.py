"""What a tenant's terms let go of, and what is held against that."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from holdfast.contracts.ids import RunId


class LegalHold(BaseModel):
    """A legal hold on a run: while it lasts, its log and its thread's checkpoints and contents stay as they are."""

    model_config = ConfigDict(frozen=True)

    by: str
    """The user id of who holds it."""
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was taken out of one run's log, of its thread, or of what it holds."""

    run_id: RunId
    events: int = 0
    checkpoints: int = 0
    contents: int = 0
    """Rows that have lost their contents: the run's own, its calls' and its approvals'."""
