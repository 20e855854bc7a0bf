"""Who is there to work, in memory."""

from collections.abc import Sequence

from holdfast.contracts.runs import GraphVersion, Run, RunStatus
from holdfast.contracts.workers import LiveWorker, ServedGraph, WantedVersion
from holdfast.testing.memory_state import MemoryState, Presence

_CLAIMABLE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING})


class MemoryWorkers:
    """`contracts.ports.Workers` in memory, by the store's clock."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def announce(self, worker_id: str, serves: Sequence[ServedGraph], *, ttl_seconds: float) -> None:
        with self._state.commit() as tables:
            for each in [name for name, presence in tables.workers.items() if self._is_gone(presence)]:
                del tables.workers[each]
            known = tables.workers.get(worker_id)
            since = self._state.now() if known is None else known.worker.since
            tables.workers[worker_id] = Presence(
                worker=LiveWorker(worker_id=worker_id, serves=tuple(serves), since=since),
                expires_at=self._state.clock.monotonic() + ttl_seconds,
            )

    async def leave(self, worker_id: str) -> None:
        with self._state.commit() as tables:
            tables.workers.pop(worker_id, None)

    async def alive(self) -> Sequence[LiveWorker]:
        return [each.worker for each in self._state.tables.workers.values() if not self._is_gone(each)]

    async def wanted(self) -> Sequence[WantedVersion]:
        by_version: dict[GraphVersion, list[Run]] = {}
        for run in self._open():
            by_version.setdefault(GraphVersion(run.graph_name, run.graph_version), []).append(run)
        return [_wanted(version, runs) for version, runs in sorted(by_version.items())]

    async def claimable(self, names: Sequence[str]) -> Sequence[GraphVersion]:
        found = (run for run in self._open() if run.graph_name in names and run.status in _CLAIMABLE)
        return sorted({GraphVersion(run.graph_name, run.graph_version) for run in found})

    def _open(self) -> list[Run]:
        runs = (row.run for row in self._state.tables.runs.values())
        return [run for run in runs if not run.status.final and not run.attached]

    def _is_gone(self, presence: Presence) -> bool:
        return presence.expires_at < self._state.clock.monotonic()


def _wanted(version: GraphVersion, runs: Sequence[Run]) -> WantedVersion:
    statuses = [run.status for run in runs]
    return WantedVersion(
        name=version.name,
        version=version.version,
        queued=statuses.count(RunStatus.QUEUED),
        running=statuses.count(RunStatus.RUNNING),
        interrupted=statuses.count(RunStatus.INTERRUPTED),
        oldest_at=min(run.created_at for run in runs),
    )
