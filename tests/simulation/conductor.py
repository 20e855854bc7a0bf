"""Conducts schedules: workers with their faults, runs, a person who decides, and what must hold in the end."""

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import uuid_utils
from fix_proxy import Loss, Proxy
from simulation.checks import violations
from simulation.nursery import PERSON, TENANTS, settings
from simulation.schedules import Job, Schedule
from simulation.servers import MIGRATED, Server, Servers
from simulation.worlds import GRAPHS, LEASE_SECONDS, World

from holdfast import open_runtime
from holdfast.checkpoints import embedded
from holdfast.checkpoints.database import Database
from holdfast.contracts.approvals import Approval, ApprovalKind
from holdfast.contracts.errors import Conflict, NotFound, StoreUnavailable
from holdfast.contracts.marks import Mark
from holdfast.graphs import refund_desk
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.faults import Action, Fault, Plan

HERE = Path(__file__).parent
PATIENCE_SECONDS = 180.0
"""Runs that have not come to rest by then never will."""
PATIENCE_WITHOUT_A_DEFENCE_SECONDS = 30.0
"""Then it is no news that something hangs, and what is looked for has happened."""
_COMMIT = b"COMMIT"
_FLUSH = rb"[0-9a-f]+\.\d+\.\d{6}\.\d+\.[0-9a-f]{16}"
"""What a flush says of itself (`checkpoints.writer`): it is one statement, and no COMMIT is sent for it."""
_BEFORE_A_TRANSACTION = frozenset(
    {
        *(Mark.RUN_ADMITTED, Mark.APPROVAL_DECIDED, Mark.FENCE_HELD, Mark.LEASE_RENEWING, Mark.LEASE_RENEWED),
        *(Mark.RUN_RESTING, Mark.RUN_RESTED, Mark.RUN_FINISHING, Mark.RUN_FINISHED),
        *(Mark.RUN_RELEASING, Mark.RUN_RELEASED, Mark.DRAIN_BEGUN),
    }
)
"""After these marks, what a process changes next it changes in a transaction; after the others, by a flush."""
_NO_FAULTS = Plan()
_ORDINARY_ENDS = (0, -signal.SIGKILL)
_LOOK_SECONDS = 0.15
_QUIET_SECONDS = 45.0  # a drain, a node's clean-up and an unfinished flush are each waited for
_QUIET_WITHOUT_A_DEFENCE_SECONDS = 8.0

T = TypeVar("T")


