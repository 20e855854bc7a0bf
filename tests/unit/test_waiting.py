"""Many who wait for runs, and the one query they share."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from holdfast.contracts.errors import StoreUnavailable
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.runs import RunStatus
from holdfast.runtime.waiting import Lookout

ACME, BOLT = TenantId("acme"), TenantId("bolt")


class SlowRuns:
    """A store whose answers wait to be let go, and that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[TenantId, list[RunId]]] = []
        self.may_answer = asyncio.Event()
        self.reached = asyncio.Event()
        self.failure: StoreUnavailable | None = None

    async def statuses(self, tenant_id: TenantId, run_ids: Sequence[RunId]) -> Mapping[RunId, RunStatus]:
        self.asked.append((tenant_id, list(run_ids)))
        self.reached.set()
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return {run_id: RunStatus.COMPLETED for run_id in run_ids if tenant_id == ACME}


@pytest.fixture
def runs() -> SlowRuns:
    return SlowRuns()


async def asking(lookout: Lookout, runs: SlowRuns, count: int) -> list[asyncio.Task[RunStatus | None]]:
    """One whose query is under way, and then the others."""
    tasks = [asyncio.create_task(lookout.status(ACME, RunId("run-0")))]
    await runs.reached.wait()
    tasks += [asyncio.create_task(lookout.status(ACME, RunId(f"run-{number % 7}"))) for number in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_all_who_ask_while_a_query_is_under_way_share_the_next(runs: SlowRuns):
    tasks = await asking(Lookout(runs), runs, 300)
    runs.may_answer.set()
    assert set(await asyncio.gather(*tasks)) == {RunStatus.COMPLETED}
    assert [len(run_ids) for _, run_ids in runs.asked] == [1, 7]


async def test_each_tenant_is_asked_for_its_own(runs: SlowRuns):
    lookout = Lookout(runs)
    runs.may_answer.set()
    statuses = await asyncio.gather(lookout.status(ACME, RunId("run")), lookout.status(BOLT, RunId("run")))
    assert statuses == [RunStatus.COMPLETED, None]
    assert sorted(tenant for tenant, _ in runs.asked) == ["acme", "bolt"]


async def test_those_who_wait_are_answered_when_the_one_who_looked_goes_away(runs: SlowRuns):
    first, *others = await asking(Lookout(runs), runs, 20)
    first.cancel()
    runs.may_answer.set()
    assert set(await asyncio.gather(*others)) == {RunStatus.COMPLETED}
    assert first.cancelled()


async def test_store_that_is_gone_is_told_to_everyone_at_once(runs: SlowRuns):
    tasks = await asking(Lookout(runs), runs, 20)
    runs.failure = StoreUnavailable("gone")
    runs.may_answer.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert len(runs.asked) == 2
