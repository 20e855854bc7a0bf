"""The writer that all runs of a process share: what befalls one of them concerns no other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
import pytest
from fix_database import DatabaseUrls
from fix_house import House
from fix_proxy import Proxy

from holdfast.checkpoints.arrays import NULL, text_field
from holdfast.checkpoints.database import Database, StoreTerms
from holdfast.checkpoints.line import Line
from holdfast.checkpoints.records import Records, event_row
from holdfast.checkpoints.rows import NO_ROWS, Rows
from holdfast.checkpoints.writer import CheckpointWriter, Pen, WriterTerms
from holdfast.contracts.errors import ConfigurationError, InvalidRequest, LeaseLost, StoreUnavailable
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.patience import patient

POISON = '"\\ud800"'
"""JSON for Python; not for Postgres."""


def checkpoint(thread: str, number: int, value: str = '"fine"', filling: int = 0) -> Rows:
    texts = (thread, "", f"{number:04}")
    return Rows(
        checkpoints=[
            (*map(text_field, texts), NULL, text_field(f'{{"value": {value}}}'), text_field(f'["{"x" * filling}"]'))
        ]
    )


def write(thread: str, value: bytes, *, replaces: bool) -> Rows:
    texts = (thread, "", "0001", "task")
    one = b"\x00\x00\x00\x04\x00\x00\x00\x01"
    fields = (*map(text_field, texts), one, text_field(""), text_field("c"), text_field("bytes"))
    return Rows(writes=[(*fields, len(value).to_bytes(4, "big") + value)], replacing=replaces)


async def pen(house: House, tenant: str = "acme", database: Database | None = None) -> Pen:
    await house.runs.admit(house.request(tenant=tenant))
    return (database or house.database).writer.pen((await house.claim_one()).owner)


async def take_over(house: House, stale: Pen) -> None:
    await house.shift(
        "update leases set expires_at = clock_timestamp() - interval '1 second' where run_id = %s", stale.owner.run_id
    )
    await house.claim_one("second")


async def stored(house: House, thread: str) -> list[str]:
    found = await house.scalar(
        "select array_agg(checkpoint_id order by checkpoint_id) from checkpoints where thread_id = %s", thread
    )
    return list(found or [])


async def outcomes(*writing: Awaitable[None]) -> list[type[BaseException] | None]:
    done = await asyncio.gather(*writing, return_exceptions=True)
    return [type(each) if isinstance(each, BaseException) else None for each in done]


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():  # noqa: ASYNC110  # somebody else's state
            await asyncio.sleep(0.01)


@asynccontextmanager
async def locking(urls: DatabaseUrls, statement: LiteralString, *values: object) -> AsyncIterator[None]:
    """A transaction of somebody else, who does not end it before the block."""
    async with await psycopg.AsyncConnection.connect(urls.admin) as conn:
        await conn.execute(statement, values)
        yield


async def writers_waiting(house: House) -> int:
    return int(
        await house.scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
            "and query like '-- Write the rows%%'"
        )
    )


async def cut_the_writer_off(house: House) -> None:
    await house.shift(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
        "and pid <> pg_backend_pid() and query like '-- Write the rows%%'"
    )


async def test_half_of_the_runs_is_written_while_the_other_half_goes_on_and_each_run_is_written_whole(
    house: House,
) -> None:
    pens = [await pen(house) for _ in range(4)]
    writer = house.database.writer
    await asyncio.gather(
        *(writer.write(each, checkpoint(f"t{n}", number)) for n, each in enumerate(pens) for number in (1, 2))
    )
    transactions = await house.scalar(
        "select array_agg(threads order by threads) from "
        "(select string_agg(thread_id, ' ' order by thread_id, checkpoint_id) as threads from checkpoints "
        "group by xmin::text) together"
    )
    assert transactions == ["t0 t0 t1 t1", "t2 t2 t3 t3"]


async def test_owner_whose_run_was_taken_over_is_refused_and_its_neighbours_are_not(house: House) -> None:
    stale, acme, bolt = await pen(house), await pen(house), await pen(house, "bolt")
    writer = house.database.writer
    await take_over(house, stale)
    said = await outcomes(
        writer.write(acme, checkpoint("a", 1)),
        writer.write(stale, checkpoint("s", 1)),
        writer.write(bolt, checkpoint("b", 1)),
        writer.write(stale, checkpoint("s", 2)),
    )
    assert said == [None, LeaseLost, None, LeaseLost]
    assert [await stored(house, thread) for thread in "abs"] == [["0001"], ["0001"], []]
    assert await house.scalar("select tenant_id from checkpoints where thread_id = 'b'") == "bolt"
    with pytest.raises(LeaseLost):
        await writer.write(stale, checkpoint("s", 3))


async def test_what_is_handed_in_for_another_tenant_than_its_runs_is_refused_though_the_line_works_for_both(
    house: House,
) -> None:
    acme, bolt = await pen(house), await pen(house, "bolt")
    writer = house.database.writer
    await asyncio.gather(writer.write(acme, checkpoint("a", 1)), writer.write(bolt, checkpoint("b", 1)))
    forged = Pen(replace(bolt.owner, tenant_id=acme.owner.tenant_id))
    event = Records(events=[event_row(EventDraft(kind=EventKind.NODE_COMPLETED), 1)])
    for handed in ((checkpoint("c", 1),), (NO_ROWS, event)):
        said = await outcomes(writer.write(acme, checkpoint("a", 2)), writer.write(forged, *handed))
        assert said == [None, LeaseLost]
        forged.trouble = None
    assert await stored(house, "c") == []
    assert await house.kinds(bolt.owner.run_id, "bolt") == ["run.admitted", "run.claimed"]
    await writer.write(bolt, checkpoint("b", 2))
    assert await stored(house, "b") == ["0001", "0002"]


async def test_checkpoint_on_another_tenants_thread_leaves_what_is_there(house: House) -> None:
    acme, bolt = await pen(house), await pen(house, "bolt")
    writer = house.database.writer
    await writer.write(bolt, checkpoint("b", 1, '"of bolt"'))
    assert await outcomes(writer.write(acme, checkpoint("b", 1, '"of acme"'))) != [None]
    found = await house.row("select tenant_id, checkpoint from checkpoints where thread_id = 'b'")
    assert found == {"tenant_id": "bolt", "checkpoint": {"value": "of bolt"}}


async def test_new_owner_writes_what_the_stale_one_may_not_in_the_same_batch(house: House) -> None:
    stale = await pen(house)
    await house.shift("update leases set expires_at = clock_timestamp() - interval '1 second'")
    writer = house.database.writer
    new = writer.pen((await house.claim_one("second")).owner)
    said = await outcomes(
        writer.write(stale, write("t", b"stale", replaces=False)), writer.write(new, write("t", b"new", replaces=False))
    )
    assert said == [LeaseLost, None]
    assert await house.scalar("select blob from checkpoint_writes where thread_id = 't'") == b"new"


async def test_all_who_write_for_an_owner_share_its_pen(house: House) -> None:
    stale = await pen(house)
    other = house.database.writer.pen(stale.owner)
    await take_over(house, stale)
    assert await outcomes(house.database.writer.write(stale, checkpoint("s", 1))) == [LeaseLost]
    with pytest.raises(LeaseLost):
        other.require()


async def test_run_whose_lease_is_locked_is_written_once_it_is_free_and_nobody_waits_for_it(
    house: House, database_urls: DatabaseUrls
) -> None:
    busy, free = await pen(house), await pen(house)
    writer = house.database.writer
    async with locking(database_urls, "select from leases where run_id = %s for update", busy.owner.run_id):
        slow = asyncio.create_task(writer.write(busy, checkpoint("busy", 1)))
        await writer.write(free, checkpoint("free", 1))
        assert not slow.done()
    await slow
    assert await stored(house, "busy") == ["0001"]


async def test_run_whose_lease_stays_locked_is_given_up_alone(house: House, database_urls: DatabaseUrls) -> None:
    async with Database(database_urls.app, terms=StoreTerms(writer_lock_seconds=0.2)) as database:
        busy, free = await pen(house, database=database), await pen(house, database=database)
        async with locking(database_urls, "select from leases where run_id = %s for update", busy.owner.run_id):
            said = await outcomes(
                database.writer.write(busy, checkpoint("busy", 1)), database.writer.write(free, checkpoint("free", 1))
            )
            assert said == [StoreUnavailable, None]
        with pytest.raises(StoreUnavailable, match="nothing more is written"):
            await database.writer.write(busy, checkpoint("busy", 2))


async def test_row_that_postgres_refuses_stops_its_own_run_at_that_row(house: House) -> None:
    pens = [await pen(house) for _ in range(5)]
    writer = house.database.writer
    said = await outcomes(
        *(
            writer.write(each, checkpoint(f"t{n}", number, POISON if (n, number) == (3, 2) else '"fine"'))
            for number in (1, 2, 3)
            for n, each in enumerate(pens)
        )
    )
    assert [n for n, each in enumerate(said) if each is not None] == [8, 13]
    assert {said[8], said[13]} == {InvalidRequest}
    assert [len(await stored(house, f"t{n}")) for n in range(5)] == [3, 3, 3, 1, 3]


async def test_lost_connection_is_healed_between_flushes(house: House) -> None:
    one = await pen(house)
    for number in range(1, 4):
        await house.database.writer.write(one, checkpoint("t", number))
        await cut_the_writer_off(house)
    assert await stored(house, "t") == ["0001", "0002", "0003"]


async def test_connection_lost_in_the_middle_of_a_flush_has_it_sent_again(
    house: House, database_urls: DatabaseUrls
) -> None:
    pens = [await pen(house), await pen(house)]
    async with locking(database_urls, "lock table checkpoints in exclusive mode"):
        writing = [
            asyncio.create_task(house.database.writer.write(each, checkpoint("t", n))) for n, each in enumerate(pens)
        ]
        await until(lambda: writers_waiting(house))
        await cut_the_writer_off(house)
        await until(lambda: writers_waiting(house))
    await asyncio.gather(*writing)
    assert await stored(house, "t") == ["0000", "0001"]


async def test_batch_that_was_committed_before_the_answer_was_lost_is_written_once(house: House) -> None:
    one, writer = await pen(house), house.database.writer
    both = checkpoint("t", 1), write("t", b"first", replaces=False)
    for _ in range(2):  # what sending again comes to
        assert await outcomes(*(writer.write(one, rows) for rows in both)) == [None, None]
    assert await stored(house, "t") == ["0001"]
    assert await house.scalar("select count(*) from checkpoint_writes where thread_id = 't'") == 1


async def test_database_out_of_reach_for_too_long_ends_what_waits_and_nothing_else(
    house: House, database_urls: DatabaseUrls
) -> None:
    async with Database(database_urls.app, terms=StoreTerms(transaction_seconds=0.5, statement_seconds=0.5,
                                                            lock_seconds=0.5)) as database:  # fmt: skip
        waiting, later = await pen(house, database=database), await pen(house, database=database)
        await database.writer.write(waiting, checkpoint("t", 1))
        role = "holdfast_app"
        await house.shift(f"revoke connect on database {database_name(database_urls)} from public, {role}")
        await cut_the_writer_off(house)
        assert await outcomes(database.writer.write(waiting, checkpoint("t", 2))) == [StoreUnavailable]
        await house.shift(f"grant connect on database {database_name(database_urls)} to public")
        with pytest.raises(StoreUnavailable, match="nothing more is written"):
            await database.writer.write(waiting, checkpoint("t", 3))
        await database.writer.write(later, checkpoint("u", 1))
    assert [await stored(house, thread) for thread in "tu"] == [["0001"], ["0001"]]


def database_name(urls: DatabaseUrls) -> Any:
    return psycopg.conninfo.conninfo_to_dict(urls.app)["dbname"]


async def test_cancelled_waiter_neither_loses_nor_spoils_the_batch(house: House, database_urls: DatabaseUrls) -> None:
    one, other = await pen(house), await pen(house)
    writer = house.database.writer
    async with locking(database_urls, "lock table checkpoints in exclusive mode"):
        writing = [asyncio.create_task(writer.write(each, checkpoint("t", n))) for n, each in enumerate((one, other))]
        await until(lambda: writers_waiting(house))
        late = asyncio.create_task(writer.write(one, checkpoint("t", 2)))
        await asyncio.sleep(0)
        writing[0].cancel()
        late.cancel()
        await asyncio.wait([writing[0], late])
    await writing[1]
    await writer.write(one, checkpoint("t", 3))
    assert await stored(house, "t") == ["0000", "0001", "0002", "0003"]


async def test_write_that_was_there_stays_and_one_that_replaces_it_wins_whatever_the_batch(house: House) -> None:
    one, writer = await pen(house), house.database.writer

    async def kept() -> bytes:
        return bytes(await house.scalar("select blob from checkpoint_writes where thread_id = 't'"))

    for batches in ([(b"a", False), (b"b", False)],), ([(b"a", False)], [(b"b", False)]):
        for batch in batches:
            await asyncio.gather(*(writer.write(one, write("t", blob, replaces=flag)) for blob, flag in batch))
        assert await kept() == b"a"
    for batches in (
        ([(b"c", False), (b"d", True), (b"e", False)],),
        ([(b"f", True), (b"d", True)],),
    ):
        for batch in batches:
            await asyncio.gather(*(writer.write(one, write("t", blob, replaces=flag)) for blob, flag in batch))
        assert await kept() == b"d"


async def test_flush_takes_no_more_than_its_bounds_and_the_queue_no_more_than_its_own(
    house: House, database_urls: DatabaseUrls
) -> None:
    line = Line(lambda: house.database._connect(database_urls.app), patience_seconds=5)
    writer = CheckpointWriter(line, WriterTerms(batch_rows=2, batch_bytes=5_000, queue_bytes=4_000))
    pens = [writer.pen((await pen(house)).owner) for _ in range(8)]

    async def hand_in(n: int) -> None:
        await writer.admit()
        await writer.write(pens[n], checkpoint("t", n, filling=1_500))

    async with locking(database_urls, "lock table checkpoints in exclusive mode"):
        writing = [asyncio.create_task(hand_in(n)) for n in range(8)]
        await until(lambda: writers_waiting(house))
        assert 4_000 <= writer.queued_bytes < 4_000 + 2_000
        writing[7].cancel()
        await asyncio.wait([writing[7]])
    await asyncio.gather(*writing[:7])
    assert await stored(house, "t") == [f"{n:04}" for n in range(7)]
    assert writer.queued_bytes == 0
    await writer.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await writer.write(pens[0], checkpoint("t", 9))


async def test_queue_is_bounded_in_rows_and_lets_in_whoever_waits_when_something_is_taken_back(
    house: House, database_urls: DatabaseUrls
) -> None:
    line = Line(lambda: house.database._connect(database_urls.app), patience_seconds=5)
    writer = CheckpointWriter(line, WriterTerms(queue_rows=2))
    pens = [writer.pen((await pen(house)).owner) for _ in range(3)]
    async with locking(database_urls, "lock table checkpoints in exclusive mode"):
        under_way = asyncio.create_task(writer.write(pens[0], checkpoint("t", 0)))
        await until(lambda: writers_waiting(house))
        second = writer.hand_in(pens[1], checkpoint("t", 1))
        outside = asyncio.create_task(writer.admit())
        await asyncio.sleep(0)
        assert not outside.done()
        assert writer.withdraw(second)
        await outside
    await under_way
    assert await stored(house, "t") == ["0000"]
    await writer.close()


def test_bounds_that_would_let_nothing_in_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        WriterTerms(queue_bytes=0)


@pytest.mark.parametrize("text", ["nul\x00", "\ud800"])
def test_text_that_cannot_be_stored_is_refused_before_it_joins_a_batch(text: str) -> None:
    with pytest.raises(InvalidRequest):
        text_field(text)


PATIENT = StoreTerms(statement_seconds=0.5, lock_seconds=0.5, transaction_seconds=20)


@pytest.mark.parametrize("cut", [True, False], ids=["and reset", "and deaf from then on"])
async def test_flush_whose_answer_never_came_is_sent_again_and_nothing_is_there_twice(
    house: House, proxy: Proxy, cut: bool
) -> None:
    async with Database(proxy.url, terms=PATIENT) as database:
        one, other = await pen(house, database=database), await pen(house, database=database)
        await database.writer.write(one, checkpoint("t", 1))
        proxy.lose_answer(b"lost-thread", cut=cut)
        both = (
            database.writer.write(one, checkpoint("lost-thread", 1)),
            database.writer.write(other, checkpoint("u", 1)),
        )
        assert await outcomes(*both) == [None, None]
        assert proxy.answers_lost == 1
        await database.writer.write(one, checkpoint("t", 2))
    assert [await stored(house, thread) for thread in ("t", "lost-thread", "u")] == [
        ["0001", "0002"],
        ["0001"],
        ["0001"],
    ]


async def test_who_has_no_patience_left_gives_up_alone_and_writes_no_more_while_the_flush_goes_on(
    house: House, database_urls: DatabaseUrls
) -> None:
    hasty, patient_one, writer = await pen(house), await pen(house), house.database.writer
    left = 1.0

    async def hastily() -> None:
        with patient(lambda: left):
            await writer.write(hasty, checkpoint("hasty", 1))

    async with locking(database_urls, "lock table checkpoints in exclusive mode"):
        writing = [asyncio.create_task(hastily()), asyncio.create_task(writer.write(patient_one, checkpoint("p", 1)))]
        await until(lambda: writers_waiting(house))
        left = 0.0
        with pytest.raises(StoreUnavailable, match="lease or deadline"):
            await writing[0]
        assert not writing[1].done()
    await writing[1]
    assert await stored(house, "p") == ["0001"]
    with pytest.raises(StoreUnavailable, match="nothing more is written"):
        await writer.write(hasty, checkpoint("hasty", 2))
