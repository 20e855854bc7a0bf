"""Contents that are pruned in Postgres: what races with it, what the database refuses, and what keys are to it."""

import asyncio
from typing import Any, LiteralString

import psycopg
import pytest
from fix_database import DatabaseUrls, encrypting
from fix_house import DANA, House
from scenes import INTENDED, RETURNED, intent, outcome

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.encrypting import Encrypted, encrypt
from holdfast.checkpoints.journal import PostgresJournal
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.retention import PostgresRetention, _note
from holdfast.checkpoints.store import PostgresStore
from holdfast.checkpoints.vault import Encryption
from holdfast.contracts.errors import ContentsPruned, PolicyDenied
from holdfast.contracts.ids import TenantId
from holdfast.contracts.runs import Resumed, RunClaim, RunStatus
from holdfast.contracts.tenancy import RetentionTerms, Tenant
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.invariants import assert_invariants

ACME = TenantId("acme")
QUERIES = load_queries("holdfast.checkpoints.retention", "retention.sql")
REFUSED = PolicyDenied("no refund for weasel", rule="weasel")
TABLES = ("runs", "calls", "approvals")
WORDS = (
    *("input weasel", "context heron", "output gannet", "for weasel"),
    *("request badger", "response magpie", "args stoat"),
)
WAITING: LiteralString = (
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
)
in_the_clear = pytest.mark.parametrize("encryption", [None], ids=["in the clear"])
both = pytest.mark.parametrize("encryption", [None, encrypting("k1")], ids=["in the clear", "encrypted"])


@pytest.fixture
def retention(database: Database) -> PostgresRetention:
    return PostgresRetention(database)


async def terms(house: House, days: int | None = 0) -> None:
    await house.tenants.put(Tenant(tenant_id=ACME, retention=RetentionTerms(contents_days=days)))


async def ended(house: House, status: RunStatus = RunStatus.FAILED, *, thread: str = "t") -> RunClaim:
    """A run that has said something everywhere, and has ended."""
    await house.runs.admit(
        house.request(thread_key=thread, input=b"input weasel", context={"setting": "context heron"})
    )
    claim = await house.claim_one()
    journal = PostgresJournal(house.database)
    await journal.open(claim.owner, call := intent(claim.owner, args={"said": "request badger"}), event=INTENDED)
    await journal.close(claim.owner, outcome(call.call_id, response={"said": "response magpie"}), event=RETURNED)
    question: dict[str, Any] = {"args": {"order": "args stoat"}, "payload": None, "identity_key": call.identity.key}
    asked = await house.ask(claim, interrupt_id=f"of {claim.run_id}", **question)
    await house.decide(asked)
    cause = REFUSED.record(run_id=claim.run_id, step_name="refund") if status is RunStatus.FAILED else None
    await house.end(claim, status=status, output={"reply": "output gannet"}, cause=cause)
    return claim


def going_on_for(house: House, claim: RunClaim) -> Any:
    origin = Resumed(run_id=claim.run_id, worked_seconds=0.0, by="dana")
    return house.request(thread_key=claim.run.thread_key, origin=origin)


def said(urls: DatabaseUrls) -> list[str]:
    """What anyone who reads the tables can read there."""
    with psycopg.connect(urls.admin) as conn:
        rows = [str(row) for table in TABLES for row in conn.execute(f"select * from {table}").fetchall()]  # type: ignore[arg-type]
    return [word for word in WORDS if any(word in row for row in rows)]


async def somebody_waits_for_a_lock(house: House) -> None:
    async with asyncio.timeout(10):
        while not await house.scalar(WAITING):  # noqa: ASYNC110  # Postgres tells nobody
            await asyncio.sleep(0.01)


@in_the_clear
async def test_no_word_is_left_in_the_tables(
    house: House, retention: PostgresRetention, database_urls: DatabaseUrls
) -> None:
    await ended(house)
    assert said(database_urls) == list(WORDS)
    await terms(house)
    await retention.prune(ACME)
    assert said(database_urls) == []
    await assert_invariants(house.database)


