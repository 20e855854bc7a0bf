"""Checkpoints that are encrypted: nothing of them is readable in the database, and nothing else is taken for one."""

import operator
from collections.abc import Mapping
from typing import Annotated, Any, LiteralString

import psycopg
import pytest
from fix_database import DatabaseUrls, encrypting
from fix_house import SERVED, House
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt
from psycopg import sql
from typing_extensions import TypedDict

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.encrypting import Encrypted, encrypt
from holdfast.checkpoints.saver import FencedSaver, saver_for
from holdfast.checkpoints.serialization import declared_types
from holdfast.checkpoints.vault import KEY_BYTES, Encryption, Keyring
from holdfast.contracts.errors import ConfigurationError, Conflict, KeyMissing, SealBroken
from holdfast.runtime.entropy import unguessable

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
in_the_clear = pytest.mark.parametrize("encryption", [None], ids=["in the clear"])


@pytest.fixture
def encryption() -> Encryption | None:
    return encrypting("k1")


class Planted(TypedDict, total=False):
    channel_zebra: str
    count: int
    ratio: float
    raw: bytes
    nested: dict[str, Any]
    messages: Annotated[list[AnyMessage], add_messages]
    trail: Annotated[list[str], operator.add]


PLANTED = {
    "name of a channel": "channel_zebra",
    "text": "text_walrus",
    "number": "8675309424242",
    "fraction": "0.8675309424242",
    "bytes": "bytes_marmot",
    "key of a dict": "key_gibbon",
    "value in a dict": "value_ocelot",
    "message": "message_badger",
    "item of a list": "item_ferret",
    "question of an interrupt": "question_lemur",
    "answer of a resume": "answer_otter",
    "text of an error": "error_puffin",
    "argument of a Send": "send_quokka",
    "key in configurable": "configurable_raven",
    "value in configurable": "configurable_stoat",
    "key of metadata": "metadata_tapir",
    "value of metadata": "metadata_urial",
    "id of a run in metadata": "run_viper",
    "input": "input_weasel",
}


def plant(state: Planted) -> Any:
    values = {
        "channel_zebra": "text_walrus", "count": 8675309424242, "ratio": 0.8675309424242, "raw": b"bytes_marmot",
        "nested": {"key_gibbon": "value_ocelot"}, "messages": [AIMessage("message_badger")], "trail": ["item_ferret"],
    }  # fmt: skip
    return Command(update=values, goto=[Send("ask", {"trail": ["send_quokka"]}), Send("fail", {})])


def ask(state: Planted) -> Planted:
    return {"trail": [str(interrupt("question_lemur"))]}


def fail(state: Planted) -> Planted:
    if not state.get("trail"):
        raise ValueError("error_puffin")
    return {}


def planter(saver: Any) -> Any:
    builder = StateGraph(Planted)
    builder.add_node("plant", plant, destinations=("ask", "fail"))
    builder.add_node("ask", ask)
    builder.add_node("fail", fail)
    builder.add_edge(START, "plant")
    return builder.compile(checkpointer=saver)


def secretive(thread: str) -> RunnableConfig:
    return {
        "configurable": {"thread_id": thread, "configurable_raven": "configurable_stoat"},
        "metadata": {"metadata_tapir": "metadata_urial", "run_id": "run_viper"},
    }


class Talk(TypedDict, total=False):
    trail: Annotated[list[str], operator.add]
    mood: str


def talker(saver: Any) -> Any:
    """Two supersteps and a question between; `mood` is set once and never changes."""
    builder = StateGraph(Talk)
    builder.add_node("first", lambda state: {"trail": ["first"], "mood": "calm"})
    builder.add_node("second", lambda state: {"trail": [f"second:{interrupt('go on?')}"]})
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    builder.add_edge("second", END)
    graph = builder.compile()
    return graph.copy(update={"checkpointer": saver.with_allowlist(declared_types(graph))})


def on(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}}


async def begin(saver: Any, thread: str = "t1") -> Any:
    return await talker(saver).ainvoke({"trail": ["in"]}, on(thread), durability="sync")


async def go_on(saver: Any, thread: str = "t1") -> Any:
    graph = talker(saver)
    asked = (await graph.aget_state(on(thread))).interrupts[0]
    return await graph.ainvoke(Command(resume={asked.id: "yes"}), on(thread), durability="sync")


DONE = {"trail": ["in", "first", "second:yes"], "mood": "calm"}


