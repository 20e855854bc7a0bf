"""A worker that is stopped past its lease, wherever it was just then, and goes on: it leaves no row and does nothing.
And so does one whose event loop alone was blocked, while its heart went on.

Two processes. The first comes to a mark and stands still; the second is let loose, and takes the run to its end. All
that the database knows of the run is written down, and the first is let go on until it has noticed. Nothing may differ.
"""

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psycopg
import pytest
from offices import Office
from stopping import graph

from holdfast import RunStatus
from holdfast.contracts.marks import Mark

LEASE_SECONDS = 1.5
IN_TIME = 60.0
PHASES = {
    "before a node": Mark.NODE_STARTING,
    "in a model call": Mark.MODEL_SENT,
    "between intent and send": Mark.INTENT_RECORDED,
    "last thing before the send": Mark.TOOL_SENDING,
    "between send and outcome": Mark.TOOL_ANSWERED,
    "in put": Mark.CHECKPOINT_COMMITTING,
    "in put_writes": Mark.WRITES_COMMITTING,
    "in finish": Mark.RUN_FINISHING,
    "within a transaction": Mark.FENCE_HELD,
    "about to beat": Mark.LEASE_RENEWING,
    "after a beat": Mark.LEASE_RENEWED,
}
ON_THE_LOOP = {
    "as a node begins": Mark.NODE_STARTED,
    **{where: mark for where, mark in PHASES.items() if "beat" not in where},
}
OF_A_RUN = {
    "runs": "run_id = %(run)s::uuid",
    "leases": "run_id = %(run)s::uuid",
    "events": "run_id = %(run)s::uuid",
    "run_heads": "run_id = %(run)s::uuid",
    "calls": "run_id = %(run)s::uuid",
    "approvals": "run_id = %(run)s::uuid",
    "budgets": "run_id = %(run)s::uuid or budget_id = %(run)s::uuid",
    "checkpoints": "thread_id = %(thread)s",
    "checkpoint_blobs": "thread_id = %(thread)s",
    "checkpoint_writes": "thread_id = %(thread)s",
}


class Worker:
    """One of the two processes."""

    def __init__(self, office: Office, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from stopping import main; main()", str(LEASE_SECONDS)],
            env=office.environment(STOPPING_WORK_SECONDS=str(LEASE_SECONDS / 2)),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._begun = False
        self._ears = [
            threading.Thread(target=self._listen, args=(stream,), daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
        ]
        for ear in self._ears:
            ear.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def arm(self, mark: Mark) -> None:
        self.tell(f"stop {mark.value}")
        self.hears("armed")

    def tell(self, order: str) -> None:
        assert self._process.stdin is not None
        print(order, file=self._process.stdin, flush=True)

    def hears(self, *words: str) -> None:
        """Wait until the process has said a line with all these words."""
        said = [self._next([])]
        while not all(word in said[-1] for word in words):
            said.append(self._next(said))

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.stands_still()

    def stands_still(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        self.go_on()
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            for ear in self._ears:
                ear.join()
            self._process.communicate()  # closes the pipes

    def _listen(self, stream: Any) -> None:
        for line in iter(stream.readline, ""):
            self._said.put(line.strip())

    def _next(self, said: list[str]) -> str:
        try:
            return self._said.get(timeout=IN_TIME if self._begun else 3 * IN_TIME)
        except queue.Empty:
            raise AssertionError(f"worker {self.pid} did not say it; it said: {said}") from None


class Blocked(Worker):
    """One whose loop alone stands still, where the other stops as a whole."""

    def arm(self, mark: Mark) -> None:
        self.tell(f"block {mark.value}")
        self.hears("armed")

    def stands_still(self) -> None:
        """It has said so; nobody outside can see it."""

    def go_on(self) -> None:
        self.tell("go on")


@contextmanager
def two_workers(office: Office, folder: Path, kind: type[Worker]) -> Iterator[tuple[Worker, Worker]]:
    workers = kind(office, folder), Worker(office, folder)
    try:
        for worker in workers:
            worker.hears("working")
            worker._begun = True
        yield workers
    finally:
        for worker in workers:
            worker.end()


def rows(office: Office, run: Any) -> dict[str, Counter[str]]:
    """All that the database knows of a run, as text."""
    what = {"run": run.id, "thread": run.thread_id}
    with psycopg.connect(office.urls.admin) as conn:
        return {
            table: Counter(row for (row,) in conn.execute(f"select t::text from {table} t where {where}", what))
            for table, where in OF_A_RUN.items()
        }


async def a_try(office: Office, runtime: Any, mark: Mark, stopped: Worker, other: Worker) -> None:
    """`other` stands still when this begins, and when it ends."""
    world = Path("world")  # in the office's folder, where the workers stand too
    await asyncio.to_thread(stopped.arm, mark)
    run = await runtime.start(graph(), {"log": []}, tenant="acme")
    await asyncio.to_thread(stopped.hears, "stopped")
    await asyncio.to_thread(stopped.stands_still)
    other.go_on()
    result = await run.result(IN_TIME)
    assert (result.status, result.output) == (RunStatus.COMPLETED, {"log": ["pay it", "paid A-17"]}), result.error
    before, done = await asyncio.to_thread(rows, office, run), world.read_text(encoding="utf-8")  # noqa: ASYNC240
    epoch = await asyncio.to_thread(the_last_epoch, office, run)
    assert epoch > 1
    stopped.go_on()
    await asyncio.to_thread(stopped.hears, "attempt_lost", run.id)
    assert await asyncio.to_thread(rows, office, run) == before
    assert world.read_text(encoding="utf-8") == done, "it has done nothing to the world either"  # noqa: ASYNC240
    await asyncio.to_thread(other.stop)


def the_last_epoch(office: Office, run: Any) -> int:
    with psycopg.connect(office.urls.admin) as conn:
        found = conn.execute("select epoch from runs where run_id = %s", [run.id]).fetchone()
    assert found is not None
    return int(found[0])


async def tries(office: Office, folder: Path, phases: list[Mark], kind: type[Worker] = Worker) -> int:
    done = 0
    with two_workers(office, folder, kind) as (first, second):
        second.stop()
        async with office.open(worker=False) as runtime:
            for mark in phases:
                try:
                    await a_try(office, runtime, mark, first, second)
                except BaseException as error:
                    error.add_note(f"stopped at {mark}, after {done} tries")
                    raise
                done += 1
    return done


@pytest.mark.timeout(600)
async def test_worker_that_was_stopped_past_its_lease_and_goes_on_leaves_no_row(office: Office, tmp_path: Path):
    assert await tries(office, tmp_path, list(PHASES.values())) == len(PHASES)


@pytest.mark.timeout(600)
async def test_worker_whose_loop_was_blocked_until_another_had_its_run_leaves_no_row(office: Office, tmp_path: Path):
    assert await tries(office, tmp_path, list(ON_THE_LOOP.values()), Blocked) == len(ON_THE_LOOP)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_it_leaves_no_row_in_200_of_200_tries(office: Office, tmp_path: Path):
    wanted = int(os.environ.get("SIGSTOP_TRIES", "200"))
    assert await tries(office, tmp_path, list(islice(cycle(PHASES.values()), wanted))) == wanted
