"""`holdfast demo`: a customer's e-mail, handled by a governed run on a Postgres of its own, watched as it commits.

A worker dies in the middle of the refund, and another goes on.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from langgraph.graph import START
from rich.console import Console
from rich.live import Live
from rich.text import Text

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.embedded import EmbeddedServer, embedded_server
from holdfast.checkpoints.invariants import violations
from holdfast.contracts.approvals import Approval, DecisionType
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import RunResult, RunStatus
from holdfast.graphs.refund_desk import graph
from holdfast.graphs.refund_desk import sample as sample_email
from holdfast.graphs.refund_desk.store import RefundLedger
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.server import demo_view as view
from holdfast.server.bootstrap import open_runtime
from holdfast.server.demo_worker import APPROVER, TENANT, WorkerProcess, shop_ledger, shop_settings

_LIMITS = Limits(deadline_seconds=60, max_cost_usd=Decimal("0.10"), max_model_calls=20, max_tool_calls=20)
_AMOUNT = re.compile(r"[0-9]{1,7}\.[0-9]{2}")
_PATIENCE_SECONDS = 120.0
"""Longer than the run may take: only workers that are gone make anyone wait for this."""
_FRAMES_PER_SECOND = 10


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the person at the terminal decides."""

    decision: DecisionType
    args: Mapping[str, Any] | None = None
    message: str | None = None


@dataclass(slots=True)
class Crew:
    """The workers of the demo, and which of them was killed."""

    workers: Sequence[WorkerProcess]
    killed: int | None = None
    """Its process id."""

    async def lose_one(self) -> None:
        """Kill the worker that has paid, at once."""
        watches = {asyncio.ensure_future(worker.kill_when_it_has_paid()): worker for worker in self.workers}
        try:
            for ended in asyncio.as_completed(watches):
                if await ended:
                    self.killed = next(worker.pid for watch, worker in watches.items() if watch.done())
                    return
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.wait(watches)


async def run_demo(*, console: Console, sample: str | None = None, fast: bool = False) -> int:
    """Show one run from e-mail to reply. Returns the exit code: 0 when all that is promised was seen.

    Two workers stand by, each a process of its own; the one that pays is killed with SIGKILL before it can write so,
    and the other goes on. `sample` names the e-mail (default: the one that a person must approve). Someone at a
    terminal is asked to decide; anywhere else the demo approves by itself, and says so. `fast` leaves out the scripted
    model's pauses. `HOLDFAST_MODEL` has the same graph run on a real model.
    """
    email = sample_email(sample or "large")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="holdfast-demo-")))
        ledger = shop_ledger(folder)
        with console.status("Starting a Postgres of its own, and two workers …"):
            server = await stack.enter_async_context(embedded_server(temporary=True))
            settings = shop_settings(server.app_url, fast=fast)
            runtime = await stack.enter_async_context(open_runtime(settings, graphs=[graph], serve=False))
            crew = await stack.enter_async_context(_crew(folder, server.app_url, fast=fast))
        console.print(view.opening(email, model=settings.model))
        run = await runtime.start(graph, {"email": email}, tenant=TENANT, limits=_LIMITS)
        result = await _watched(console, runtime, run, crew)
        while result.status is RunStatus.INTERRUPTED:
            for approval in result.approvals:
                await _decided(console, runtime, approval)
            result = await _watched(console, runtime, run, crew)
        console.print(view.money(await runtime.show(run.run_id, tenant=TENANT)))
        return await _ended(console, result, ledger, server)


@asynccontextmanager
async def _crew(folder: Path, database_url: str, *, fast: bool) -> AsyncIterator[Crew]:
    """Two workers, and the end of one of them."""
    starting = [WorkerProcess.start(folder, database_url, fast=fast) for _ in range(2)]
    crew = Crew(await asyncio.gather(*starting))
    losing = asyncio.create_task(crew.lose_one(), name="the end of a worker")
    try:
        yield crew
    finally:
        losing.cancel()
        await asyncio.wait({losing})
        for worker in crew.workers:
            await worker.stop()


def demo(*, fast: bool = False) -> int:
    """`run_demo` on this process's terminal."""
    return asyncio.run(run_demo(console=Console(), fast=fast))


async def _watched(console: Console, runtime: Runtime, run: RunHandle, crew: Crew) -> RunResult:
    """Draw the run until it rests: live on a terminal, once anywhere else."""
    if not console.is_terminal:
        result = await run.result(_PATIENCE_SECONDS)
        console.print(await _picture(runtime, run, crew))
        return result
    with Live(console=console, refresh_per_second=_FRAMES_PER_SECOND) as live:
        waiting = asyncio.ensure_future(run.result(_PATIENCE_SECONDS))
        try:
            while not waiting.done():
                live.update(await _picture(runtime, run, crew))
                await asyncio.wait({waiting}, timeout=1 / _FRAMES_PER_SECOND)
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})
        live.update(await _picture(runtime, run, crew))
    return waiting.result()


async def _picture(runtime: Runtime, run: RunHandle, crew: Crew) -> Any:
    report = await runtime.show(run.run_id, tenant=TENANT)
    state = await runtime.state(run.thread, tenant=TENANT)
    nodes = [node for node in graph.nodes if node != START]
    return view.progress(report, await run.events(), state, nodes=nodes, killed=crew.killed)


async def _decided(console: Console, runtime: Runtime, approval: Approval) -> None:
    console.print(view.question(approval))
    if console.is_terminal and sys.stdin.isatty():
        ruling = await _asked(console)
    else:
        console.print(f"Nobody is at a terminal here, so the demo approves by itself, as {APPROVER}.")
        ruling = Ruling("approve")
    args = None if ruling.args is None else {**(approval.args or {}), **ruling.args}
    await runtime.decide(approval.id, ruling.decision, by=APPROVER, args=args, message=ruling.message)


async def _asked(console: Console) -> Ruling:
    """Ask the person at the terminal until they decide."""
    while True:
        match (await _typed(console, f"You are {APPROVER}. [y]es, [n]o, [e]dit the amount: ")).lower():
            case "y" | "yes":
                return Ruling("approve")
            case "n" | "no":
                return Ruling("reject", message=await _typed(console, "Why not? ") or "A colleague said no.")
            case "e" | "edit":
                return Ruling("edit", args={"amount_usd": await _amount(console)})


async def _amount(console: Console) -> str:
    while not _AMOUNT.fullmatch(amount := await _typed(console, "Amount in US dollars, as in 34.90: ")):
        console.print("That is no amount.")
    return amount


async def _typed(console: Console, question: str) -> str:
    """One line from the terminal, without holding up the loop: Ctrl-C works, and leases are renewed."""
    console.print(Text(question, "bold"), end="")
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    return line.strip()


async def _ended(console: Console, result: RunResult, ledger: RefundLedger, server: EmbeddedServer) -> int:
    """Show the reply, and hold the database and the outside ledger against what was promised."""
    if result.status is not RunStatus.COMPLETED:
        console.print(view.failure(result))
        return 1
    console.print(view.reply(result.output))
    expected = 1 if (result.output["refund"] or {}).get("status") == "paid" else 0
    refunds = ledger.refunds()
    async with Database(server.app_url) as database:
        found = await violations(database, tenants=[TENANT])
    console.print(view.checks(found, refunds, expected=expected))
    return 0 if len(refunds) == expected and not any(found.values()) else 1