async def holding(house: House, tenant: str = "acme", database: Database | None = None) -> FencedSaver:
    """The saver of a run of its own, which is claimed."""
    await house.runs.admit(house.request(tenant=tenant))
    return saver_for(database or house.database, (await house.claim_one()).owner)


def dumped(urls: DatabaseUrls) -> bytes:
    """Every byte of every column of the three tables, as the server stores and as it shows them."""
    found = bytearray()
    with psycopg.connect(urls.admin) as conn, conn.cursor() as cursor:
        for table in TABLES:
            for form in ("text", "binary"):
                query = sql.SQL("copy {} to stdout (format {})").format(sql.Identifier(table), sql.SQL(form))
                with cursor.copy(query) as rows:
                    for data in rows:
                        found += data
    return bytes(found)


def readable(dump: bytes) -> list[str]:
    number = (8675309424242).to_bytes(8, "big")
    forms = {what: [secret.encode()] for what, secret in PLANTED.items()}
    forms["number"].append(number)
    return sorted(what for what, each in forms.items() if any(form in dump for form in each))


async def work_with_secrets(saver: FencedSaver) -> None:
    graph = planter(saver)
    with pytest.raises(ValueError, match="error_puffin"):
        await graph.ainvoke({"trail": ["input_weasel"]}, secretive("t1"), durability="sync")
    state = await graph.aget_state(secretive("t1"))
    asked = next(task.interrupts[0] for task in state.tasks if task.interrupts)
    with pytest.raises(ValueError, match="error_puffin"):
        await graph.ainvoke(Command(resume={asked.id: "answer_otter"}), secretive("t1"), durability="sync")
    state = await graph.aget_state(secretive("t1"))
    assert state.values["channel_zebra"] == "text_walrus"
    assert state.values["nested"] == {"key_gibbon": "value_ocelot"}


async def test_nothing_that_a_graph_stores_is_readable_in_the_database(
    house: House, database_urls: DatabaseUrls
) -> None:
    await work_with_secrets(await holding(house))
    dump = dumped(database_urls)
    assert len(dump) > 10_000
    assert readable(dump) == []


@in_the_clear
async def test_without_encryption_the_same_search_finds_all_of_it(house: House, database_urls: DatabaseUrls) -> None:
    await work_with_secrets(await holding(house))
    assert readable(dumped(database_urls)) == sorted(PLANTED)


async def test_run_is_interrupted_and_resumed_and_its_history_forks(house: House) -> None:
    await begin(await holding(house))
    saver = await holding(house)
    assert await go_on(saver) == DONE
    graph = talker(saver)
    history = [state async for state in graph.aget_state_history(on("t1"))]
    assert [state.metadata["step"] for state in history] == [2, 1, 0, -1]
    fork = await graph.aupdate_state(history[1].config, {"trail": ["forked"]})
    assert (await graph.aget_state(fork)).values["trail"] == ["in", "first", "forked"]


SPOILT: Mapping[str, LiteralString] = {
    "a checkpoint's body is altered": """
        update checkpoints set checkpoint = jsonb_set(checkpoint, '{sealed}', to_jsonb(
            overlay(checkpoint ->> 'sealed' placing case when substr(checkpoint ->> 'sealed', 40, 1) = 'A' then 'B'
                                                         else 'A' end from 40)))""",
    "a checkpoint's body is no base64": """
        update checkpoints set checkpoint = jsonb_set(checkpoint, '{sealed}', '"?"')""",
    "a checkpoint's body is emptied": """
        update checkpoints set checkpoint = jsonb_set(checkpoint, '{sealed}', '""')""",
    "a checkpoint is in the clear": "update checkpoints set checkpoint = checkpoint - 'sealed'",
    "a channel's version is another": """
        update checkpoints set checkpoint = jsonb_set(checkpoint, '{channel_versions}', (
            select jsonb_object_agg(key, '\"1\"'::jsonb) from jsonb_each(checkpoint -> 'channel_versions')))""",
    "metadata are added": "update checkpoints set metadata = metadata || '{\"source\": \"fork\"}'",
    "a checkpoint has another id": "update checkpoints set checkpoint_id = checkpoint_id || 'f'",
    "a checkpoint comes from another thread": "update checkpoints set thread_id = 't2'",
    "a checkpoint comes from another namespace": "update checkpoints set checkpoint_ns = 'sub'",
    "a checkpoint comes from another tenant": "update checkpoints set tenant_id = 'bolt'",
    "a blob is altered": "update checkpoint_blobs set blob = set_byte(blob, 20, get_byte(blob, 20) # 1)",
    "a blob is cut": "update checkpoint_blobs set blob = substr(blob, 1, 10)",
    "a blob is emptied": "update checkpoint_blobs set blob = ''",
    "a blob is in the clear": "update checkpoint_blobs set type = 'msgpack', blob = '\\x91a178'",
    "a blob is gone": "delete from checkpoint_blobs",
    "a blob has another version": "update checkpoint_blobs set version = version || '1'",
    "blobs are exchanged": """
        update checkpoint_blobs b set blob = other.blob from checkpoint_blobs other
         where b.channel = other.channel and b.version <> other.version""",
    "a write is altered": "update checkpoint_writes set blob = set_byte(blob, 20, get_byte(blob, 20) # 1)",
    "a write is in the clear": "update checkpoint_writes set type = 'msgpack', blob = '\\xa178'",
    "a write is for another channel": "update checkpoint_writes set channel = 'trail'",
    "a write has another number": "update checkpoint_writes set idx = idx - 100",
    "a write is of another task": "update checkpoint_writes set task_id = task_id || '0'",
    "a write has another path": "update checkpoint_writes set task_path = '~other'",
    "a write comes from another checkpoint": """
        update checkpoint_writes set checkpoint_id = (select max(checkpoint_id) from checkpoints)
         where checkpoint_id = (select min(checkpoint_id) from checkpoints)""",
    "a write is added": """
        insert into checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob, tenant_id)
        select thread_id, checkpoint_id, 'forged', 0, 'trail', 'msgpack', '\\x91a178', tenant_id from checkpoints""",
}  # fmt: skip


