"""Telemetry that was lost, counted; and the fence that keeps its failures out of a run."""

import logging
from collections import Counter
from threading import Lock
from types import TracebackType

_log = logging.getLogger(__name__)


class Drops:
    """How many items of telemetry were lost in this process, by reason. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_reason: Counter[str] = Counter()

    def add(self, reason: str, count: int = 1, *, error: BaseException | None = None) -> None:
        """Count lost items. The first of each reason is logged, with what raised; the rest only count."""
        with self._lock:
            first = reason not in self._by_reason
            self._by_reason[reason] += count
        if first:
            _log.warning("telemetry was dropped (%s); runs go on without it", reason, exc_info=error)

    def by_reason(self) -> dict[str, int]:
        """The counts so far."""
        with self._lock:
            return dict(self._by_reason)

    def total(self) -> int:
        """All that was lost so far."""
        return sum(self.by_reason().values())


drops = Drops()
"""This process's losses: as global as OpenTelemetry's own provider."""


class contained:  # noqa: N801  # reads as a word: `with contained("span start"):`
    """Leaves the block at the first exception and counts it: telemetry must not fail what it watches."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        drops.add(self._reason, error=error)
        return True
