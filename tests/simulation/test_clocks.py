"""The wrong clocks of a worker: they are wrong for whoever asks, and the simulation knows by how much."""

import time

import pytest
from simulation import clocks
from simulation.worlds import longest_pause

from holdfast.runtime.clock import SystemClock, boot_seconds


class Truth:
    """The time, turned by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        for name in ("time", "monotonic"):
            monkeypatch.setattr(time, name, lambda: self.seconds)
        for name in ("time_ns", "monotonic_ns"):
            monkeypatch.setattr(time, name, lambda: round(self.seconds * 1e9))
        monkeypatch.setattr(time, "clock_gettime", lambda clock: self.seconds)
        monkeypatch.setattr(clocks, "_slowest", 1.0)


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Truth:
    return Truth(monkeypatch)


@pytest.mark.parametrize("seconds", [-6.0, 6.0])
def test_clocks_that_drift_agree_with_each_other_and_leave_the_truth_behind(truth: Truth, seconds: float):
    clocks.drift(seconds)
    truth.seconds += 60
    told = [time.time(), time.monotonic(), time.time_ns() / 1e9, time.monotonic_ns() / 1e9, boot_seconds()]
    assert told == pytest.approx([1060 + seconds] * 5)
    assert SystemClock().monotonic() == time.monotonic()


def test_wall_clock_jumps_alone_and_jumps_add_up(truth: Truth):
    clocks.skew(100)
    clocks.skew(-30)
    assert (time.time(), time.time_ns(), time.monotonic()) == (1070, 1070 * 10**9, 1000)


def test_slow_clock_takes_its_share_of_the_margin_and_a_fast_one_takes_none(truth: Truth):
    assert longest_pause() == pytest.approx(0.4)
    clocks.drift(6)
    assert longest_pause() == pytest.approx(0.4)
    clocks.drift(-6)
    assert longest_pause() == pytest.approx(0.4 - 1.6 / 9)
