"""LangGraph's checkpoints through our saver, in the clear and encrypted: kept apart by tenant, read strictly, and as
useful as ever."""

import asyncio
import operator
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import psycopg
import pytest
from fix_database import DatabaseUrls, encrypting
from fix_house import House
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base import id as ids
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt
from psycopg.conninfo import make_conninfo
from pydantic import BaseModel
from typing_extensions import TypedDict

from holdfast.checkpoints.database import Database, PoolSizes
from holdfast.checkpoints.saver import FencedSaver, saver_for
from holdfast.checkpoints.serialization import declared_types, strict_serializer
from holdfast.checkpoints.vault import Encryption
from holdfast.contracts.errors import Conflict, LeaseLost, NotFound


class Order(BaseModel):
    number: str


@dataclass
class Parcel:
    weight: int


class State(TypedDict, total=False):
    trail: Annotated[list[str], operator.add]
    messages: Annotated[list[AnyMessage], add_messages]
    order: Order
    hidden: Any


TABLES: Final = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


in_the_clear = pytest.mark.parametrize("encryption", [None], ids=["in the clear"])


@pytest.fixture(params=["in the clear", "encrypted"])
def encryption(request: pytest.FixtureRequest) -> Encryption | None:
    return encrypting("k1") if request.param == "encrypted" else None


def noting(notes: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*notes, *(note for write in writes for note in write)]


def first(state: State) -> State:
    return {"trail": ["first"], "messages": [AIMessage("hello")], "order": Order(number="A-1"), "hidden": Parcel(3)}


def second(state: State) -> State:
    return {"trail": [f"second:{interrupt('go on?')}"]}


def compiled(saver: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_node("second", second)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    builder.add_edge("second", END)
    graph = builder.compile()
    return graph.copy(update={"checkpointer": saver.with_allowlist(declared_types(graph))})


def on(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}}


async def holding(house: House, tenant: str = "acme") -> FencedSaver:
    """The saver of a run of its own, which is claimed."""
    await house.runs.admit(house.request(tenant=tenant))
    return saver_for(house.database, (await house.claim_one()).owner)


async def on_taken_over_run(house: House) -> FencedSaver:
    """The saver of an owner whose run another worker has claimed since."""
    saver = await holding(house)
    await house.shift(
        "update leases set expires_at = clock_timestamp() - interval '1 second' where run_id = %s", saver._owner.run_id
    )
    await house.claim_one("second")
    return saver


async def kept(
    house: House, table: Literal["checkpoints", "checkpoint_blobs", "checkpoint_writes"], thread: str
) -> int:
    return int(await house.scalar(f"select count(*) from {table} where thread_id = %s", thread))


async def test_run_is_interrupted_and_resumed_by_another_saver_of_its_tenant(house: House) -> None:
    await compiled(await holding(house)).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    graph = compiled(await holding(house))
    asked = (await graph.aget_state(on("t1"))).interrupts[0]
    result = await graph.ainvoke(Command(resume={asked.id: "yes"}), on("t1"), durability="sync")
    assert result["trail"] == ["in", "first", "second:yes"]


async def test_checkpoints_of_a_worker_whose_clock_is_behind_come_after_those_that_it_went_on_from(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + 3_600_000_000_000)
    await compiled(await holding(house)).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    monkeypatch.setattr(time, "time_ns", right)
    monkeypatch.setattr(ids, "_last_v6_timestamp", None)  # as in another worker, whose clock is right
    graph = compiled(await holding(house))
    asked = (await graph.aget_state(on("t1"))).interrupts[0]
    await graph.ainvoke(Command(resume={asked.id: "yes"}), on("t1"), durability="sync")
    history = [each.metadata["step"] async for each in graph.aget_state_history(on("t1"))]
    assert history == [2, 1, 0, -1]


async def test_run_that_was_taken_over_stops_at_its_first_checkpoint_and_leaves_no_row(house: House) -> None:
    saver = await on_taken_over_run(house)
    with pytest.raises(LeaseLost):
        await compiled(saver).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    assert [await kept(house, table, "t1") for table in TABLES] == [0, 0, 0]


@pytest.mark.parametrize("change", ["adelete_thread", "aprune", "adelete_for_runs", "acopy_thread"])
async def test_nothing_is_deleted_or_copied_for_a_run_that_was_taken_over(house: House, change: str) -> None:
    await compiled(await holding(house)).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    given: dict[str, tuple[Any, ...]] = {
        "adelete_thread": ("t1",), "aprune": (["t1"],), "adelete_for_runs": (["r"],), "acopy_thread": ("t1", "t2"),
    }  # fmt: skip
    before = [await kept(house, table, "t1") for table in TABLES]
    with pytest.raises(LeaseLost):
        await getattr(await on_taken_over_run(house), change)(*given[change])
    assert [await kept(house, table, "t1") for table in TABLES] == before
    assert [await kept(house, table, "t2") for table in TABLES] == [0, 0, 0]


