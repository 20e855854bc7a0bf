"""Governance under `langgraph dev`: the app that `langgraph.json` names as `http.app`.

While the server runs, a runtime without a worker is open in its loop; it is the host of every governed graph that the
server invokes, so that journal, budget, policy and inbox hold there. Ownership (the lease and its fence) is the
server's own. Needs the extra `studio`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from holdfast.server.bootstrap import open_runtime


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Holds the runtime open; it registers itself as the host of attached runs."""
    async with open_runtime(serve=False):
        yield


app = Starlette(lifespan=lifespan)
