"""The right of one owner to write, and what it has yet to hand in."""

from dataclasses import dataclass

from holdfast.checkpoints.records import NOTHING, Records
from holdfast.contracts.errors import HoldfastError
from holdfast.contracts.runs import Owner


@dataclass(slots=True)
class Steps:
    """The steps of a run, as its one owner counts them."""

    spent: int
    limit: int | None
    begun: set[str]
    """The tasks that were counted."""
    cancel_requested: bool

    def begin(self, task_id: str) -> bool:
        """Count a task as a step, once. Returns whether the limit allows it."""
        if task_id in self.begun:
            return True
        if self.limit is not None and self.spent >= self.limit:
            return False
        self.begun.add(task_id)
        self.spent += 1
        return True


class Pen:
    """The right of one owner to write, which ends for good with the first write that fails."""

    __slots__ = ("__weakref__", "_staged", "owner", "pending", "steps", "trouble")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.trouble: HoldfastError | None = None
        """Why it writes no more."""
        self.pending = 0
        """Writes handed in and not answered yet."""
        self.steps: Steps | None = None
        """None until the first step of the attempt."""
        self._staged: dict[str, Records] = {}

    def require(self) -> None:
        """Raises what ended it: `LeaseLost`, or an error of the kind of the first failure."""
        if self.trouble is not None:
            raise self.refusal(self.trouble)

    def refusal(self, trouble: HoldfastError) -> HoldfastError:
        """An error of its own for each who is refused for `trouble`."""
        kind = type(trouble)
        return kind(
            f"nothing more is written for run {self.owner.run_id} under epoch {self.owner.epoch}: {trouble.message}",
            **trouble.facts,
        )

    def stage(self, task_id: str, records: Records) -> None:
        """Keep what belongs into the commit of a task's checkpoint writes; `task_id` may be that of a part of the task,
        of a specialist say."""
        task_id = task_id.partition("/")[0]
        self._staged[task_id] = self._staged.get(task_id, NOTHING) + records

    def staged(self, task_id: str) -> Records:
        """Take what was staged for a task."""
        return self._staged.pop(task_id, NOTHING)

    def all_staged(self) -> Records:
        """Take what was staged for any task: of those that LangGraph has nothing to write for."""
        staged, self._staged = self._staged, {}
        return sum(staged.values(), start=NOTHING)