async def test_latest_checkpoints_of_many_threads_are_read_together(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = await holding(house)
    threads = [f"t{n}" for n in range(20)]
    for thread in threads:
        await compiled(saver).ainvoke({"trail": [thread]}, on(thread), durability="sync")
    line, sent = house.database.reader._line, []
    really = line.run

    async def counted(query: Any, *rest: Any, **more: Any) -> Any:
        sent.append(query)
        return await really(query, *rest, **more)

    monkeypatch.setattr(line, "run", counted)
    found = await asyncio.gather(*(saver.aget_tuple(on(thread)) for thread in threads))
    trails = [each.checkpoint["channel_values"]["trail"] for each in found if each is not None]
    assert trails == [[thread, "first"] for thread in threads]
    assert len(sent) <= 2  # the first, alone, and the others while it was under way


async def test_other_tenant_sees_none_of_a_threads_checkpoints(house: House) -> None:
    saver = await holding(house)
    await compiled(saver).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    latest = await saver.aget_tuple(on("t1"))
    assert latest is not None
    stranger = await holding(house, "bolt")
    both = await asyncio.gather(stranger.aget_tuple(on("t1")), saver.aget_tuple(on("t1")))
    assert [found is None for found in both] == [True, False]
    assert await stranger.aget_tuple(latest.config) is None
    assert [each async for each in stranger.alist(None)] == []
    await stranger.adelete_thread("t1")
    assert await saver.aget_tuple(on("t1")) == latest


async def test_other_tenant_cannot_write_to_a_thread_even_beside_its_owner(house: House) -> None:
    saver, stranger = await holding(house), await holding(house, "bolt")
    await compiled(saver).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    mine = await saver.aget_tuple(on("t1"))
    assert mine is not None
    config = on("t1")
    config["configurable"]["checkpoint_ns"] = ""
    intruded, written = await asyncio.gather(
        stranger.aput(config, mine.checkpoint, {"source": "fork"}, {}),
        saver.aput(config, mine.checkpoint, mine.metadata, {}),
        return_exceptions=True,
    )
    assert isinstance(intruded, NotFound)
    assert "another tenant" in intruded.message
    assert not isinstance(written, BaseException)
    after = await saver.aget_tuple(on("t1"))
    assert after is not None
    assert after.metadata == mine.metadata


async def test_what_another_tenant_writes_beside_a_checkpoint_is_no_part_of_it(house: House) -> None:
    saver, stranger = await holding(house), await holding(house, "bolt")
    await compiled(saver).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    mine = await saver.aget_tuple(on("t1"))
    assert mine is not None
    assert mine.pending_writes
    await stranger.aput_writes(mine.config, [("trail", ["forged"])], task_id=str(ids.uuid6()))
    assert await house.scalar("select count(distinct tenant_id) from checkpoint_writes where thread_id = 't1'") == 2
    # Read by one connection, which works for both.
    _, after = await asyncio.gather(stranger.aget_tuple(on("t1")), saver.aget_tuple(on("t1")))
    assert after == mine


async def test_history_is_listed_newest_first_and_an_old_state_forks(house: House) -> None:
    graph = compiled(await holding(house))
    await graph.ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    history = [state async for state in graph.aget_state_history(on("t1"))]
    assert [state.metadata["step"] for state in history] == [1, 0, -1]
    fork = await graph.aupdate_state(history[1].config, {"trail": ["forked"]})
    assert (await graph.aget_state(fork)).values["trail"] == ["in", "forked"]


async def test_declared_types_come_back_as_they_were_and_others_as_plain_data(house: House) -> None:
    graph = compiled(await holding(house))
    await graph.ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    values = (await graph.aget_state(on("t1"))).values
    assert values["order"] == Order(number="A-1")
    assert isinstance(values["messages"][0], AIMessage)
    assert values["hidden"] == {"weight": 3}


@pytest.mark.parametrize("odd", ["with\x00nul", float("inf"), "coffee\u00e9 \U0001f600", True, 0, None])
async def test_plain_value_that_json_in_postgres_may_not_hold_comes_back_as_it_was(house: House, odd: Any) -> None:
    saver = await holding(house)
    config = on("t1")
    config["configurable"]["checkpoint_ns"] = ""
    checkpoint = empty_checkpoint() | {"channel_values": {"odd": odd}, "channel_versions": {"odd": "1"}}
    await saver.aput(config, checkpoint, {}, {"odd": "1"})  # type: ignore[arg-type]
    found = await saver.aget_tuple(on("t1"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"odd": odd}


async def test_listing_in_a_slow_readers_hands_holds_no_connection(
    house: House, database_urls: DatabaseUrls, encryption: Encryption | None
) -> None:
    first = await holding(house)
    async with Database(database_urls.app, PoolSizes(app=1, engine=1), encryption=encryption) as database:
        saver = saver_for(database, first._owner)
        await compiled(saver).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
        async for each in saver.alist(on("t1")):
            assert await saver.aget_tuple(each.config) is not None


async def test_runs_of_several_tenants_side_by_side_each_keep_their_own(house: House) -> None:
    savers = [await holding(house, ("acme", "bolt")[n % 2]) for n in range(12)]
    results = await asyncio.gather(
        *(compiled(each).ainvoke({"trail": [f"{n}"]}, on(f"t{n}"), durability="sync") for n, each in enumerate(savers))
    )
    assert [result["trail"] for result in results] == [[f"{n}", "first"] for n in range(12)]
    tenants = await house.row(
        "select count(distinct (thread_id, tenant_id)) as pairs, count(distinct tenant_id) as tenants from checkpoints"
    )
    assert dict(tenants) == {"pairs": 12, "tenants": 2}


@asynccontextmanager
async def langgraphs_own(urls: DatabaseUrls) -> AsyncIterator[AsyncPostgresSaver]:
    address = make_conninfo(urls.app, options="-c holdfast.tenants=acme")
    async with AsyncPostgresSaver.from_conn_string(address, serde=strict_serializer()) as saver:
        yield saver


async def history(graph: Any, thread: str) -> list[Any]:
    return [
        (state.values, state.next, state.config, state.parent_config, state.metadata, state.interrupts,
         [(task.name, task.result, task.error) for task in state.tasks])
        async for state in graph.aget_state_history(on(thread))
    ]  # fmt: skip


@in_the_clear
@pytest.mark.parametrize("ours_begins", [True, False])
async def test_langgraphs_saver_and_ours_go_on_from_each_others_rows(
    house: House, database_urls: DatabaseUrls, ours_begins: bool
) -> None:
    async with langgraphs_own(database_urls) as theirs:
        both = [compiled(await holding(house)), compiled(theirs)]
        beginning, ending = both if ours_begins else reversed(both)
        await beginning.ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
        assert await history(ending, "t1") == await history(beginning, "t1")
        asked = (await ending.aget_state(on("t1"))).interrupts[0]
        result = await ending.ainvoke(Command(resume={asked.id: "yes"}), on("t1"), durability="sync")
        assert result["trail"] == ["in", "first", "second:yes"]
        assert await history(ending, "t1") == await history(beginning, "t1")
        assert len(await history(ending, "t1")) == 4


class Noted(TypedDict, total=False):
    notes: Annotated[list[str], DeltaChannel(noting, snapshot_frequency=3)]


def noter(saver: Any) -> Any:
    builder = StateGraph(Noted)
    builder.add_node("one", lambda state: {"notes": [f"one of {len(state['notes'])}"]})
    builder.add_node("two", lambda state: {"notes": [f"two of {len(state['notes'])}"]})
    builder.add_edge(START, "one")
    builder.add_edge(START, "two")
    return builder.compile(checkpointer=saver)


@in_the_clear
async def test_delta_channel_is_rebuilt_by_both_savers_across_its_snapshots(
    house: House, database_urls: DatabaseUrls
) -> None:
    async with langgraphs_own(database_urls) as theirs:
        ours = await holding(house)
        for turn in range(5):
            result = await noter(ours).ainvoke({"notes": [f"turn {turn}"]}, on("t1"), durability="sync")
        assert len(result["notes"]) == 15
        for saver in (ours, theirs):
            assert (await noter(saver).aget_state(on("t1"))).values["notes"] == result["notes"]
        await ours.acopy_thread("t1", "t2")
        assert (await noter(ours).aget_state(on("t2"))).values["notes"] == result["notes"]
        with pytest.raises(NotImplementedError, match="DeltaChannel"):
            await ours.aprune(["t1"])


async def test_delta_channel_of_a_fork_holds_what_came_before_it_and_nothing_of_the_branch_it_left(
    house: House,
) -> None:
    graph = noter(await holding(house))
    for turn in range(4):
        await graph.ainvoke({"notes": [f"turn {turn}"]}, on("t1"), durability="sync")
    before = [state async for state in graph.aget_state_history(on("t1"))]
    for state in before:
        left = state.values.get("notes", [])
        fork = await graph.aupdate_state(state.config, {"notes": ["forked"]}, as_node="one")
        assert (await graph.aget_state(fork)).values["notes"] == [*left, "forked"]
        assert (await graph.aget_state(state.config)).values.get("notes", []) == left
    after = {state.config["configurable"]["checkpoint_id"]: state async for state in graph.aget_state_history(on("t1"))}
    assert [after[state.config["configurable"]["checkpoint_id"]].values for state in before] == [
        state.values for state in before
    ]


async def test_copy_onto_a_thread_that_has_something_is_refused(house: House) -> None:
    saver = await holding(house)
    await compiled(saver).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    await saver.acopy_thread("t1", "t2")
    with pytest.raises(Conflict):
        await saver.acopy_thread("t1", "t2")


async def test_pruned_thread_goes_on_from_its_latest_checkpoint(house: House) -> None:
    saver = await holding(house)
    graph = compiled(saver)
    await graph.ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    asked = (await graph.aget_state(on("t1"))).interrupts[0]
    await saver.aprune(["t1"])
    assert await kept(house, "checkpoints", "t1") == 1
    result = await graph.ainvoke(Command(resume={asked.id: "yes"}), on("t1"), durability="sync")
    assert result["trail"] == ["in", "first", "second:yes"]


async def test_synchronous_methods_serve_a_thread_beside_the_loop(house: House) -> None:
    saver = await holding(house)
    graph = compiled(saver)
    await asyncio.to_thread(graph.invoke, {"trail": ["in"]}, on("t1"), durability="sync")
    await asyncio.to_thread(saver.copy_thread, "t1", "t2")
    assert len(await asyncio.to_thread(lambda: list(saver.list(on("t2"))))) == 3
    await asyncio.to_thread(saver.delete_for_runs, ["nobody's"])
    await asyncio.to_thread(saver.prune, ["t2"])
    await asyncio.to_thread(saver.delete_thread, "t1")
    assert [await kept(house, "checkpoints", thread) for thread in ("t1", "t2")] == [0, 1]


@in_the_clear
@pytest.mark.timeout(30)
async def test_synchronous_methods_refuse_the_loop_that_they_would_wait_for(house: House) -> None:
    saver = await holding(house)
    place: RunnableConfig = {"configurable": {"thread_id": "t1", "checkpoint_ns": "", "checkpoint_id": "c1"}}
    for method, given in (
        (saver.get_tuple, (on("t1"),)),
        (saver.put, (place, empty_checkpoint(), {}, {})),
        (saver.put_writes, (place, [("trail", ["a"])], "task")),
        (saver.copy_thread, ("t1", "t2")),
        (saver.delete_for_runs, (["nobody's"],)),
        (saver.prune, (["t1"],)),
        (saver.delete_thread, ("t1",)),
    ):
        with pytest.raises(asyncio.InvalidStateError):
            method(*given)  # type: ignore[operator]


@in_the_clear
async def test_tables_are_those_of_langgraphs_own_setup(database: Database, empty_database: DatabaseUrls) -> None:
    """A new version of the checkpoint library that changes its tables needs a migration of ours."""
    with psycopg.connect(empty_database.admin, autocommit=True) as conn:
        for step in BasePostgresSaver.MIGRATIONS:
            conn.execute(step)
        query = """select table_name, column_name, data_type, is_nullable, column_default
                     from information_schema.columns
                    where table_name like 'checkpoint%' and column_name <> 'tenant_id' order by 1, 2"""
        indexes = "select indexdef from pg_indexes where tablename like 'checkpoint%' order by 1"
        theirs = conn.execute(query).fetchall(), conn.execute(indexes).fetchall()
    async with database.tenant("acme") as ours:
        columns = await (await ours.execute(query)).fetchall()
        defined = await (await ours.execute(indexes)).fetchall()
        versions = await (await ours.execute("select v from checkpoint_migrations order by v")).fetchall()
    assert [tuple(row.values()) for row in columns] == theirs[0]
    # The primary keys begin with the thread, so that indexes on the thread alone would serve nothing.
    assert [tuple(row.values()) for row in defined] == [each for each in theirs[1] if "_thread_id_idx" not in each[0]]
    assert [row["v"] for row in versions] == list(range(len(BasePostgresSaver.MIGRATIONS)))
