"""The clocks of a worker's process, which may be wrong for everyone in it: LangGraph makes ids from the wall clock, and
the event loop waits by the monotonic one."""

import time
from collections.abc import Callable
from typing import Any

_slowest = 1.0


def skew(seconds: float) -> None:
    """Let the wall clock jump."""
    _change("time", lambda told: told + seconds)
    _change("time_ns", lambda told: told + round(seconds * 1_000_000_000))


def drift(seconds: float) -> None:
    """From now on let every clock gain so many seconds a minute against everybody else's, or lose them."""
    global _slowest
    rate = 1 + seconds / 60
    _slowest = min(_slowest, rate)
    for name in ("time", "monotonic"):
        _change(name, _at_rate(rate, getattr(time, name)()))
    for name in ("time_ns", "monotonic_ns"):
        began = getattr(time, name)()
        _change(name, lambda told, began=began: began + round((told - began) * rate))
    began_of = {clock: time.clock_gettime(clock) for clock in _BOOT_CLOCKS}
    really = time.clock_gettime
    time.clock_gettime = lambda clock: (
        _at_rate(rate, began_of[clock])(really(clock)) if clock in began_of else really(clock)
    )


def seconds_lost(seconds: float) -> float:
    """By how much a stretch that is so long by this process's clocks is longer in truth, at the worst."""
    return seconds / _slowest - seconds


true_seconds = time.monotonic
"""A clock that stays right: it is looked up before anything is changed."""

_BOOT_CLOCKS = [getattr(time, name) for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC") if hasattr(time, name)]


def _at_rate(rate: float, began: float) -> Callable[[float], float]:
    return lambda told: began + (told - began) * rate


def _change(name: str, change: Callable[[Any], Any]) -> None:
    really = getattr(time, name)
    setattr(time, name, lambda: change(really()))
