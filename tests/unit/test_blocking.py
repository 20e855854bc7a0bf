"""The runtime for scripts, where whoever waits is interrupted."""

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from holdfast.runtime.blocking import BlockingRuntime


class Endless:
    """Stands in for a runtime: of the runs that it follows nothing more is heard."""

    def __init__(self) -> None:
        self.left = False

    async def follow(self, run_id: str, **_: Any) -> AsyncGenerator[str, None]:
        yield f"{run_id} began"
        try:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # Ctrl-C, to the thread that waits
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.left = True


def test_ctrl_c_while_a_run_is_followed_is_raised_as_itself_and_leaves_nothing_behind():
    runtime: Any = Endless()
    with start_blocking_portal() as portal:
        events = BlockingRuntime(runtime, portal).follow("run", tenant="acme")
        assert next(events) == "run began"  # type: ignore[comparison-overlap]
        with pytest.raises(KeyboardInterrupt):
            next(events)
        assert runtime.left
