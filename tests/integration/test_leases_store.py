"""Claims and leases in Postgres, under real concurrency."""

import asyncio

from fix_house import SERVED, House, event

from holdfast.contracts.errors import StoreUnavailable
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.runs import RunClaim, RunStatus


async def claim(house: House, worker: str, *, slots: int = 1, tenants: list[TenantId] | None = None) -> list[RunClaim]:
    return list(await house.leases.claim(worker, tenants=tenants, graphs=SERVED, slots=slots, ttl_seconds=30))


async def let_leases_run_out(house: House) -> None:
    await house.shift("update leases set expires_at = clock_timestamp() - interval '1 second'")


async def test_ten_claims_at_once_over_five_runs_take_each_once(house: House) -> None:
    for _ in range(4):
        admitted = {(await house.runs.admit(house.request())).run_id for _ in range(5)}
        answers = await asyncio.gather(*(claim(house, f"w{n}") for n in range(10)))
        taken = [one for answer in answers for one in answer]
        assert sorted(one.run_id for one in taken) == sorted(admitted)
        assert {one.run.epoch for one in taken} == {1}
        await asyncio.gather(*(house.end(one) for one in taken))


async def test_claims_at_once_with_many_slots_never_double(house: House) -> None:
    admitted = {(await house.runs.admit(house.request())).run_id for _ in range(12)}
    taken: list[RunId] = []
    while len(taken) < len(admitted):
        answers = await asyncio.gather(*(claim(house, f"w{n}", slots=3) for n in range(6)))
        new = [one.run_id for answer in answers for one in answer]
        assert new, "somebody gets something while there is something"
        taken += new
    assert sorted(taken) == sorted(admitted)


async def test_claimed_run_is_whole_and_its_claim_is_an_event(house: House) -> None:
    run = await house.runs.admit(house.request())
    (one,) = await claim(house, "first")
    assert (one.run.input, one.run.status, one.run.worker_id) == (b"{}", RunStatus.RUNNING, "first")
    assert (one.run.epoch, one.run.attempt) == (1, 1)
    assert one.run.started_at is not None
    assert 29 < (one.claimed_until - one.heartbeat_at).total_seconds() <= 31
    claimed = (await house.events.read(TenantId("acme"), run.run_id))[-1]
    assert (claimed.kind, claimed.attempt, claimed.seq) == (EventKind.RUN_CLAIMED, 1, 2)


async def test_runs_are_claimed_oldest_first_up_to_the_slots(house: House) -> None:
    admitted = [(await house.runs.admit(house.request())).run_id for _ in range(4)]
    assert [one.run_id for one in await claim(house, "w", slots=3)] == admitted[:3]


async def test_only_the_workers_graphs_and_tenants_are_claimed(house: House) -> None:
    await house.runs.admit(house.request(graph_name="other"))
    bolt = await house.runs.admit(house.request(tenant="bolt"))
    assert await claim(house, "w", slots=5, tenants=[TenantId("acme")]) == []
    assert [one.run_id for one in await claim(house, "w", slots=5)] == [bolt.run_id]


async def test_claim_crosses_tenants_and_reads_each_run_for_its_own(house: House) -> None:
    acme, bolt = await house.runs.admit(house.request()), await house.runs.admit(house.request(tenant="bolt"))
    claims = await claim(house, "w", slots=5)
    assert {one.run_id: one.run.tenant.tenant_id for one in claims} == {acme.run_id: "acme", bolt.run_id: "bolt"}


async def test_second_run_of_a_thread_waits_until_the_first_has_ended(house: House) -> None:
    first, second = [await house.runs.admit(house.request(thread_key="one")) for _ in range(2)]
    answers = await asyncio.gather(*(claim(house, f"w{n}", slots=2) for n in range(6)))
    (one,) = [one for answer in answers for one in answer]
    assert one.run_id == first.run_id
    assert await claim(house, "w") == []
    await house.ask(one)
    await house.runs.rest(one.owner, next_action="decide", event=event(EventKind.RUN_INTERRUPTED))
    assert await claim(house, "w") == [], "a run that rests with a person keeps its place"
    (approval,) = await house.approvals.find(TenantId("acme"))
    await house.decide(approval)
    (again,) = await claim(house, "w")
    assert again.run_id == first.run_id
    await house.runs.release(again.owner, event=event(EventKind.RUN_RELEASED))
    (again,) = await claim(house, "w", slots=2)
    assert again.run_id == first.run_id
    await house.end(again)
    assert [one.run_id for one in await claim(house, "w")] == [second.run_id]


