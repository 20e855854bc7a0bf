"""Faults by plan: which mark, at which of its hits, and what happens there.

A plan is one line of text, so that it fits an environment variable, an argument and an error message:
`tool.sent#2=crash checkpoint.committed#1=pause:3.0`. The same seed draws the same plan. A process that is to meet
the faults binds them: `with bound(Faults(plan, hands)): …`.
"""

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, Self

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.marks import Mark


class Action(StrEnum):
    """What happens to a process at a mark."""

    CRASH = "crash"
    """It is killed, as by SIGKILL: nothing of it cleans up."""
    PAUSE = "pause"
    """It stands still for so many seconds, heartbeat and all, as by SIGSTOP; then it goes on where it was."""
    STALL = "stall"
    """What came to the mark waits for so many seconds; the rest of the process goes on."""
    LOSE = "lose"
    """The answer from outside is lost: whoever asked gets a broken connection, after the world has acted."""
    CUT = "cut"
    """Every connection to the database is terminated, at the server."""
    RESTART = "restart"
    """The database is shut down at once and started again."""
    UNHEARD = "unheard"
    """The database commits the next change that the process asks for, a flush or a transaction, and the answer never
    arrives. It has happened only once such an answer is lost."""
    SKEW = "skew"
    """The process's wall clock jumps by so many seconds, ahead or back."""
    DRIFT = "drift"
    """From then on the process's clocks, the monotonic ones too, gain or lose so many seconds a minute against the
    database's."""
    DRAIN = "drain"
    """The worker is told to shut down: it hands over at the next boundary."""


TIMED = frozenset({Action.PAUSE, Action.STALL, Action.SKEW, Action.DRIFT})
"""The actions that take a number of seconds."""

LOSABLE = (Mark.MODEL_SENT, Mark.TOOL_SENT)
"""Where an answer from outside can be lost."""

USUAL = MappingProxyType(
    {
        Action.CRASH: 25,
        Action.PAUSE: 25,
        Action.STALL: 11,
        Action.LOSE: 10,
        Action.CUT: 8,
        Action.UNHEARD: 5,
        Action.DRAIN: 5,
        Action.SKEW: 3,
        Action.DRIFT: 4,
        Action.RESTART: 4,
    }
)
"""How often each action is drawn, in a hundred."""

MOST_DRIFT = 6
"""Seconds a minute: a tenth, half of what the margin of a lease bears."""

_FAULT = re.compile(r"([a-z.]+)#(\d+)=([a-z]+)(?::(-?\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    mark: Mark
    hit: int
    """At the n-th time that the process comes to the mark, from 1."""
    action: Action
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.mark}#{self.hit}={self.action}" + (f":{self.seconds:g}" if self.action in TIMED else "")

    @classmethod
    def read(cls, text: str) -> Self:
        """The fault of a text; raises `InvalidRequest` for what is none."""
        parts = _FAULT.fullmatch(text)
        try:
            if parts is None:
                raise ValueError(text)
            return cls(Mark(parts[1]), int(parts[2]), Action(parts[3]), float(parts[4] or 0))
        except ValueError:
            raise InvalidRequest(f"{text!r} is no fault; one looks like tool.sent#1=pause:3.0") from None


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes wrong in one process."""

    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.faults))

    @classmethod
    def read(cls, text: str) -> Self:
        """The plan of a line, as `str(plan)` wrote it."""
        return cls(tuple(Fault.read(each) for each in text.split()))

    @classmethod
    def drawn(
        cls,
        dice: random.Random,
        *,
        most: int,
        marks: Sequence[Mark] = tuple(Mark),
        actions: Mapping[Action, int] = USUAL,
        seconds: tuple[float, float],
    ) -> Self:
        """One to `most` faults at these marks, with actions by their weight, pauses and stalls within `seconds`."""
        return cls(tuple(_drawn(dice, marks, actions, seconds) for _ in range(dice.randint(1, most))))


def _drawn(
    dice: random.Random, marks: Sequence[Mark], actions: Mapping[Action, int], seconds: tuple[float, float]
) -> Fault:
    [action] = dice.choices(list(actions), list(actions.values()))
    mark = dice.choice(LOSABLE if action is Action.LOSE else marks)
    # Most marks are come to a few times; the first ones are the likeliest to be reached at all.
    hit = min(dice.randint(1, 6), dice.randint(1, 6))
    match action:
        case Action.PAUSE | Action.STALL:
            return Fault(mark, hit, action, round(dice.uniform(*seconds), 1))
        case Action.SKEW:
            return Fault(mark, hit, action, round(dice.choice((-1, 1)) * dice.uniform(1, 86_400), 1))
        case Action.DRIFT:
            return Fault(mark, hit, action, round(dice.choice((-1, 1)) * dice.uniform(1, MOST_DRIFT), 1))
        case _:
            return Fault(mark, hit, action)


class Hands(Protocol):
    """What a process cannot do to itself, and what it tells before it is too late."""

    def tell(self, mark: Mark, hit: int, fault: Fault | None) -> None:
        """Say that a mark was come to, and what happens there now. Said before it happens."""
        ...

    async def order(self, fault: Fault) -> None:
        """Have it done from outside; returns when it is."""
        ...

    def order_in_thread(self, fault: Fault) -> None:
        """The same for a thread beside the loop."""
        ...


class Faults:
    """`contracts.marks.Marks` by a plan: each fault happens once, at its hit."""

    def __init__(self, plan: Plan, hands: Hands) -> None:
        self._hands = hands
        self._hits: Counter[Mark] = Counter()
        self._waiting = list(plan.faults)

    async def reach(self, mark: Mark) -> None:
        for fault in self._due(mark):
            match fault.action:
                case Action.STALL:
                    await asyncio.sleep(fault.seconds)
                case Action.PAUSE | Action.CRASH | Action.LOSE:
                    _alone(fault)
                case _:
                    await self._hands.order(fault)

    def reach_in_thread(self, mark: Mark) -> None:
        for fault in self._due(mark):
            match fault.action:
                case Action.STALL:
                    time.sleep(fault.seconds)
                case Action.PAUSE | Action.CRASH | Action.LOSE:
                    _alone(fault)
                case _:
                    self._hands.order_in_thread(fault)

    def _due(self, mark: Mark) -> Iterator[Fault]:
        """What happens here. Each is told as its turn comes: whoever is told of a pause ends it so much later."""
        self._hits[mark] += 1
        hit = self._hits[mark]
        due = [fault for fault in self._waiting if (fault.mark, fault.hit) == (mark, hit)]
        for fault in due:
            self._waiting.remove(fault)
        if hit == 1 and not due:
            self._hands.tell(mark, hit, None)
        for fault in due:
            self._hands.tell(mark, hit, fault)
            yield fault


def _alone(fault: Fault) -> None:
    match fault.action:
        case Action.CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.PAUSE:
            os.kill(os.getpid(), signal.SIGSTOP)  # whoever was told of it sends SIGCONT
        case _:
            raise ConnectionResetError(f"the answer was lost at {fault.mark}")
