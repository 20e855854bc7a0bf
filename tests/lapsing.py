"""A lease that runs out between the door and the body: the process was stopped just there, or its loop was blocked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast.contracts.marks import Mark, bound

_AT_THE_DOOR = frozenset({Mark.TOOL_SENDING, Mark.MODEL_SENDING})


class _Lapsing:
    def __init__(self) -> None:
        self.at_the_door = False
        self.looks = 0

    async def reach(self, mark: Mark) -> None:
        self.at_the_door |= mark in _AT_THE_DOOR

    def reach_in_thread(self, mark: Mark) -> None:
        return

    def still_ours(self) -> bool:
        self.looks += self.at_the_door
        return self.looks <= 1


@contextmanager
def lapsing_at_the_door() -> Iterator[Callable[[], bool]]:
    """Whether the run is still ours: yes when its call is let through, and no longer when it is looked at again."""
    lapsing = _Lapsing()
    with bound(lapsing):
        yield lapsing.still_ours