async def test_runs_of_one_thread_never_run_together_whoever_claims_and_ends(house: House) -> None:
    admitted = [(await house.runs.admit(house.request(thread_key="one"))).run_id for _ in range(6)]
    ended: list[RunId] = []

    async def work(worker: str) -> None:
        while len(ended) < 6:
            for one in await claim(house, worker, slots=2):
                running = await house.scalar("select count(*) from runs where status = 'running'")
                assert running == 1
                await house.end(one)
                ended.append(one.run_id)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for n in range(4):
            group.create_task(work(f"w{n}"))
    assert ended == admitted


async def test_lapsed_lease_is_taken_over_once_with_the_next_epoch(house: House) -> None:
    await house.runs.admit(house.request())
    (first,) = await claim(house, "first")
    assert await claim(house, "second") == []
    await let_leases_run_out(house)
    answers = await asyncio.gather(*(claim(house, f"w{n}") for n in range(6)))
    (taken,) = [one for answer in answers for one in answer]
    assert (taken.run.epoch, taken.run.attempt) == (2, 2)
    assert taken.run.started_at == first.run.started_at
    assert await house.scalar("select count(*) from leases") == 1


async def test_renewal_prolongs_what_is_held_and_nothing_else(house: House) -> None:
    for _ in range(2):
        await house.runs.admit(house.request())
    held, lapsed = await claim(house, "first", slots=2)
    await house.shift(
        "update leases set expires_at = clock_timestamp() - interval '1 second' where run_id = %s", lapsed.run_id
    )
    answers = await house.renew("first", [held.owner, lapsed.owner], ttl_seconds=90)
    assert (answers[held.run_id].held, answers[lapsed.run_id].held) == (True, False)
    left = await house.scalar(
        "select extract(epoch from expires_at - clock_timestamp()) from leases where run_id = %s", held.run_id
    )
    assert 80 < left <= 90
    by_another = await house.renew("second", [held.owner], ttl_seconds=90)
    assert not by_another[held.run_id].held
    assert await house.renew("first", [], ttl_seconds=90) == {}


async def test_lease_that_ran_out_is_not_resurrected_by_a_late_heartbeat(house: House) -> None:
    await house.runs.admit(house.request())
    (one,) = await claim(house, "first")
    await let_leases_run_out(house)
    answers = await house.renew("first", [one.owner], ttl_seconds=90)
    assert not answers[one.run_id].held
    (taken,) = await claim(house, "second")
    assert taken.run.epoch == 2


async def test_heartbeat_does_not_wait_for_a_writer_of_the_run_and_a_takeover_does(house: House) -> None:
    await house.runs.admit(house.request())
    (one,) = await claim(house, "first")
    async with house.database.tenant("acme") as conn:
        await conn.execute(
            "select 1 from leases where run_id = %s and epoch = %s for key share", (one.run_id, one.run.epoch)
        )
        async with asyncio.timeout(5):
            answers = await house.renew("first", [one.owner], ttl_seconds=30)
        assert answers[one.run_id].held
        await let_leases_run_out(house)
        assert await claim(house, "second") == [], "its writer is not over yet"
    assert len(await claim(house, "second")) == 1


async def test_run_with_a_limit_that_only_newer_code_knows_is_left_to_it_and_the_others_are_claimed(
    house: House,
) -> None:
    newer, other = [(await house.runs.admit(house.request())).run_id for _ in "ab"]
    await house.shift("update runs set limits = limits || '{\"max_moons\": 3}' where run_id = %s", newer)
    claims = {one.run_id: one.run.unreadable for one in await claim(house, "first", slots=2)}
    assert isinstance(claims[newer], StoreUnavailable)
    assert claims[other] is None


async def test_engine_role_cannot_read_what_a_run_is_about(house: House) -> None:
    readable = await house.row(
        "select bool_or(has_column_privilege('holdfast_engine', 'runs', name, 'select')) as any_payload"
        " from unnest(array['input', 'context', 'output', 'principal', 'cause', 'limits']) name"
    )
    assert readable["any_payload"] is False
