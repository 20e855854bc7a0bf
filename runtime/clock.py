"""The real clock. Everything else takes a `Clock`, so that tests can turn time by hand."""

import time


class SystemClock:
    """This machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> float:
        return time.time()


def boot_seconds() -> float:
    """Seconds since boot, the time asleep included: a lease runs out while a laptop sleeps, and this clock knows.

    Where there is no CLOCK_BOOTTIME (macOS), the monotonic clock of the system counts sleep itself.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
