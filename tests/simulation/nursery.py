"""Where workers come from: a process that has imported everything once and forks one for each order.

Starting a worker from nothing costs two seconds of processor time, and a fork a few milliseconds. The nursery has one
thread and no loop, so that what it forks is clean. Orders and answers are lines of JSON on its standard input and
output; it ends, and its workers with it, when its input does.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import sys
from itertools import count
from pathlib import Path
from typing import Any

from simulation import clocks, mutants, worlds

from holdfast import Limits, Principal, open_runtime
from holdfast.contracts.errors import Conflict, StoreUnavailable
from holdfast.contracts.marks import Mark, bound
from holdfast.contracts.scope import Scope
from holdfast.contracts.tenancy import Tenant
from holdfast.gateway.tools import ToolExecutor
from holdfast.runtime.runtime import Runtime
from holdfast.server.settings import Settings, load_settings
from holdfast.testing.faults import Action, Fault, Faults, Plan

TENANTS = ("acme", "bolt")
PERSON = Principal(user_id="dana", tenants=TENANTS, roles=("approver",))
RECONCILE_GRACE_SECONDS = 0.3
"""How long after its timeout a lost call may still arrive: in this world, nothing is under way for long."""


def settings(dsn: str, *, lease_seconds: float = 15.0) -> Settings:
    """What every process of a schedule works with."""
    return load_settings(
        DATABASE_URL=dsn,
        model=worlds.MODEL,
        tenants=[Tenant(tenant_id=name) for name in TENANTS],
        principals={PERSON.user_id: PERSON},
        worker={
            "lease_ttl_seconds": lease_seconds,
            "poll_seconds": 0.2,
            "slots": 8,
            "cleanup_seconds": 2.0,
            "max_attempts": 100,  # workers are lost one after the other here, and no run is given up for that
        },
    )


def main() -> None:
    """Fork workers until standard input ends."""
    bell, rung = os.pipe()
    os.set_blocking(rung, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(rung, warn_on_full_buffer=False)
    children: set[int] = set()
    answer({"ready": os.getpid()})
    orders = b""
    while True:
        ready, _, _ = select.select([0, bell], [], [])
        if bell in ready:
            os.read(bell, 4096)
            bury(children)
        if 0 not in ready:
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *lines, orders = (orders + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                grow_up(order)
            children.add(pid)
            answer({"born": pid, "number": order["number"]})
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def bury(children: set[int]) -> None:
    """Tell who has died, and of what."""
    for pid in list(children):
        dead, status = os.waitpid(pid, os.WNOHANG)
        if dead:
            children.discard(pid)
            answer({"died": pid, "code": os.waitstatus_to_exitcode(status)})


def answer(facts: dict[str, Any]) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def grow_up(order: dict[str, Any]) -> None:
    """Become a worker; never returns."""
    code = 70
    try:
        log = os.open(Path(order["folder"]) / f"{order['name']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        quiet = os.open(os.devnull, os.O_RDONLY)
        os.dup2(quiet, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        mutants.apply(order["mutant"])
        asyncio.run(work(order))
        code = 0
    except BaseException as error:  # noqa: BLE001  # the end of a forked process: it must not go on as its parent
        print(f"worker {order['name']} ends: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


async def work(order: dict[str, Any]) -> None:
    """A worker's life: until it is killed, or told to shut down."""
    worlds.settle_in(Path(order["folder"]))
    assert ToolExecutor.__init__.__kwdefaults__ is not None
    ToolExecutor.__init__.__kwdefaults__["grace_seconds"] = RECONCILE_GRACE_SECONDS
    note_each_look()
    line = Line(order["line"], order["name"])
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say_what_is_waited_for)
    plan = Plan.read(order["plan"])
    terms = settings(order["dsn"], lease_seconds=order["lease_seconds"])
    desk = order["desk"]
    with bound(Faults(plan, line)):
        async with open_runtime(terms, graphs=() if desk else worlds.GRAPHS.values(), serve=not desk) as runtime:
            line.say({"ready": True})
            async with asyncio.TaskGroup() as group:
                attending = group.create_task(attend(runtime, line)) if desk else None
                await line.shut_down.wait()
                if attending is not None:
                    attending.cancel()


def say_what_is_waited_for() -> None:
    """Write every task's stack into the log: a worker that does not shut down is asked for it."""
    for task in asyncio.all_tasks():
        task.print_stack()


def note_each_look() -> None:
    """Let the world know how long ago a call has looked at its lease before it was sent."""
    really = Scope.require_ours

    def require_ours(self: Scope) -> None:
        really(self)
        worlds.looked_at.set(clocks.true_seconds())

    Scope.require_ours = require_ours  # type: ignore[method-assign]


async def attend(runtime: Runtime, line: "Line") -> None:
    """Start runs and decide for those who come to this desk."""
    while True:
        wish = await line.wishes.get()
        try:
            match wish["do"]:
                case "start":
                    graph = worlds.GRAPHS[wish["graph"]]
                    limits = Limits.model_validate(wish["limits"])
                    await runtime.start(graph, wish["input"], limits=limits, user=PERSON.user_id, **wish["terms"])
                case "decide":
                    await runtime.decide(wish["approval"], wish["decision"], by=PERSON.user_id, **wish["words"])
        except Conflict:
            line.say({"served": wish["number"], "refused": True})
        except StoreUnavailable:
            line.say({"served": wish["number"], "again": True})
        else:
            line.say({"served": wish["number"]})


class Line:
    """A worker's line to whoever conducts the schedule. What is said has left the process when `say` returns."""

    def __init__(self, path: str, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._heard = b""
        self.shut_down = asyncio.Event()
        self.wishes: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._loop.add_reader(self._socket, self._listen)
        self.say({"name": name, "pid": os.getpid()})

    def say(self, facts: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(facts).encode() + b"\n")

    def tell(self, mark: Mark, hit: int, fault: Fault | None) -> None:
        self.say({"mark": mark, "hit": hit, "fault": None if fault is None else str(fault)})

    async def order(self, fault: Fault) -> None:
        match fault.action:
            case Action.SKEW:
                clocks.skew(fault.seconds)
            case Action.DRIFT:
                clocks.drift(fault.seconds)
            case Action.DRAIN:
                self.shut_down.set()
            case _:
                await self._ordered(fault)

    async def _ordered(self, fault: Fault) -> None:
        number = next(self._numbers)
        self._waiting[number] = self._loop.create_future()
        self.say({"order": number, "fault": str(fault)})
        await self._waiting[number]

    def order_in_thread(self, fault: Fault) -> None:
        asyncio.run_coroutine_threadsafe(self.order(fault), self._loop).result(30)

    def _listen(self) -> None:
        data = self._socket.recv(4096)
        if not data:
            os._exit(71)  # nobody conducts any more
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "done" in told:
                self._waiting.pop(told["done"]).set_result(None)
            elif "do" in told:
                self.wishes.put_nowait(told)
            else:
                self.shut_down.set()


if __name__ == "__main__":
    main()