async def everything(saver: FencedSaver, place: RunnableConfig) -> list[Any]:
    return [await saver.aget_tuple(place), *[each async for each in saver.alist(place)]]


@pytest.mark.parametrize("change", SPOILT)
async def test_what_was_not_sealed_where_it_stands_is_refused_and_nothing_is_lost(house: House, change: str) -> None:
    saver = await holding(house)
    await begin(saver)
    before = [each async for each in saver.alist(None)]
    await house.shift("create table kept_c as table checkpoints")
    await house.shift("create table kept_b as table checkpoint_blobs")
    await house.shift("create table kept_w as table checkpoint_writes")
    await house.shift(SPOILT[change])
    tenant, thread, namespace = "acme", "t1", ""
    if "another tenant" in change:
        tenant = "bolt"
    if "another thread" in change:
        thread = "t2"
    if "another namespace" in change:
        namespace = "sub"
    reader = saver if tenant == "acme" else await holding(house, tenant)
    place: RunnableConfig = {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}}
    with pytest.raises(SealBroken) as refused:
        await everything(reader, place)
    assert refused.value.facts["place"][0] in TABLES
    for table, kept in zip(TABLES, ("kept_c", "kept_b", "kept_w"), strict=True):
        await house.shift(f"delete from {table}")  # type: ignore[arg-type]
        await house.shift(f"insert into {table} table {kept}")  # type: ignore[arg-type]
    assert [each async for each in saver.alist(None)] == before
    assert await go_on(await holding(house)) == DONE


async def test_rows_of_one_thread_are_none_of_another_even_where_all_of_them_are_moved(house: House) -> None:
    saver = await holding(house)
    await begin(saver)
    for table in TABLES:
        await house.shift(f"update {table} set thread_id = 't2'")  # type: ignore[arg-type]
    with pytest.raises(SealBroken, match="t2"):
        await saver.aget_tuple(on("t2"))


async def test_thread_goes_on_under_a_new_key_and_the_old_one_opens_what_was_before(
    house: House, database_urls: DatabaseUrls
) -> None:
    await begin(await holding(house))
    async with Database(database_urls.app, encryption=encrypting("k1", "k2")) as rotated:
        saver = await holding(house, database=rotated)
        assert await go_on(saver) == DONE  # `mood` has not changed: its blob is still of the first key
        assert len([each async for each in saver.alist(on("t1"))]) == 4
        with pytest.raises(KeyMissing, match="'k2', and this process has 'k1'"):
            await (await holding(house)).aget_tuple(on("t1"))


async def test_run_under_a_key_that_is_not_here_is_claimed_without_what_it_was_given_and_the_others_with_it(
    house: House, database_urls: DatabaseUrls
) -> None:
    mine = (await house.runs.admit(house.request())).run_id
    async with Database(database_urls.app, encryption=encrypting("k1", "k2")) as rotated:
        other = (await House(rotated, database_urls.admin).runs.admit(house.request())).run_id
    claims = await house.leases.claim("first", tenants=None, graphs=SERVED, slots=2, ttl_seconds=30)
    assert [(claim.run_id, claim.run.input, type(claim.run.unreadable)) for claim in claims] == [
        (mine, b"{}", type(None)),
        (other, b"", KeyMissing),
    ]
    assert [claim.owner.epoch for claim in claims] == [1, 1]


