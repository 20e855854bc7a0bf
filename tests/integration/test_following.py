"""Whoever follows a run sees each event once and in order, over any trouble with the connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fix_house import DANA, House, event
from fix_proxy import Proxy

from holdfast.checkpoints.database import Database, StoreTerms
from holdfast.checkpoints.events import PostgresEvents
from holdfast.checkpoints.runs import PostgresRuns
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.runtime.entropy import SystemIds
from holdfast.runtime.following import Followers
from holdfast.runtime.waiting import Lookout
from holdfast.runtime.wake import Wake

ACME = TenantId("acme")
BRIEF = StoreTerms(lock_seconds=1, statement_seconds=1, transaction_seconds=1, acquire_seconds=1)


class Follower:
    """Someone who follows a run to its end in a task, and notes the numbers of what it sees."""

    def __init__(self, database: Database, run_id: RunId, *, after: int = 0, until_it_rests: bool = False) -> None:
        ids, wake = SystemIds(), Wake(0.2)
        followers = Followers(PostgresEvents(database), Lookout(PostgresRuns(database, ids)), wake)
        following = followers.follow(ACME, run_id, after=after, until_it_rests=until_it_rests)
        self.seen: list[int] = []
        self.wake = wake
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._see(following))

    async def _see(self, following: AsyncIterator) -> None:
        async for one in following:
            self.seen.append(one.seq)
            self._news.set()

    async def has_seen(self, seq: int) -> None:
        async with asyncio.timeout(30):
            while seq not in self.seen:
                self._news.clear()
                await self._news.wait()


async def test_events_are_handed_out_as_they_commit_until_the_run_has_ended(house: House) -> None:
    await house.runs.admit(house.request())
    claim = await house.claim_one()
    follower = Follower(house.database, claim.run_id)
    await follower.has_seen(2)
    await house.events.append(claim.owner, [event(EventKind.NODE_STARTED)] * 1200)
    await follower.has_seen(1202)
    assert not follower.task.done()
    await house.end(claim)
    await asyncio.wait_for(follower.task, 30)
    assert follower.seen == list(range(1, 1204))


async def test_follower_goes_on_after_the_last_event_it_has_seen(house: House) -> None:
    run = await house.runs.admit(house.request())
    await house.runs.request_cancel(DANA, ACME, run.run_id, reason="no longer wanted")
    follower = Follower(house.database, run.run_id, after=1)
    await asyncio.wait_for(follower.task, 30)
    assert follower.seen == [2, 3]


@pytest.mark.parametrize("until_it_rests", [True, False])
async def test_follower_leaves_a_run_that_waits_for_a_person_if_that_will_do(
    house: House, until_it_rests: bool
) -> None:
    await house.runs.admit(house.request())
    claim = await house.claim_one()
    await house.ask(claim)
    await house.runs.rest(claim.owner, next_action="", event=event(EventKind.RUN_INTERRUPTED))
    follower = Follower(house.database, claim.run_id, until_it_rests=until_it_rests)
    await follower.has_seen(4)
    if not until_it_rests:
        assert not follower.task.done()
        await house.runs.request_cancel(DANA, ACME, claim.run_id, reason="nobody answers")
    await asyncio.wait_for(follower.task, 30)
    assert follower.seen == list(range(1, 5 if until_it_rests else 8))


async def test_connections_that_are_cut_and_a_server_that_is_gone_lose_and_repeat_nothing(
    house: House, proxy: Proxy
) -> None:
    await house.runs.admit(house.request())
    claim = await house.claim_one()
    async with Database(proxy.url, terms=BRIEF) as through_the_proxy:
        follower = Follower(through_the_proxy, claim.run_id)
        await follower.has_seen(2)
        for fault in (proxy.cut, proxy.stop, proxy.deaf):
            seen = len(follower.seen)
            fault()
            await house.events.append(claim.owner, [event(EventKind.NODE_STARTED)] * 5)
            proxy.start()
            await follower.has_seen(seen + 5)
        await house.end(claim)
        await asyncio.wait_for(follower.task, 30)
    assert follower.seen == list(range(1, 19))
