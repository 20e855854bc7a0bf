"""Conducts schedules: workers with their faults, runs, a person who decides, and what must hold in the end."""

import asyncio
import contextlib
import json
import os
import random
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

import psycopg
import uuid_utils
from fix_proxy import Proxy
from psycopg import sql
from psycopg.conninfo import make_conninfo
from simulation.checks import violations
from simulation.nursery import PERSON, TENANTS, settings
from simulation.worlds import GRAPHS, KINDS, World

from holdfast import Limits, open_runtime
from holdfast.checkpoints import cluster
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import upgrade
from holdfast.contracts.approvals import Approval, ApprovalKind
from holdfast.contracts.errors import Conflict, NotFound, StoreUnavailable
from holdfast.contracts.marks import Mark
from holdfast.graphs import refund_desk
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.faults import Action, Fault, Plan

HERE = Path(__file__).parent
LEASE_SECONDS = 2.0
PATIENCE_SECONDS = 180.0
"""Runs that have not come to rest by then never will."""
_NO_FAULTS = Plan()
_ORDINARY_ENDS = (0, -signal.SIGKILL)
_LOOK_SECONDS = 0.15
_QUIET_SECONDS = 45.0  # a drain, a node's clean-up and an unfinished flush are each waited for

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One run of a schedule."""

    graph: str
    tenant: str
    kinds: tuple[str, ...] = ()
    """Of an errands run: its branches."""
    limits: Limits = field(default_factory=lambda: Limits(deadline_seconds=120))
    sample: str = ""
    """Of a refund desk run: the e-mail."""
    may_fail: bool = False
    """Whether its budget is too small for it."""
    cancelled_after: float | None = None


@dataclass(frozen=True)
class Schedule:
    """Everything that is decided before anything happens."""

    seed: int
    """It also rolls the dice of who decides. 0: this schedule was not drawn."""
    plans: tuple[Plan, ...]
    """Of the first workers, one each; those that come after them meet no faults."""
    jobs: tuple[Job, ...]
    quarrel: bool = False
    """Whether two people decide at once."""
    desk: Plan | None = None
    """Of a process that starts the runs and decides, in the conductor's place."""

    def __str__(self) -> str:
        jobs = ", ".join(f"{job.graph}({'+'.join(job.kinds) or job.sample})" for job in self.jobs)
        plans = " | ".join(str(plan) or "-" for plan in self.plans)
        desk = "" if self.desk is None else f"; desk: {self.desk}"
        return f"seed {self.seed}: {jobs}; workers: {plans}{desk}"

    @property
    def faults(self) -> list[Fault]:
        """All that may go wrong."""
        return [fault for plan in (*self.plans, self.desk or Plan()) for fault in plan.faults]


AT_THE_DESK = (Mark.RUN_ADMITTED, Mark.APPROVAL_DECIDED)
"""The marks that whoever starts runs and decides comes to."""
AT_THE_DESK_ACTIONS = {Action.CRASH: 6, Action.CUT: 2, Action.RESTART: 1, Action.PAUSE: 1}
AT_WORK = (
    *(mark for mark in Mark if mark not in AT_THE_DESK),
    *(Mark.INTENT_RECORDED, Mark.TOOL_SENDING, Mark.TOOL_SENT, Mark.TOOL_ANSWERED, Mark.OUTCOME_RECORDED) * 3,
    *(Mark.CHECKPOINT_COMMITTING, Mark.WRITES_COMMITTING, Mark.OUTCOME_RECORDING, Mark.NODE_STARTING) * 2,
)
"""The marks that a worker comes to; those around a send and before a write more than once, to be drawn oftener."""


def drawn(seed: int) -> Schedule:
    """The schedule of a seed."""
    dice = random.Random(seed)
    jobs = tuple(_job(dice) for _ in range(dice.choice((1, 2, 2, 3))))
    seconds = (0.5 * LEASE_SECONDS, 3 * LEASE_SECONDS)
    plans = tuple(Plan.drawn(dice, most=4, marks=AT_WORK, seconds=seconds) for _ in range(2))
    desk = None
    if dice.random() < 0.15:
        desk = Plan.drawn(dice, most=2, marks=AT_THE_DESK, actions=AT_THE_DESK_ACTIONS, seconds=seconds)
    return Schedule(seed, plans, jobs, quarrel=dice.random() < 0.3, desk=desk)


