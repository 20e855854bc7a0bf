"""LangGraph's checkpoints through our saver: kept apart by tenant, read strictly, and as useful as ever."""

import asyncio
import operator
from dataclasses import dataclass
from typing import Annotated, Any

import psycopg
import pytest
from fix_database import DatabaseUrls
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from holdfast.checkpoints.database import Database, PoolSizes
from holdfast.checkpoints.saver import saver_for
from holdfast.checkpoints.serialization import declared_types
from holdfast.contracts.errors import NotFound
from holdfast.contracts.ids import RunId, TenantId, ThreadId
from holdfast.contracts.runs import Owner


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


def owner(tenant: str) -> Owner:
    return Owner(
        tenant_id=TenantId(tenant), run_id=RunId("r"), thread_id=ThreadId("t"), epoch=1, attempt=1, worker_id="w"
    )


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


def on(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


async def test_run_is_interrupted_and_resumed_by_another_saver_of_its_tenant(database: Database) -> None:
    await compiled(saver_for(database, owner("acme"))).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    graph = compiled(saver_for(database, owner("acme")))
    asked = (await graph.aget_state(on("t1"))).interrupts[0]
    result = await graph.ainvoke(Command(resume={asked.id: "yes"}), on("t1"), durability="sync")
    assert result["trail"] == ["in", "first", "second:yes"]


async def test_other_tenant_sees_none_of_a_threads_checkpoints(database: Database) -> None:
    await compiled(saver_for(database, owner("acme"))).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    stranger = saver_for(database, owner("bolt"))
    assert await stranger.aget_tuple(on("t1")) is None  # type: ignore[arg-type]
    assert [each async for each in stranger.alist(None)] == []
    await stranger.adelete_thread("t1")
    assert await saver_for(database, owner("acme")).aget_tuple(on("t1")) is not None  # type: ignore[arg-type]


async def test_other_tenant_cannot_write_to_a_thread(database: Database) -> None:
    await compiled(saver_for(database, owner("acme"))).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    mine = await saver_for(database, owner("acme")).aget_tuple(on("t1"))  # type: ignore[arg-type]
    assert mine is not None
    config = on("t1")
    config["configurable"]["checkpoint_ns"] = ""
    with pytest.raises(NotFound, match="another tenant"):
        await saver_for(database, owner("bolt")).aput(config, mine.checkpoint, mine.metadata, {})  # type: ignore[arg-type]


async def test_history_is_listed_newest_first_and_an_old_state_forks(database: Database) -> None:
    graph = compiled(saver_for(database, owner("acme")))
    await graph.ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    history = [state async for state in graph.aget_state_history(on("t1"))]
    assert [state.metadata["step"] for state in history] == [1, 0, -1]
    fork = await graph.aupdate_state(history[1].config, {"trail": ["forked"]})
    assert (await graph.aget_state(fork)).values["trail"] == ["in", "forked"]


async def test_declared_types_come_back_as_they_were_and_others_as_plain_data(database: Database) -> None:
    graph = compiled(saver_for(database, owner("acme")))
    await graph.ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
    values = (await graph.aget_state(on("t1"))).values
    assert values["order"] == Order(number="A-1")
    assert isinstance(values["messages"][0], AIMessage)
    assert values["hidden"] == {"weight": 3}


async def test_listing_in_a_slow_readers_hands_holds_no_connection(database_urls: DatabaseUrls) -> None:
    async with Database(database_urls.app, PoolSizes(app=1, engine=1)) as database:
        saver = saver_for(database, owner("acme"))
        await compiled(saver).ainvoke({"trail": ["in"]}, on("t1"), durability="sync")
        async for each in saver.alist(on("t1")):  # type: ignore[arg-type]
            assert await saver.aget_tuple(each.config) is not None


async def test_many_runs_share_the_pool(database: Database) -> None:
    graphs = [compiled(saver_for(database, owner(f"tenant-{n % 3}"))) for n in range(12)]
    results = await asyncio.gather(
        *(graph.ainvoke({"trail": ["in"]}, on(f"t{n}"), durability="sync") for n, graph in enumerate(graphs))
    )
    assert all(result["trail"] == ["in", "first"] for result in results)


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
    assert [tuple(row.values()) for row in defined] == theirs[1]
    assert [row["v"] for row in versions] == list(range(len(BasePostgresSaver.MIGRATIONS)))