class TestRaces:
    async def test_hold_waits_for_the_prune_that_is_under_way(self, house: House, retention: PostgresRetention) -> None:
        claim = await ended(house)
        async with house.database.tenant(ACME) as pruning:
            wanted = {"tenant_id": ACME, "run_id": claim.run_id}
            assert await (await pruning.execute(QUERIES["lock_run_with_contents"], wanted)).fetchone() is not None
            holding = asyncio.create_task(retention.hold(DANA, ACME, claim.run_id, reason="a claim"))
            await somebody_waits_for_a_lock(house)
        assert (await holding).legal_hold is not None

    async def test_run_that_somebody_is_about_to_hold_is_passed_by(
        self, house: House, retention: PostgresRetention
    ) -> None:
        busy, free = await ended(house), await ended(house, thread="another")
        await terms(house)
        async with house.database.tenant(ACME) as somebody:
            await somebody.execute("select from runs where run_id = %s for no key update", [busy.run_id])
            assert [one.run_id for one in await retention.prune(ACME)] == [free.run_id]
        assert [one.run_id for one in await retention.prune(ACME)] == [busy.run_id]

    @pytest.mark.parametrize("what", ["goes on for it", "holds it", "holds the tenant", "lengthens the term"])
    async def test_run_is_looked_at_again_once_it_is_locked(
        self, house: House, retention: PostgresRetention, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        claim = await ended(house)
        await terms(house)
        prune_run = PostgresRetention._prune_run

        async def late(self: PostgresRetention, *run: Any) -> Any:
            """Somebody is quicker, after the run was found due and before it is locked."""
            match what:
                case "goes on for it":
                    await house.runs.admit(going_on_for(house, claim))
                case "holds it":
                    await retention.hold(DANA, ACME, claim.run_id, reason="a claim")
                case "holds the tenant":
                    await house.tenants.put(
                        Tenant(tenant_id=ACME, retention=RetentionTerms(contents_days=0), legal_hold=True)
                    )
                case "lengthens the term":
                    await terms(house, 30)
            return await prune_run(self, *run)

        monkeypatch.setattr(PostgresRetention, "_prune_run", late)
        assert list(await retention.prune(ACME)) == []
        assert (await house.runs.get(ACME, claim.run_id)).input == b"input weasel"

    async def test_run_that_goes_on_for_one_that_is_being_pruned_waits_and_is_refused(
        self, house: House, retention: PostgresRetention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim = await ended(house)
        await terms(house)
        resuming: list[asyncio.Task[Any]] = []

        async def meanwhile(conn: Any, *facts: Any, **more: Any) -> None:
            resuming.append(asyncio.create_task(house.runs.admit(going_on_for(house, claim))))
            await somebody_waits_for_a_lock(house)
            await _note(conn, *facts, **more)

        monkeypatch.setattr("holdfast.checkpoints.retention._note", meanwhile)
        assert [one.contents for one in await retention.prune(ACME)] == [3]
        with pytest.raises(ContentsPruned, match="nothing can go on from it"):
            await resuming[0]
        await assert_invariants(house.database)

    async def test_two_that_prune_at_once_share_no_work(self, house: House, retention: PostgresRetention) -> None:
        runs = [(await ended(house, thread=f"t{number}")).run_id for number in range(4)]
        await terms(house)
        rounds = await asyncio.gather(*(retention.prune(ACME) for _ in range(5)))
        pruned = [one.run_id for each in rounds for one in each]
        while more := await retention.prune(ACME):
            pruned += [one.run_id for one in more]
        assert sorted(pruned) == sorted(runs)
        await assert_invariants(house.database)

    async def test_only_the_one_that_prunes_for_the_tenant_prunes(
        self, house: House, retention: PostgresRetention
    ) -> None:
        await ended(house)
        await terms(house)
        async with house.database.tenant(ACME) as conn:
            await conn.execute("select pg_advisory_xact_lock(hashtextextended('holdfast prune acme', 0))")
            assert await retention.prune(ACME) == []


@in_the_clear
@pytest.mark.parametrize(
    "statement",
    [
        "update runs set input = null",
        "update runs set input = '', contents_pruned_at = now()",
        "update runs set input = null, contents_pruned_at = now(), context = null",
        "update calls set request = null",
        "update calls set request = null, contents_pruned_at = now()",
        """update calls set request = null, response = null, error_message = null, error_facts = null, used = null,
                  status = 'open', contents_pruned_at = now()""",
        "update approvals set payload = null",
        "update approvals set payload = null, args = null, contents_pruned_at = now()",
    ],
)
async def test_row_has_all_its_contents_or_the_time_when_they_went(house: House, statement: LiteralString) -> None:
    await ended(house)
    with pytest.raises(psycopg.errors.CheckViolation, match="until_they_are_pruned"):
        await house.shift(statement)


class TestKeys:
    @pytest.fixture
    def encryption(self) -> Encryption | None:
        return encrypting("k1")

    async def test_what_is_left_of_a_cause_is_sealed_and_everything_else_reads_as_gone(
        self, house: House, retention: PostgresRetention
    ) -> None:
        claim = await ended(house)
        await terms(house)
        await retention.prune(ACME)
        stored = await house.row("select input, context, output, cause from runs")
        assert (stored["input"], stored["context"], stored["output"]) == (None, None, None)
        assert stored["cause"].startswith("sealed:k1:")
        run = await house.runs.get(ACME, claim.run_id)
        assert (run.input, run.output, run.cause and run.cause.metadata) == (b"", None, {"class": "PolicyDenied"})
        [approval] = await house.approvals.find(ACME, pending_only=False)
        assert (approval.payload, approval.contents_pruned_at) == (None, run.contents_pruned_at)

    async def test_payload_that_somebody_else_put_there_is_not_taken_for_pruned(self, house: House) -> None:
        await ended(house)
        await house.shift("alter table approvals drop constraint an_approval_has_its_contents_until_they_are_pruned")
        await house.shift("""update approvals set payload = '"forged"', contents_pruned_at = now()""")
        with pytest.raises(Exception, match="not encrypted"):
            await house.approvals.find(ACME, pending_only=False)

    async def test_key_is_changed_and_retired_though_some_contents_are_gone(
        self, house: House, retention: PostgresRetention, database_urls: DatabaseUrls
    ) -> None:
        pruned = await ended(house)
        await terms(house)
        await retention.prune(ACME)
        await terms(house, None)
        kept = await ended(house, thread="another")
        before = await house.row("select * from calls where run_id = %s", pruned.run_id)
        done = await encrypt(database_urls.app, encrypting("k1", "k2"))
        # Of the pruned run, which leaves a cause, one row; of the other all three.
        assert done == Encrypted(threads=0, rows=1 + 3, retired=["k1"])
        assert await house.row("select * from calls where run_id = %s", pruned.run_id) == before
        async with Database(database_urls.app, encryption=encrypting("k2")) as rotated:
            store = PostgresStore(rotated, SystemIds())
            run = await store.runs.get(ACME, pruned.run_id)
            assert run.cause is not None
            assert run.cause.step_name == "refund"
            assert (await store.runs.get(ACME, kept.run_id)).input == b"input weasel"
            assert len(await store.approvals.find(ACME, pending_only=False)) == 2
            await assert_invariants(rotated)

    async def test_cause_that_does_not_open_stays_as_evidence_and_holds_nobody_up(
        self, house: House, retention: PostgresRetention
    ) -> None:
        spoilt, other = await ended(house), await ended(house, thread="another")
        await house.shift("""update runs set cause = '"spoilt"' where run_id = %s""", spoilt.run_id)
        await terms(house)
        assert [one.run_id for one in await retention.prune(ACME)] == [other.run_id]
        assert await house.scalar("select contents_pruned_at from runs where run_id = %s", spoilt.run_id) is None

    @in_the_clear
    async def test_database_whose_contents_are_gone_in_part_is_encrypted_for_the_first_time(
        self, house: House, retention: PostgresRetention, database_urls: DatabaseUrls
    ) -> None:
        pruned = await ended(house)
        await terms(house)
        await retention.prune(ACME)
        assert await encrypt(database_urls.app, encrypting("k1")) == Encrypted(threads=0, rows=1, retired=[])
        async with Database(database_urls.app, encryption=encrypting("k1")) as encrypted:
            run = await PostgresStore(encrypted, SystemIds()).runs.get(ACME, pruned.run_id)
            assert (run.input, run.contents_pruned_at is None) == (b"", False)


@in_the_clear
async def test_term_that_is_not_set_is_not_written_so_that_older_code_can_read_the_others(house: House) -> None:
    await terms(house, None)
    assert await house.scalar("select retention from tenants where tenant_id = 'acme'") == {"checkpoints": "all"}
    assert (await house.tenants.get(ACME)).retention == RetentionTerms()
    await terms(house, 30)
    assert (await house.tenants.get(ACME)).retention.contents_days == 30
