"""A worker of the demo, in a process of its own. The first one that has paid is killed before it can write so."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from holdfast.contracts.ids import TenantId
from holdfast.contracts.marks import Mark, bound
from holdfast.contracts.models import ModelRequest
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.gateway.scripted import ScriptedReply
from holdfast.graphs.refund_desk import graph, store
from holdfast.graphs.refund_desk.script import answer
from holdfast.graphs.refund_desk.store import RefundLedger
from holdfast.server.bootstrap import open_runtime
from holdfast.server.settings import Settings, load_settings

TENANT, APPROVER = TenantId("fernwell"), "dana"
LEASE_SECONDS = 3.0
"""Short, so that nobody has to watch a dead worker's lease run out for long."""
_PRICE = {"input_usd_per_million": "2.50", "output_usd_per_million": "10.00"}
_READING_SPEED = 400
"""Characters a second: about as fast as a model writes."""
_READY, _PAID = b"ready\n", b"paid\n"


def thoughtful(request: ModelRequest) -> ScriptedReply:
    """The refund desk's offline model, as slow as a real one."""
    content = answer(request)
    return ScriptedReply(content=content, delay_seconds=0.4 + len(content) / _READING_SPEED)


def shop_settings(database_url: str, *, fast: bool) -> Settings:
    """What the shop runs with, in every process of the demo. `HOLDFAST_MODEL` has it run on a real model."""
    settings = load_settings()
    script = f"scripted:{answer.__module__}:answer" if fast else f"scripted:{__name__}:thoughtful"
    return load_settings(
        DATABASE_URL=database_url,
        model=settings.model or script,
        prices={script: _PRICE},
        tenants=[Tenant(tenant_id=TENANT)],
        principals={APPROVER: Principal(user_id=APPROVER, tenants=(TENANT,), roles=("approver",))},
        worker={"lease_ttl_seconds": LEASE_SECONDS, "poll_seconds": 0.2},
    )


def shop_ledger(folder: Path) -> RefundLedger:
    """The shop's ledger of refunds: the outside world, in a file that all processes of the demo know."""
    return store.configure(folder / "refunds.sqlite3")


class WorkerProcess:
    """A worker, as the process that started it sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, folder: Path, database_url: str, *, fast: bool) -> Self:
        """Start one; returns when it takes runs."""
        environment = {**os.environ, "DATABASE_URL": database_url}
        arguments = [str(folder), *(["--fast"] if fast else [])]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, *arguments, env=environment, stdout=asyncio.subprocess.PIPE
        )
        worker = cls(process)
        if not await worker._said(_READY):
            raise ChildProcessError(f"a worker ended before it had begun, with code {await process.wait()}")
        return worker

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def kill_when_it_has_paid(self) -> bool:
        """Kill it with SIGKILL in the middle of the refund; False when it ends without coming to that."""
        if not await self._said(_PAID):
            return False
        self._process.kill()
        await self._process.wait()
        return True

    async def stop(self) -> None:
        """End it in order."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()

    async def _said(self, word: bytes) -> bool:
        assert self._process.stdout is not None, "it was started with a pipe"
        return await self._process.stdout.readline() == word


class _FrozenOncePaid:
    """Stops the first worker that has paid, before the answer is written down: what follows is its death."""

    def __init__(self, folder: Path, ledger: RefundLedger) -> None:
        self._taken = folder / "frozen"
        self._ledger = ledger

    async def reach(self, mark: Mark) -> None:
        if mark is Mark.TOOL_SENT and await asyncio.to_thread(self._first_to_have_paid):
            _say(_PAID)
            await asyncio.Event().wait()

    def reach_in_thread(self, mark: Mark) -> None:
        pass

    def _first_to_have_paid(self) -> bool:
        if not self._ledger.refunds():
            return False
        try:
            self._taken.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


async def work(folder: Path, database_url: str, *, fast: bool) -> None:
    """Work until SIGTERM, or until killed."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with bound(_FrozenOncePaid(folder, shop_ledger(folder))):
        async with open_runtime(shop_settings(database_url, fast=fast), graphs=[graph]):
            _say(_READY)
            await stop.wait()


def _say(word: bytes) -> None:
    sys.stdout.buffer.write(word)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), os.environ["DATABASE_URL"], fast="--fast" in sys.argv[2:]))
