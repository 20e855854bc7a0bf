"""Chains in Postgres are verified page by page, while runs go on."""

import asyncio
from typing import LiteralString

import pytest
from fix_house import House, event

from holdfast.contracts.errors import PermanentDependency
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import TenantId
from holdfast.runtime.verification import verified, verified_all

ACME = TenantId("acme")


async def test_chain_of_many_pages_is_followed_to_its_head(house: House) -> None:
    await house.runs.admit(house.request())
    owner = (await house.claim_one()).owner
    for _ in range(3):
        await house.events.append(owner, [event(EventKind.NODE_STARTED)] * 700)
    found = await verified(house.events, ACME, owner.run_id)
    assert (found.ok, found.events) == (True, 2102)
    await house.shift("update events set node = 'other' where run_id = %s and seq = 2000", owner.run_id)
    found = await verified(house.events, ACME, owner.run_id)
    assert (found.broken_at, found.events) == (2000, 1999)


async def test_run_that_goes_on_meanwhile_is_not_taken_for_broken(house: House) -> None:
    await house.runs.admit(house.request())
    owner = (await house.claim_one()).owner

    async def write() -> None:
        for _ in range(40):
            await house.events.append(owner, [event(EventKind.NODE_STARTED)] * 3)

    writing = asyncio.create_task(write())
    while not writing.done():
        found = await verified(house.events, ACME, owner.run_id)
        assert found.ok, found.broken
    await writing
    assert (await verified(house.events, ACME, owner.run_id)).events == 122


async def test_every_run_of_the_tenant_is_verified_and_nobody_elses(house: House) -> None:
    runs = [(await house.runs.admit(house.request())).run_id for _ in range(3)]
    other = (await house.runs.admit(house.request(tenant="bolt"))).run_id
    await house.shift("delete from run_heads where run_id = %s", runs[1])
    await house.shift("update events set tenant_id = 'bolt' where run_id = %s", runs[2])
    found = {one.run_id: one.broken for one in [one async for one in verified_all(house.events, ACME)]}
    assert other not in found
    assert found[runs[0]] is None
    assert found[runs[1]] == "the head is missing"
    assert found[runs[2]].startswith("event 1 is missing")


@pytest.mark.parametrize("up_to", [1, 2])
async def test_log_whose_beginning_was_taken_out_by_moving_its_anchor_is_not_taken_for_pruned(
    house: House, up_to: int
) -> None:
    run_id = (await house.runs.admit(house.request())).run_id
    await house.claim_one()
    await house.shift(
        """update run_heads h set anchor_seq = e.seq, anchor_hash = e.hash from events e
            where h.run_id = e.run_id and e.run_id = %s and e.seq = %s""",
        run_id,
        up_to,
    )
    await house.shift("delete from events where run_id = %s and seq <= %s", run_id, up_to)
    found = await verified(house.events, ACME, run_id)
    assert (found.ok, found.broken_at) == (False, 1)


@pytest.mark.parametrize("time", ["infinity", "-infinity", "294276-12-31 UTC", "4713-01-01 BC UTC"])
async def test_event_with_a_time_that_no_clock_shows_breaks_its_own_chain_alone(house: House, time: str) -> None:
    altered, other = sorted([(await house.runs.admit(house.request())).run_id for _ in "ab"])
    await house.shift("update events set at = %s where run_id = %s", time, altered)
    found = [one async for one in verified_all(house.events, ACME)]
    assert [(one.run_id, one.broken_at) for one in found] == [(altered, 1), (other, None)]


@pytest.mark.parametrize(
    "change",
    [
        "update events set kind = 'run.invented' where run_id = %s",
        "update events set payload = 'no document' where run_id = %s",
        "update events set payload = '\\xff' where run_id = %s",
        "update events set at = 'infinity' where run_id = %s",
    ],
)
async def test_event_that_was_made_unreadable_says_where_to_look(house: House, change: LiteralString) -> None:
    run_id = (await house.runs.admit(house.request())).run_id
    await house.shift(change, run_id)
    with pytest.raises(PermanentDependency, match=rf"event 1 of run {run_id} cannot be read.*events {run_id} --verify"):
        await house.events.read(ACME, run_id)