async def test_old_key_is_needed_until_all_is_sealed_with_the_new_one(
    house: House, database_urls: DatabaseUrls
) -> None:
    saver = await holding(house)
    await begin(saver)
    with pytest.raises(ConfigurationError, match="rows are sealed with the key 'k1', and this process has only k2"):
        await Database(database_urls.app, encryption=encrypting("k2")).open()
    await house.end(await claim_of(house, saver))
    assert await encrypt(database_urls.app, encrypting("k1", "k2")) == Encrypted(threads=1, rows=1, retired=["k1"])
    assert await encrypt(database_urls.app, encrypting("k1", "k2")) == Encrypted(threads=0, rows=0, retired=[])
    async with Database(database_urls.app, encryption=encrypting("k2")) as rotated:
        assert await go_on(await holding(house, database=rotated)) == DONE


async def test_key_of_what_is_held_is_changed_too_and_nothing_is_deleted(
    house: House, database_urls: DatabaseUrls
) -> None:
    await begin(await holding(house))
    await house.shift("update tenants set legal_hold = true")
    assert (await encrypt(database_urls.app, encrypting("k1", "k2"))).threads == 1
    async with Database(database_urls.app, encryption=encrypting("k2")) as rotated:
        assert await go_on(await holding(house, database=rotated)) == DONE


async def claim_of(house: House, saver: FencedSaver) -> Any:
    """Something to end the saver's run by."""
    run = await house.runs.get(saver._owner.tenant_id, saver._owner.run_id)

    class Claim:
        owner = saver._owner
        claimed = run

    return Claim


async def test_other_key_of_the_same_id_is_refused_at_start(house: House, database_urls: DatabaseUrls) -> None:
    other = Encryption(Keyring({"k1": b"x" * KEY_BYTES}, seals_with="k1"), unguessable)
    with pytest.raises(ConfigurationError, match="'k1' is not the one that rows are sealed with"):
        await Database(database_urls.app, encryption=other).open()


async def test_process_without_keys_is_refused_at_start(house: House, database_urls: DatabaseUrls) -> None:
    with pytest.raises(ConfigurationError, match="encrypted, with the key 'k1', and this process has no keys"):
        await Database(database_urls.app).open()


@in_the_clear
async def test_database_in_the_clear_is_refused_until_it_is_encrypted_and_then_goes_on(
    house: House, database_urls: DatabaseUrls
) -> None:
    savers = {tenant: await holding(house, tenant) for tenant in ("acme", "bolt")}
    for tenant, saver in savers.items():
        await begin(saver, tenant)
        await work_with_secrets(saver) if tenant == "acme" else None
    before = [each async for each in savers["acme"].alist(None)]
    with pytest.raises(ConfigurationError, match="what the database holds is in the clear; stop the workers"):
        await Database(database_urls.app, encryption=encrypting("k1")).open()
    with pytest.raises(Conflict, match="workers hold runs"):
        await encrypt(database_urls.app, encrypting("k1"))
    for saver in savers.values():
        await house.end(await claim_of(house, saver))
    assert await encrypt(database_urls.app, encrypting("k1")) == Encrypted(threads=3, rows=2, retired=[])
    assert readable(dumped(database_urls)) == []
    async with Database(database_urls.app, encryption=encrypting("k1")) as encrypted:
        saver = await holding(house, database=encrypted)
        assert [each async for each in saver.alist(None)] == before
        assert await go_on(saver, "acme") == DONE
        assert await go_on(await holding(house, "bolt", encrypted), "bolt") == DONE
    with pytest.raises(KeyMissing, match="encrypted since this process has started"):
        await (await holding(house)).aget_tuple(on("acme"))


