"""One stage for all that is performed here."""

from collections.abc import AsyncIterator

import pytest_asyncio
from simulation.conductor import Stage
from simulation.simulate import AT_ONCE


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage() -> AsyncIterator[Stage]:
    async with Stage(at_once=AT_ONCE).opened() as stage:
        yield stage
