"""Fault plans: drawn from a seed, written on a line, read again, and carried out once."""

import asyncio
import random

import pytest

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.marks import Mark, bound, reach
from holdfast.testing.faults import Action, Fault, Faults, Plan


@pytest.mark.parametrize("seed", range(20))
def test_plan_is_read_as_it_was_written(seed: int):
    plan = Plan.drawn(random.Random(seed), most=6, seconds=(0.1, 5.0))
    assert plan == Plan.drawn(random.Random(seed), most=6, seconds=(0.1, 5.0))
    assert "\n" not in str(plan)
    assert Plan.read(str(plan)) == plan


@pytest.mark.parametrize("text", ["tool.sent", "tool.sent#1=explode", "nowhere#1=crash", "tool.sent#x=crash"])
def test_what_is_no_fault_is_refused(text: str):
    with pytest.raises(InvalidRequest, match="looks like"):
        Plan.read(text)


class Noted:
    def __init__(self) -> None:
        self.told: list[tuple[Mark, int, Fault | None]] = []
        self.ordered: list[Action] = []

    def tell(self, mark: Mark, hit: int, fault: Fault | None) -> None:
        self.told.append((mark, hit, fault))

    async def order(self, fault: Fault) -> None:
        self.ordered.append(fault.action)

    def order_in_thread(self, fault: Fault) -> None:
        self.ordered.append(fault.action)


async def test_fault_happens_once_at_its_hit():
    hands = Noted()
    with bound(Faults(Plan.read("tool.sent#2=lose tool.sent#3=cut"), hands)):
        await reach(Mark.TOOL_SENT)
        with pytest.raises(ConnectionResetError):
            await reach(Mark.TOOL_SENT)
        await reach(Mark.TOOL_SENT)
        await reach(Mark.TOOL_SENT)
    assert hands.ordered == [Action.CUT]
    assert [(hit, fault and fault.action) for _, hit, fault in hands.told] == [(1, None), (2, "lose"), (3, "cut")]


async def test_stalled_task_leaves_the_others_at_work():
    done: list[str] = []

    async def stalled() -> None:
        await reach(Mark.NODE_STARTED)
        done.append("stalled")

    with bound(Faults(Plan.read("node.started#1=stall:0.05"), Noted())):
        stalling = asyncio.create_task(stalled())
        await asyncio.sleep(0)
        done.append("other")
        await stalling
    assert done == ["other", "stalled"]


async def test_second_fault_of_a_hit_is_told_when_the_first_is_over():
    """A process that stalls and then pauses is woken so long after it has paused, not after it has stalled."""
    hands = Noted()
    with bound(Faults(Plan.read("node.started#1=stall:0.05 node.started#1=cut"), hands)):
        reaching = asyncio.create_task(reach(Mark.NODE_STARTED))
        await asyncio.sleep(0)
        assert [fault and fault.action for _, _, fault in hands.told] == [Action.STALL]
        await reaching
    assert [fault and fault.action for _, _, fault in hands.told] == [Action.STALL, Action.CUT]