@in_the_clear
async def test_encrypting_that_was_cut_short_goes_on_and_nobody_starts_meanwhile(
    house: House, database_urls: DatabaseUrls
) -> None:
    saver = await holding(house)
    for thread in ("t1", "t2", "t3"):
        await begin(saver, thread)
    await house.end(await claim_of(house, saver))
    await house.shift("create table kept as table checkpoints")
    await house.shift("update checkpoints set checkpoint = checkpoint - 'channel_versions' where thread_id = 't2'")
    with pytest.raises(KeyError):
        await encrypt(database_urls.app, encrypting("k1"))
    with pytest.raises(ConfigurationError, match="was begun and is not finished; run `holdfast db encrypt` again"):
        await Database(database_urls.app, encryption=encrypting("k1")).open()
    await house.shift("""
        update checkpoints c set checkpoint = kept.checkpoint from kept
         where c.thread_id = 't2' and kept.thread_id = 't2' and c.checkpoint_id = kept.checkpoint_id""")
    assert await encrypt(database_urls.app, encrypting("k1")) == Encrypted(threads=2, rows=0, retired=[])
    async with Database(database_urls.app, encryption=encrypting("k1")) as encrypted:
        for thread in ("t1", "t2", "t3"):
            assert await go_on(await holding(house, database=encrypted), thread) == DONE


async def test_clear_row_is_never_sealed_by_the_way(house: House, database_urls: DatabaseUrls) -> None:
    saver = await holding(house)
    await begin(saver)
    await house.shift(SPOILT["a write is added"])
    with pytest.raises(SealBroken, match="not encrypted"):
        await saver.acopy_thread("t1", "t2")
    with pytest.raises(SealBroken, match="not encrypted"):
        await encrypt(database_urls.app, encrypting("k1"))
    assert await encrypt(database_urls.app, encrypting("k1"), clear_too=True) == Encrypted(
        threads=1, rows=0, retired=[]
    )


async def test_copied_thread_goes_on_in_its_new_place(house: House) -> None:
    saver = await holding(house)
    await begin(saver)
    await saver.acopy_thread("t1", "t2")
    assert await go_on(saver, "t2") == DONE
    assert await go_on(saver, "t1") == DONE


async def test_checkpoints_are_found_by_their_metadata_though_the_database_cannot_read_them(house: House) -> None:
    saver = await holding(house)
    await begin(saver)
    inputs = [each async for each in saver.alist(on("t1"), filter={"source": "input"})]
    assert [each.metadata["step"] for each in inputs] == [-1]
    assert [each.metadata["step"] async for each in saver.alist(on("t1"), filter={"source": "loop"}, limit=1)] == [1]
    assert [each async for each in saver.alist(on("t1"), filter={"source": "nothing"})] == []


def noting(notes: list[str], writes: Any) -> list[str]:
    return [*notes, *(note for write in writes for note in write)]


class Noted(TypedDict, total=False):
    notes: Annotated[list[str], DeltaChannel(noting, snapshot_frequency=3)]


def noter(saver: Any) -> Any:
    builder = StateGraph(Noted)
    builder.add_node("one", lambda state: {"notes": [f"one of {len(state['notes'])}"]})
    builder.add_node("two", lambda state: {"notes": [f"two of {len(state['notes'])}"]})
    builder.add_edge(START, "one")
    builder.add_edge(START, "two")
    return builder.compile(checkpointer=saver)


async def test_delta_channel_is_rebuilt_across_snapshots_copies_and_keys(
    house: House, database_urls: DatabaseUrls
) -> None:
    saver = await holding(house)
    for turn in range(5):
        result = await noter(saver).ainvoke({"notes": [f"turn {turn}"]}, on("t1"), durability="sync")
    assert len(result["notes"]) == 15
    await saver.acopy_thread("t1", "t2")
    async with Database(database_urls.app, encryption=encrypting("k1", "k2")) as rotated:
        for each in (saver, await holding(house, database=rotated)):
            for thread in ("t1", "t2"):
                assert (await noter(each).aget_state(on(thread))).values["notes"] == result["notes"]
    with pytest.raises(NotImplementedError, match="DeltaChannel"):
        await saver.aprune(["t1"])


class WasText(TypedDict, total=False):
    notes: str


class IsDelta(TypedDict, total=False):
    notes: Annotated[str, DeltaChannel(lambda text, writes: "".join([text or "", *writes]))]


def one_node(schema: Any, note: str, saver: Any) -> Any:
    builder = StateGraph(schema)
    builder.add_node("one", lambda state: {"notes": note})
    builder.add_edge(START, "one")
    return builder.compile(checkpointer=saver)


async def test_delta_channel_grows_from_the_plain_value_that_stood_there_before(house: House) -> None:
    saver = await holding(house)
    await one_node(WasText, "before,", saver).ainvoke({}, on("t1"), durability="sync")
    graph = one_node(IsDelta, "after", saver)
    await graph.ainvoke({}, on("t1"), durability="sync")
    assert (await graph.aget_state(on("t1"))).values["notes"] == "before,after"
