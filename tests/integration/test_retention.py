"""Retention in Postgres: what goes, what the terms, a hold or the chain protect, and that nobody gets around it."""

import asyncio
import operator
from collections.abc import Sequence
from typing import Annotated, Any, LiteralString

import pytest
from fix_house import DANA, House, event
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.retention import PostgresRetention
from holdfast.checkpoints.saver import FencedSaver, saver_for
from holdfast.contracts.errors import ConfigurationError, Conflict
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import TenantId
from holdfast.contracts.runs import Owner, RunClaim
from holdfast.contracts.tenancy import RetentionTerms, Tenant
from holdfast.runtime.verification import verified

ACME = TenantId("acme")
NEVER = RetentionTerms()
EVENTS = RetentionTerms(events_days=0)
LATEST = RetentionTerms(checkpoints="keep_latest")
NONE = RetentionTerms(checkpoints_days=0)
A_MONTH_AGO: LiteralString = "update runs set finished_at = finished_at - interval '31 days' where run_id = %s"
WAITING: LiteralString = (
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
)
QUERIES = load_queries("holdfast.checkpoints.retention", "retention.sql")
PRUNE: LiteralString = "select * from prune_events_v1(%s, 1000)"


class State(TypedDict, total=False):
    trail: Annotated[list[str], operator.add]


def noting(notes: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*notes, *(note for write in writes for note in write)]


class DeltaState(TypedDict, total=False):
    trail: Annotated[list[str], DeltaChannel(noting, snapshot_frequency=50)]


def graph(saver: FencedSaver, state: type = State) -> Any:
    builder = StateGraph(state)
    names = ["one", "two", "three"]
    for name, before in zip(names, [START, *names], strict=False):
        builder.add_node(name, lambda _, name=name: {"trail": [name]})
        builder.add_edge(before, name)
    builder.add_edge(names[-1], END)
    return builder.compile(checkpointer=saver)


@pytest.fixture
def retention(database: Database) -> PostgresRetention:
    return PostgresRetention(database)


async def terms(house: House, retention: RetentionTerms, **others: Any) -> None:
    await house.tenants.put(Tenant(tenant_id=ACME, retention=retention, **others))


async def turn(house: House, thread: str, state: type = State, *, end: bool = True) -> RunClaim:
    """A run on a thread, three steps long."""
    await house.runs.admit(house.request(thread_key=thread))
    claim = await house.claim_one()
    saver = saver_for(house.database, claim.owner)
    config = {"configurable": {"thread_id": claim.owner.thread_id}}
    await graph(saver, state).ainvoke({"trail": ["asked"]}, config, durability="sync")
    if end:
        await house.end(claim)
    return claim


async def kept(house: House, claim: RunClaim) -> tuple[int, int, int]:
    """How many checkpoints, values and writes a thread has."""
    counts = await house.row(
        """select (select count(*) from checkpoints where thread_id = t.id) as checkpoints,
                  (select count(*) from checkpoint_blobs where thread_id = t.id) as blobs,
                  (select count(*) from checkpoint_writes where thread_id = t.id) as writes
             from (select %s::text as id) t""",
        claim.owner.thread_id,
    )
    return counts["checkpoints"], counts["blobs"], counts["writes"]


async def trail(house: House, owner: Owner, state: type = State) -> list[str]:
    config = {"configurable": {"thread_id": owner.thread_id}}
    return list((await graph(saver_for(house.database, owner), state).aget_state(config)).values.get("trail", []))


async def somebody_waits_for_a_lock(house: House) -> None:
    async with asyncio.timeout(10):
        while not await house.scalar(WAITING):  # noqa: ASYNC110  # Postgres tells nobody
            await asyncio.sleep(0.01)


async def prune(retention: PostgresRetention) -> None:
    while await retention.prune(ACME):
        pass