_BEFORE: dict[Mark, str] = {
    Mark.RESEND_RECORDED: "model.sent#1=lose",
    Mark.RECONCILE_ASKING: "tool.sent#1=lose",
    Mark.RECONCILE_ANSWERED: "tool.sent#1=lose",
    Mark.DRAIN_BEGUN: "node.started#1=drain",
    Mark.RUN_RELEASING: "node.started#1=drain",
    Mark.RUN_RELEASED: "node.started#1=drain",
    Mark.LEASE_RENEWING: "node.started#1=stall:1.5",
    Mark.LEASE_RENEWED: "node.started#1=stall:1.5",
}
"""What has to happen first, so that a mark is come to."""
_LOOKS_UP = (Mark.RECONCILE_ASKING, Mark.RECONCILE_ANSWERED)
NOT_OF_REFUNDS = (*_LOOKS_UP,)
"""The refund desk's one effect honours its key, so nobody is asked what became of it."""
WHOLE_HOUSE = (Job("errands", "acme", KINDS), Job("refunds", "bolt", sample="large"))


def crash_at(mark: Mark, jobs: tuple[Job, ...] = WHOLE_HOUSE) -> Schedule:
    """The schedule in which every process of the first generation dies where it first comes to `mark`."""
    plan = Plan.read(f"{_BEFORE.get(mark, '')} {mark}#1=crash")
    if mark in _LOOKS_UP:
        jobs = (Job("errands", "acme", ("looked_up",) * 3),)
    if mark in AT_THE_DESK:
        return Schedule(0, (_NO_FAULTS, _NO_FAULTS), jobs, desk=plan)
    return Schedule(0, (plan, plan), jobs)


def _job(dice: random.Random) -> Job:
    tenant = dice.choice(TENANTS)
    match dice.choices(("errands", "refunds", "rush", "cancelled"), (60, 20, 12, 8))[0]:
        case "errands":
            return Job("errands", tenant, tuple(dice.choices(KINDS, k=dice.randint(1, 4))))
        case "refunds":
            return Job("refunds", tenant, sample=dice.choice(("large", "small", "denied")))
        case "rush":
            limits = Limits(deadline_seconds=120, max_tool_calls=2)
            return Job("errands", tenant, ("keyed",) * 4 + ("blind",) * 2, limits, may_fail=True)
        case _:
            return Job("errands", tenant, tuple(dice.choices(KINDS, k=2)), cancelled_after=dice.uniform(0.2, 3))