@dataclass
class Result:
    """How a schedule went."""

    schedule: Schedule
    violations: list[str] = field(default_factory=list)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What was hit, by action and mark."""
    unheard: Counter[str] = field(default_factory=Counter)
    """What the answers were to that were lost, `flush` or `transaction`; and how often one was to be lost, and nothing
    was asked any more: `missed`."""
    marks: set[str] = field(default_factory=set)
    seconds: float = 0.0


class Stage:
    """A Postgres, a nursery, and room for so many schedules at a time."""

    def __init__(self, *, at_once: int, keep: Path | None = None) -> None:
        """`keep` is where the folders of schedules stay that went wrong."""
        self._room = asyncio.Semaphore(at_once)
        self._keep = keep
        self._numbers = count(1)
        self._births = count(1)
        self._born: dict[int, asyncio.Future[int]] = {}
        self._dead: dict[int, asyncio.Future[int]] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Stage"]:
        async with AsyncExitStack() as stack:
            where = embedded._place_of_temporary()  # worlds and copies of clusters are many small files
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-sim-", dir=where)))
            self._folder.chmod(0o711)
            self._servers = Servers(self._folder)
            self._shared, _ = await asyncio.gather(
                asyncio.to_thread(stack.enter_context, self._servers.opened()),
                stack.enter_async_context(self._nursed()),
            )
            yield self

    async def perform(self, schedule: Schedule) -> Result:
        """Conduct one schedule, once there is room for it."""
        async with self._room:
            started = time.monotonic()
            name = f"sim_{next(self._numbers)}"
            folder = self._folder / name
            folder.mkdir()
            async with self._database(schedule, name) as (server, database):
                result = await _Performance(self, server, schedule, folder, database).run()
            if result.violations and self._keep is not None:
                kept = self._keep / f"seed-{schedule.seed}"
                shutil.copytree(folder, kept, dirs_exist_ok=True, ignore=lambda *_: {"line"})
            shutil.rmtree(folder, ignore_errors=True)
            result.seconds = time.monotonic() - started
            return result

    @asynccontextmanager
    async def _database(self, schedule: Schedule, name: str) -> AsyncIterator[tuple[Server, str]]:
        """A database of the schedule's own; with a server of its own where it restarts that, which nobody else shall
        feel."""
        if schedule.restarts:
            another = self._servers.another(f"{name}_server")
            server = await asyncio.to_thread(another.__enter__)
            try:
                yield server, MIGRATED
            finally:
                await asyncio.to_thread(another.__exit__, None, None, None)
            return
        await asyncio.to_thread(self._shared.copy_migrated, name)
        try:
            yield self._shared, name
        finally:
            await asyncio.to_thread(self._shared.drop, name)

    async def born(self, name: str, order: dict[str, Any]) -> int:
        """The process of a new worker."""
        number = next(self._births)
        self._born[number] = asyncio.get_running_loop().create_future()
        assert self._nursery.stdin is not None
        told = order | {"number": number, "name": name}
        self._nursery.stdin.write(json.dumps(told).encode() + b"\n")
        return await self._born[number]

    async def dead(self, pid: int) -> int:
        """The exit code of a worker, once it has one."""
        return await asyncio.shield(self._dead[pid])

    def code(self, pid: int) -> int:
        return self._dead[pid].result()

    def is_dead(self, pid: int) -> bool:
        return self._dead[pid].done()

    @asynccontextmanager
    async def _nursed(self) -> AsyncIterator[None]:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "PG"))}
        known.pop("DATABASE_URL", None)
        paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._nursery = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simulation.nursery"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=self._folder,
            env=known | {"PYTHONPATH": paths, "LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"},
        )
        assert self._nursery.stdout is not None
        assert self._nursery.stdin is not None
        assert "ready" in json.loads(await self._nursery.stdout.readline())
        hearing = asyncio.create_task(self._hear(self._nursery.stdout))
        try:
            yield
        finally:
            hearing.cancel()
            self._nursery.stdin.close()
            await self._nursery.wait()

    async def _hear(self, answers: asyncio.StreamReader) -> None:
        while line := await answers.readline():
            told = json.loads(line)
            if "born" in told:
                self._dead[told["born"]] = asyncio.get_running_loop().create_future()
                self._born[told["number"]].set_result(told["born"])
            else:
                self._dead[told["died"]].set_result(told["code"])


@dataclass(eq=False)
class _Worker:
    name: str
    pid: int = 0
    line: asyncio.StreamWriter | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    proxy: Proxy | None = None
    desk: bool = False
    leaving: bool = False
    stands_still_until: float = 0.0


class _Performance:
    """One schedule on a stage."""

    def __init__(self, stage: Stage, server: Server, schedule: Schedule, folder: Path, database: str) -> None:
        self._stage = stage
        self._server = server
        self._schedule = schedule
        self._plans = iter(schedule.plans)
        self._folder = folder
        self._database = database
        self._world = World(folder)
        self._dice = random.Random(schedule.seed * 31 + 7)
        self._workers: dict[str, _Worker] = {}
        self._losses: list[tuple[Fault, Loss]] = []
        self._lines: set[asyncio.Task[None]] = set()
        self._result = Result(schedule)
        self._desk: _Worker
        self._wishes = count(1)
        self._served: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def run(self) -> Result:
        async with AsyncExitStack() as stack:
            self._stack = stack
            path = str(self._folder / "line")
            server = await asyncio.start_unix_server(self._listen, path)
            stack.push_async_callback(_closed, server)
            terms = settings(self._server.url(self._database))
            runtime = await stack.enter_async_context(open_runtime(terms, serve=False))
            stack.push_async_callback(self._end)
            await self._open_desk()
            handles = [await self._started(runtime, number, job) for number, job in enumerate(self._schedule.jobs)]
            await self._see_through(runtime, handles)
            await self._let_go()
            self._count_losses()
            async with Database(self._server.url(self._database)) as database:
                found = await violations(database, runtime, self._world, handles, self._schedule.jobs)
            self._result.violations += found
            if self._result.violations:
                await self._write_down(runtime, handles)
        return self._result

    async def _write_down(self, runtime: Runtime, handles: list[RunHandle]) -> None:
        """What happened, beside the logs of the workers: for whoever looks into it."""
        lines = [str(self._schedule), *self._result.violations]
        for handle in handles:
            report = await runtime.show(handle.run_id, tenant=handle.tenant_id)
            lines += ["", f"run {report.run}", f"budget {report.budget}"]
            lines += [
                f"{e.at:%H:%M:%S.%f} #{e.seq} a{e.attempt} {e.kind} {e.node} {e.task_id} {e.call_id} {e.payload}"
                for e in await handle.events()
            ]
            lines += [f"call {call}" for call in report.calls]
            lines += [f"approval {approval}" for approval in report.approvals]
        (self._folder / "report.txt").write_text("\n".join(lines), encoding="utf-8")

    async def _started(self, runtime: Runtime, number: int, job: Job) -> RunHandle:
        if job.graph == "refunds":
            given: dict[str, Any] = {"email": refund_desk.sample(job.sample)}
        else:
            kinds = [{"kind": kind, "subject": f"{number}.{n}.{kind}"} for n, kind in enumerate(job.kinds)]
            given = {"errands": kinds}
        terms = {"tenant": job.tenant, "thread": f"t{number}", "run_id": str(uuid_utils.uuid7())}
        if self._schedule.desk is None:
            await runtime.start(GRAPHS[job.graph], given, limits=job.limits, user=PERSON.user_id, **terms)
        else:
            limits = job.limits.model_dump(mode="json", exclude_unset=True)
            await self._wish({"do": "start", "graph": job.graph, "input": given, "limits": limits, "terms": terms})
        return await runtime.run(terms["run_id"], tenant=job.tenant)

    async def _open_desk(self) -> None:
        if self._schedule.desk is not None:
            self._desk = await self._hire(self._schedule.desk, desk=True)

    async def _wish(self, wish: dict[str, Any]) -> bool:
        """Have it done at the desk; whoever sits there may die over it, and then the next one is asked the same."""
        while True:
            desk = self._desk
            number = next(self._wishes)
            served = self._served[number] = asyncio.get_running_loop().create_future()
            dead = asyncio.ensure_future(self._stage.dead(desk.pid))
            ready = asyncio.ensure_future(desk.ready.wait())
            await asyncio.wait({ready, dead}, return_when=asyncio.FIRST_COMPLETED)
            if desk.line is not None and not dead.done():
                desk.line.write(json.dumps(wish | {"number": number}).encode() + b"\n")
                await asyncio.wait({served, dead}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if served.done() and "again" not in served.result():
                return "refused" not in served.result()
            if dead.done():
                self._desk = await self._hire(desk=True)

    async def _hire(self, plan: Plan = _NO_FAULTS, *, desk: bool = False) -> "_Worker":
        worker = _Worker(f"{'d' if desk else 'w'}{len(self._workers) + 1}", desk=desk)
        self._workers[worker.name] = worker
        dsn = self._server.url(self._database)
        if any(fault.action is Action.UNHEARD for fault in plan.faults):
            worker.proxy = self._stack.enter_context(_quiet(Proxy(dsn)))
            dsn = worker.proxy.url
        order = {
            "plan": str(plan),
            "dsn": dsn,
            "folder": str(self._folder),
            "line": str(self._folder / "line"),
            "lease_seconds": LEASE_SECONDS,
            "desk": desk,
            "mutant": self._schedule.mutant,
        }
        worker.pid = await self._stage.born(worker.name, order)
        return worker

    async def _see_through(self, runtime: Runtime, handles: list[RunHandle]) -> None:
        """Keep workers at work and questions answered until every run has come to its end."""
        patience = PATIENCE_SECONDS if self._schedule.mutant is None else PATIENCE_WITHOUT_A_DEFENCE_SECONDS
        deadline = time.monotonic() + patience
        started = time.monotonic()
        to_cancel = {n: job.cancelled_after for n, job in enumerate(self._schedule.jobs) if job.cancelled_after}
        while True:
            statuses = [await _patiently(handle.status) for handle in handles]
            if all(status.final for status in statuses):
                return
            if time.monotonic() > deadline:
                told = ", ".join(
                    f"run {handle.run_id} is {status}" for handle, status in zip(handles, statuses, strict=True)
                )
                self._result.violations.append(f"not everything came to its end in {PATIENCE_SECONDS:g} s: {told}")
                return
            for number, after in list(to_cancel.items()):
                if time.monotonic() - started > after:
                    del to_cancel[number]
                    with contextlib.suppress(Conflict):
                        await _patiently(lambda n=number: handles[n].cancel(by=PERSON.user_id, reason="no more"))
            await self._decide(runtime)
            while len([w for w in self._workers.values() if self._works(w)]) < 2:
                await self._hire(next(self._plans, _NO_FAULTS))
            self._look_at_the_dead()
            await asyncio.sleep(_LOOK_SECONDS)

    def _look_at_the_dead(self) -> None:
        """A worker is killed, or shuts down in order; whatever else ends it is its own fault, or the simulation's."""
        for worker in self._workers.values():
            if not worker.ready.is_set():
                continue  # the database may have been gone when it began
            if self._stage.is_dead(worker.pid) and (code := self._stage.code(worker.pid)) not in _ORDINARY_ENDS:
                log = (self._folder / f"{worker.name}.log").read_text(encoding="utf-8")
                raise RuntimeError(f"worker {worker.name} ended with code {code}:\n{log[-3000:]}")

    def _works(self, worker: "_Worker") -> bool:
        return not (worker.desk or worker.leaving or self._stage.is_dead(worker.pid))

    async def _decide(self, runtime: Runtime) -> None:
        for tenant in TENANTS:
            for approval in await _patiently(lambda t=tenant: runtime.approvals(tenant=t)):
                rulings = [self._ruling(approval)]
                if self._schedule.quarrel:
                    truth = approval.kind is ApprovalKind.RECONCILE
                    rulings.append(rulings[0] if truth else ("reject", {"message": "and I say no"}))
                decided = await asyncio.gather(*(self._rule(runtime, approval, *ruling) for ruling in rulings))
                if sum(decided) > 1:
                    self._result.violations.append(f"approval {approval.id} was decided {sum(decided)} times")

    async def _rule(self, runtime: Runtime, approval: Approval, decision: Any, words: dict[str, Any]) -> bool:
        if self._schedule.desk is not None:
            wish = {"do": "decide", "approval": approval.id, "decision": decision, "words": words}
            return await self._wish(wish)
        try:
            await runtime.decide(approval.id, decision, by=PERSON.user_id, **words)
        except (Conflict, NotFound, StoreUnavailable):
            return False
        return True

    def _ruling(self, approval: Approval) -> tuple[str, dict[str, Any]]:
        """What a person says who knows the world, or goes and looks."""
        if approval.kind is not ApprovalKind.RECONCILE:
            return ("approve", {}) if self._dice.random() < 0.8 else ("reject", {"message": "rather not"})
        assert approval.args is not None
        subject = approval.args["subject"]
        if self._world.was_done(approval.tool_name or "", subject):
            return "respond", {"value": {"done": subject}}
        if "approve" in approval.allowed:
            return "approve", {}
        return "reject", {"message": "it was not done"}

    async def _let_go(self) -> None:
        """Let whoever stands still come back and try, then let every worker shut down in order."""
        await asyncio.sleep(max(0.0, *(w.stands_still_until - time.monotonic() for w in self._workers.values())))
        for worker in self._workers.values():
            self._dismiss(worker)
        living = [worker.pid for worker in self._workers.values()]
        quiet = _QUIET_SECONDS if self._schedule.mutant is None else _QUIET_WITHOUT_A_DEFENCE_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(quiet):
                for pid in living:
                    await self._stage.dead(pid)
        for worker in self._workers.values():
            if not self._stage.is_dead(worker.pid):
                self._result.violations.append(f"worker {worker.name} did not shut down in {quiet:g} s")
                os.kill(worker.pid, signal.SIGUSR1)  # it says in its log what it waits for
                await asyncio.sleep(_LOOK_SECONDS)

    def _dismiss(self, worker: _Worker) -> None:
        worker.leaving = True
        if worker.line is not None and not worker.line.is_closing():
            worker.line.write(json.dumps({"drain": True}).encode() + b"\n")

    async def _end(self) -> None:
        for worker in self._workers.values():
            if worker.pid and not self._stage.is_dead(worker.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                await self._stage.dead(worker.pid)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker: _Worker | None = None
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                told = json.loads(line)
                if worker is None:
                    worker = self._workers[told["name"]]
                    worker.pid, worker.line = told["pid"], writer
                elif "ready" in told:
                    worker.ready.set()
                    if worker.leaving:
                        self._dismiss(worker)
                elif "served" in told:
                    self._served[told["served"]].set_result(told)
                elif "order" in told:
                    await self._carry_out(worker, Fault.read(told["fault"]))
                    writer.write(json.dumps({"done": told["order"]}).encode() + b"\n")
                else:
                    self._note(worker, told)
        writer.close()

    def _note(self, worker: _Worker, told: dict[str, Any]) -> None:
        self._result.marks.add(told["mark"])
        if told["fault"] is None:
            return
        fault = Fault.read(told["fault"])
        if fault.action is not Action.UNHEARD:  # only once an answer is lost
            self._result.faults[fault.action, fault.mark] += 1
        if fault.action is Action.PAUSE:
            worker.stands_still_until = time.monotonic() + fault.seconds + 0.1
            asyncio.get_running_loop().call_later(fault.seconds, self._wake, worker)
        elif fault.action is Action.STALL:
            worker.stands_still_until = time.monotonic() + fault.seconds
        elif fault.action is Action.DRAIN:
            worker.leaving = True

    def _wake(self, worker: _Worker) -> None:
        if not self._stage.is_dead(worker.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)

    def _count_losses(self) -> None:
        for fault, loss in self._losses:
            if loss.lost:
                self._result.faults[fault.action, fault.mark] += 1
            kinds = ["transaction" if each == _COMMIT else "flush" for each in loss.lost]
            self._result.unheard.update(kinds or ["missed"])

    async def _carry_out(self, worker: _Worker, fault: Fault) -> None:
        match fault.action:
            case Action.CUT:
                await asyncio.to_thread(self._server.cut, self._database)
            case Action.RESTART:
                await asyncio.to_thread(self._server.restart)
            case Action.UNHEARD:
                wanted = re.compile(_COMMIT if fault.mark in _BEFORE_A_TRANSACTION else _FLUSH)
                loss = await asyncio.to_thread(worker.proxy.lose_answer, wanted, cut=True)
                self._losses.append((fault, loss))


def _quiet(proxy: Proxy) -> Proxy:
    proxy._loop.set_exception_handler(lambda *_: None)  # it cuts its own tasks off, which asyncio reports in 3.11
    return proxy


async def _closed(server: asyncio.Server) -> None:
    server.close()


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer of a database that may just be restarting."""
    for _ in range(20):
        try:
            return await ask()
        except StoreUnavailable:
            await asyncio.sleep(0.25)
    return await ask()