class TestCheckpoints:
    async def test_all_but_the_latest_go_when_the_run_has_ended_and_the_thread_goes_on(
        self, house: House, retention: PostgresRetention
    ) -> None:
        claim = await turn(house, "t")
        whole = await kept(house, claim)
        await terms(house, LATEST)
        await prune(retention)
        checkpoints, values, writes = await kept(house, claim)
        assert (checkpoints, writes) == (1, 0)
        assert values < whole[1]
        note = (await house.events.read(ACME, claim.run_id))[-1]
        assert (note.kind, note.payload) == ("run.pruned", {"checkpoints": whole[0] - 1, "kept": "latest"})
        again = await turn(house, "t")
        assert await trail(house, again.owner) == ["asked", "one", "two", "three"] * 2
        await prune(retention)
        assert (await kept(house, again))[0] == 1
        assert await trail(house, again.owner) == ["asked", "one", "two", "three"] * 2

    async def test_all_go_when_the_last_run_of_the_thread_is_old_enough(
        self, house: House, retention: PostgresRetention
    ) -> None:
        first, last = await turn(house, "t"), await turn(house, "t")
        await terms(house, RetentionTerms(checkpoints_days=30))
        await house.shift(A_MONTH_AGO, first.run_id)
        before = await kept(house, last)
        await prune(retention)
        assert await kept(house, last) == before
        await house.shift(A_MONTH_AGO, last.run_id)
        await prune(retention)
        assert await kept(house, last) == (0, 0, 0)
        assert (await house.events.read(ACME, last.run_id))[-1].payload == {"checkpoints": before[0], "kept": "none"}
        assert (await verified(house.events, ACME, last.run_id)).ok

    async def test_thread_with_an_open_run_is_left_alone(self, house: House, retention: PostgresRetention) -> None:
        await turn(house, "t")
        going = await turn(house, "t", end=False)
        before = await kept(house, going)
        for each in (LATEST, NONE):
            await terms(house, each)
            await prune(retention)
            assert await kept(house, going) == before

    async def test_delta_thread_is_kept_whole_until_all_of_it_may_go(
        self, house: House, retention: PostgresRetention
    ) -> None:
        claim = await turn(house, "t", DeltaState)
        before = await kept(house, claim)
        await terms(house, LATEST)
        await prune(retention)
        assert await kept(house, claim) == before
        assert await trail(house, claim.owner, DeltaState) == ["asked", "one", "two", "three"]
        await terms(house, NONE)
        await prune(retention)
        assert await kept(house, claim) == (0, 0, 0)

    @pytest.mark.parametrize("each", [LATEST, NONE])
    async def test_thread_of_a_held_run_keeps_everything(
        self, house: House, retention: PostgresRetention, each: RetentionTerms
    ) -> None:
        held, last = await turn(house, "t"), await turn(house, "t")
        other = await turn(house, "another")
        await retention.hold(DANA, ACME, held.run_id, reason="a claim")
        before = await kept(house, last)
        await terms(house, each)
        await prune(retention)
        assert await kept(house, last) == before
        assert (await kept(house, other))[0] < 2

    @pytest.mark.parametrize("whose", ["run", "tenant"])
    async def test_what_is_held_is_not_deleted_by_anyone(
        self, house: House, retention: PostgresRetention, whose: str
    ) -> None:
        held = await turn(house, "t")
        before = await kept(house, held)
        if whose == "run":
            await retention.hold(DANA, ACME, held.run_id, reason="a claim")
        else:
            await terms(house, NEVER, legal_hold=True)
        await house.runs.admit(house.request(thread_key="t"))
        saver = saver_for(house.database, (await house.claim_one()).owner)
        thread = held.owner.thread_id
        for deletion in (
            saver.adelete_thread(thread),
            saver.aprune([thread]),
            saver.aprune([thread], strategy="delete"),
        ):
            with pytest.raises(Conflict, match="lift the hold first"):
                await deletion
        for table in ("checkpoint_blobs", "checkpoint_writes"):
            with pytest.raises(Conflict):
                async with house.database.tenant(ACME) as conn:
                    await conn.execute(f"delete from {table}")
        assert await kept(house, held) == before

    async def test_new_run_is_kept_out_while_its_thread_is_pruned(self, house: House) -> None:
        claim = await turn(house, "t")
        thread = {"tenant_id": ACME, "thread_id": claim.owner.thread_id}
        async with house.database.tenant(ACME) as pruning:
            assert await (await pruning.execute(QUERIES["lock_thread"], thread)).fetchone() is not None
            admitting = asyncio.create_task(house.runs.admit(house.request(thread_key="t")))
            await somebody_waits_for_a_lock(house)
        assert (await admitting).status == "queued"

    async def test_thread_that_somebody_else_has_is_passed_by(self, house: House, retention: PostgresRetention) -> None:
        busy, free = await turn(house, "t"), await turn(house, "another")
        await terms(house, NONE)
        thread = {"tenant_id": ACME, "thread_id": busy.owner.thread_id}
        async with house.database.tenant(ACME) as somebody:
            await somebody.execute(QUERIES["lock_thread"], thread)
            await retention.prune(ACME)
        assert (await kept(house, busy))[0] > 1
        assert await kept(house, free) == (0, 0, 0)


