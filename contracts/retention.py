"""What a tenant's terms let go of, and what is held against that."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from holdfast.contracts.ids import RunId


class LegalHold(BaseModel):
    """A legal hold on a run: nothing of its log or its thread's checkpoints is deleted while it lasts."""

    model_config = ConfigDict(frozen=True)

    by: str
    """The user id of who holds it."""
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was taken out of one run's log, or of its thread."""

    run_id: RunId
    events: int = 0
    checkpoints: int = 0