@dataclass
class Result:
    """How a schedule went."""

    schedule: Schedule
    violations: list[str] = field(default_factory=list)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What was hit, by action and mark."""
    marks: set[str] = field(default_factory=set)
    seconds: float = 0.0


class Stage:
    """A Postgres, a nursery, and room for several schedules at a time."""

    def __init__(self, *, mutant: str | None = None, keep: Path | None = None) -> None:
        self._mutant = mutant
        self._keep = keep
        self._server = EmbeddedServer(temporary=True)
        self._numbers = count(1)
        self._births = count(1)
        self._born: dict[int, asyncio.Future[int]] = {}
        self._dead: dict[int, asyncio.Future[int]] = {}
        self._turns = _Turns()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Stage"]:
        async with AsyncExitStack() as stack:
            cluster.SETTINGS["max_connections"] = "600"  # of dozens of processes, each with its pools
            await asyncio.to_thread(self._server.start)
            stack.callback(self._stop)
            await asyncio.to_thread(self._furnish)
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-sim-")))
            await stack.enter_async_context(self._nursed())
            yield self

    async def perform(self, schedule: Schedule) -> Result:
        """Conduct one schedule. A restart of the database is nobody else's affair: such a one has the stage alone."""
        alone = any(fault.action is Action.RESTART for fault in schedule.faults)
        async with self._turns.taken(alone=alone):
            return await self._performed(schedule)

    async def _performed(self, schedule: Schedule) -> Result:
        started = time.monotonic()
        number = next(self._numbers)
        folder = self._folder / str(number)
        folder.mkdir()
        name = f"sim_{number}"
        await asyncio.to_thread(self._execute, sql.SQL("create database {} template sim"), name)
        performance = _Performance(self, schedule, folder, name)
        try:
            result = await performance.run()
        finally:
            await asyncio.to_thread(self._execute, sql.SQL("drop database {} with (force)"), name)
        if result.violations and self._keep is not None:
            shutil.copytree(
                folder, self._keep / f"seed-{schedule.seed}", dirs_exist_ok=True, ignore=lambda *_: {"line"}
            )
        shutil.rmtree(folder, ignore_errors=True)
        result.seconds = time.monotonic() - started
        return result

    def url(self, database: str) -> str:
        return make_conninfo(self._server.app_url, dbname=database)

    async def born(self, name: str, order: dict[str, Any]) -> int:
        """The process of a new worker."""
        number = next(self._births)
        self._born[number] = asyncio.get_running_loop().create_future()
        assert self._nursery.stdin is not None
        told = order | {"number": number, "name": name, "mutant": self._mutant}
        self._nursery.stdin.write(json.dumps(told).encode() + b"\n")
        return await self._born[number]

    async def dead(self, pid: int) -> int:
        """The exit code of a worker, once it has one."""
        return await asyncio.shield(self._dead[pid])

    def code(self, pid: int) -> int:
        return self._dead[pid].result()

    def is_dead(self, pid: int) -> bool:
        return self._dead[pid].done()

    async def cut(self, database: str) -> None:
        """Terminate every connection to the database."""
        await asyncio.to_thread(self._cut, database)

    async def restart(self) -> None:
        """Shut the server down as fast as it goes, and start it again."""
        await asyncio.to_thread(self._restart)

    def _furnish(self) -> None:
        # A server for tests acknowledges commits before they are written, to be quick; this one is killed.
        for role in ("holdfast_app", "holdfast_owner"):
            self._execute(sql.SQL("alter role {} set synchronous_commit = on"), role)
        self._execute(sql.SQL("create database {} owner holdfast_owner"), "sim")
        upgrade(make_conninfo(self._server.owner_url, dbname="sim"))

    def _stop(self) -> None:
        # A server that was shut down at once may still have children that tidy up while its folder is removed.
        with contextlib.suppress(FileNotFoundError):
            self._server.stop()

    def _execute(self, statement: sql.SQL, name: str) -> None:
        for pause in (0.2, 0.5, 1.0, 2.0, None):
            try:
                with psycopg.connect(self._server.admin_url, autocommit=True) as conn:
                    conn.execute(statement.format(sql.Identifier(name)))
                return
            except psycopg.OperationalError:
                if pause is None:
                    raise
                time.sleep(pause)

    def _cut(self, database: str) -> None:
        with psycopg.connect(self._server.admin_url, autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [database])

    def _restart(self) -> None:
        [pid_file] = self._server.folder.glob("data*/postmaster.pid")
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)  # what "immediate" means
        while pid_file.exists() and _alive(pid):
            time.sleep(0.02)
        self._server._cluster.run()

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


class _Turns:
    """Many at a time, or one alone."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._inside = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, *, alone: bool) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            async with self._door:
                if alone:
                    await self._empty()
                    await stack.enter_async_context(self._counted())
                    yield
                    return
                await stack.enter_async_context(self._counted())
            yield

    async def _empty(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._inside == 0)

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._changed.notify_all()


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

    def __init__(self, stage: Stage, schedule: Schedule, folder: Path, database: str) -> None:
        self._stage = stage
        self._schedule = schedule
        self._folder = folder
        self._database = database
        self._world = World(folder)
        self._dice = random.Random(schedule.seed * 31 + 7)
        self._workers: dict[str, _Worker] = {}
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
            terms = settings(self._stage.url(self._database))
            runtime = await stack.enter_async_context(open_runtime(terms, serve=False))
            stack.push_async_callback(self._end)
            await self._open_desk()
            handles = [await self._started(runtime, number, job) for number, job in enumerate(self._schedule.jobs)]
            for plan in self._schedule.plans:
                await self._hire(plan)
            await self._see_through(runtime, handles)
            await self._let_go()
            async with Database(self._stage.url(self._database)) as database:
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
        dsn = self._stage.url(self._database)
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
        }
        worker.pid = await self._stage.born(worker.name, order)
        return worker

    async def _see_through(self, runtime: Runtime, handles: list[RunHandle]) -> None:
        """Keep workers at work and questions answered until every run has come to its end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
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
                await self._hire()
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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_SECONDS):
                for pid in living:
                    await self._stage.dead(pid)
        for worker in self._workers.values():
            if not self._stage.is_dead(worker.pid):
                self._result.violations.append(f"worker {worker.name} did not shut down in {_QUIET_SECONDS:g} s")

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

    async def _carry_out(self, worker: _Worker, fault: Fault) -> None:
        match fault.action:
            case Action.CUT:
                await self._stage.cut(self._database)
            case Action.RESTART:
                await self._stage.restart()
            case Action.UNHEARD:
                wanted = b"channel_versions" if fault.mark is Mark.CHECKPOINT_COMMITTING else b"COMMIT"
                await asyncio.to_thread(worker.proxy.lose_answer, wanted, cut=True)


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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