class TestEvents:
    @pytest.fixture
    async def ended(self, house: House) -> RunClaim:
        await house.runs.admit(house.request())
        claim = await house.claim_one()
        await house.events.append(claim.owner, [event(EventKind.NODE_STARTED)] * 5)
        await house.end(claim)
        return claim

    async def pruned(self, house: House, query: LiteralString = PRUNE, tenant: str = "acme") -> list[Any]:
        """What the application's own role gets from the function."""
        async with house.database.tenant(tenant) as conn:
            return await (await conn.execute(query, ["acme"])).fetchall()

    async def test_function_does_what_the_terms_say(self, house: House, ended: RunClaim) -> None:
        await terms(house, EVENTS)
        assert [row["pruned_events"] for row in await self.pruned(house)] == [7]
        assert await house.kinds(ended.run_id) == ["run.completed", "run.pruned"]

    @pytest.mark.parametrize("protection", ["terms", "days", "tenant's hold", "run's hold", "not ended"])
    async def test_function_asks_itself_what_may_go(
        self, house: House, ended: RunClaim, retention: PostgresRetention, protection: str
    ) -> None:
        await terms(house, EVENTS)
        match protection:
            case "terms":
                await terms(house, NEVER)
            case "days":
                await terms(house, RetentionTerms(events_days=1))
            case "tenant's hold":
                await terms(house, EVENTS, legal_hold=True)
            case "run's hold":
                await retention.hold(DANA, ACME, ended.run_id, reason="a claim")
            case "not ended":
                await house.shift("update runs set status = 'running', finished_at = null")
        before = await house.kinds(ended.run_id)
        assert await self.pruned(house) == []
        assert await house.kinds(ended.run_id) == before

    async def test_session_of_another_tenant_prunes_nothing(self, house: House, ended: RunClaim) -> None:
        await terms(house, EVENTS)
        with pytest.raises(ConfigurationError, match="does not work for tenant acme"):
            await self.pruned(house, tenant="bolt")
        assert len(await house.kinds(ended.run_id)) == 8

    async def test_table_of_the_callers_own_is_not_taken_for_ours(self, house: House, ended: RunClaim) -> None:
        async with house.database.tenant(ACME) as conn:
            await conn.execute(
                """create temp table tenants as select 'acme' as tenant_id, false as legal_hold,
                          '{"events_days": 0}'::jsonb as retention"""
            )
            assert await (await conn.execute(PRUNE, ["acme"])).fetchall() == []
        assert len(await house.kinds(ended.run_id)) == 8

    async def test_engine_may_neither_delete_events_nor_have_them_pruned(self, house: House, ended: RunClaim) -> None:
        for statement in ("delete from events", "select * from prune_events_v1('acme', 1)"):
            with pytest.raises(ConfigurationError, match="permission denied"):
                async with house.database.engine() as conn:
                    await conn.execute(statement)
        assert len(await house.kinds(ended.run_id)) == 8

    @pytest.mark.parametrize(
        "forgery",
        [
            'update events set payload = \'{"by":"mallory"}\' where seq = 3',
            "delete from events where seq = 3",
            "update events set hash = sha256('') where seq = 7",
        ],
    )
    async def test_log_that_was_tampered_with_stays_as_evidence(
        self, house: House, ended: RunClaim, forgery: LiteralString
    ) -> None:
        await house.shift(forgery)
        await terms(house, EVENTS)
        before = await house.kinds(ended.run_id)
        assert await self.pruned(house) == []
        assert await house.kinds(ended.run_id) == before
        assert not (await verified(house.events, ACME, ended.run_id)).ok

    async def test_two_that_prune_at_once_share_no_work(self, house: House, retention: PostgresRetention) -> None:
        await terms(house, EVENTS)
        for _ in range(4):
            await house.runs.admit(house.request())
            await house.end(await house.claim_one())
        async with house.database.tenant(ACME) as conn:
            await conn.execute("select pg_advisory_xact_lock(hashtextextended('holdfast prune acme', 0))")
            assert await retention.prune(ACME) == []
        rounds = await asyncio.gather(*(retention.prune(ACME) for _ in range(5)))
        pruned = [one.run_id for each in rounds for one in each]
        assert len(pruned) == len(set(pruned)) == 4

    async def test_hold_waits_for_the_prune_that_is_under_way(
        self, house: House, retention: PostgresRetention, ended: RunClaim
    ) -> None:
        await terms(house, EVENTS)
        async with house.database.tenant(ACME) as conn:
            await conn.execute(PRUNE, ["acme"])
            holding = asyncio.create_task(retention.hold(DANA, ACME, ended.run_id, reason="a claim"))
            await somebody_waits_for_a_lock(house)
        await holding
        assert await house.kinds(ended.run_id) == ["run.completed", "run.pruned", "run.held"]
        assert (await verified(house.events, ACME, ended.run_id)).ok
