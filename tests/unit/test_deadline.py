"""Deadlines: monotonic, inherited downwards, never later than the parent's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import DeadlineExceeded


class Turned:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.wall = 0.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> float:
        return self.wall


def test_a_jump_of_the_wall_clock_changes_nothing():
    clock = Turned()
    deadline = Deadline.after_seconds(10, clock=clock)
    clock.wall += 10_000_000
    assert deadline.remaining_seconds() == 10


def test_a_deadline_that_has_passed_refuses_what_would_start():
    clock = Turned()
    deadline = Deadline.after_seconds(10, clock=clock)
    clock.at += 10
    assert deadline.expired()
    with pytest.raises(DeadlineExceeded, match="a model call"):
        deadline.require("a model call")


@given(st.floats(0, 1e6), st.floats(0, 1e6) | st.none())
def test_a_child_never_has_more_time_than_its_parent(parent_seconds, child_seconds):
    clock = Turned()
    parent = Deadline.after_seconds(parent_seconds, clock=clock)
    child = parent.child(child_seconds)
    assert child.expires_at_monotonic <= parent.expires_at_monotonic
