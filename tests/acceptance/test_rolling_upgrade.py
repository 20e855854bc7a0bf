"""A new version comes to a database that an old one works on: yesterday's rows, and both at work at once.

The old version is the one that was recorded, run from its own wheel. All here are real processes.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from errands import HANG
from fix_database import DatabaseUrls
from plans import logins, role_of
from schema import schema
from versions import RECORDINGS, THIS, Recording, Version

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.migrating import upgrade
from holdfast.testing.invariants import assert_invariants

pytestmark = pytest.mark.timeout(300)  # each test starts several processes that load everything
FOLDERS = sorted(path for path in RECORDINGS.iterdir() if path.is_dir() and path.name[0].isdigit())


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def recording(request: pytest.FixtureRequest) -> Recording:
    """Each released version's."""
    return Recording(request.param)


@pytest.fixture(scope="module")
def old(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The recorded version, to be run."""
    return recording.unpacked(tmp_path_factory.mktemp("old"))


@pytest.fixture
def urls(empty_database: DatabaseUrls, old: Version) -> Iterator[DatabaseUrls]:
    """A database of the old version, which must obey today's invariants when the test is over."""
    old.upgrade(empty_database.owner)
    yield empty_database
    asyncio.run(keep_the_invariants(empty_database.app))


async def keep_the_invariants(app_url: str) -> None:
    async with Database(app_url) as database:
        await assert_invariants(database)


@pytest.mark.parametrize("finish", [False, True], ids=["begun", "finished"])
def test_runs_of_an_old_version_are_carried_on(
    recording: Recording, urls: DatabaseUrls, tmp_path: Path, finish: bool
) -> None:
    recording.load(urls.admin)
    upgrade(urls.owner, finish=finish)
    was = recording.facts
    with THIS.errands(urls.app, tmp_path, serve=False) as client, THIS.errands(urls.app, tmp_path) as worker:
        assert worker.hangs() == was["key"]  # the payment under way is sent again, under the key it had
        client.do("cancel", run=was["killed"], tenant="acme")
        assert client.result(was["killed"])["status"] == "cancelled"
        assert client.result(was["queued"])["output"]["log"][0].startswith("F: paid under")
        for run, status in {"completed": "completed", "granted": "completed", "failed": "failed"}.items():
            assert client.result(was[run])["status"] == status
        assert client.result(was["cancelled"])["status"] == "cancelled"
        for run, tenant in (("waiting", "acme"), ("bolts", "bolt")):
            [question] = client.result(was[run], tenant=tenant)["approvals"]
            client.do("decide", approval=question, decision="approve")
            assert client.result(was[run], tenant=tenant)["status"] == "completed"
        [question] = client.result(was["asking"])["approvals"]
        client.do("decide", approval=question, decision="respond", value="blue")
        assert client.result(was["asking"])["output"]["log"] == ["D: blue"]
        _, again = client.carry("asking", "Z", thread="completed")  # on from the state of the old version's thread
        client.do("decide", approval=again["approvals"][0], decision="respond", value="on")


def test_queries_of_an_old_version_keep_their_role_until_the_upgrade_is_finished(
    recording: Recording, urls: DatabaseUrls
) -> None:
    queries = recording.queries()
    assert len(queries) > 80
    with logins(urls) as opened:
        before = {name: role_of(query, opened) for name, query in queries.items()}
        upgrade(urls.owner)
        assert {name: role_of(query, opened) for name, query in queries.items()} == before
    assert None not in before.values()


def test_upgraded_database_has_the_schema_of_a_new_one(urls: DatabaseUrls, database_urls: DatabaseUrls) -> None:
    assert schema(urls.owner) != schema(database_urls.owner)
    upgrade(urls.owner)
    upgrade(urls.owner, finish=True)
    assert schema(urls.owner) == schema(database_urls.owner)


def test_old_and_new_work_side_by_side_on_the_new_schema(old: Version, urls: DatabaseUrls, tmp_path: Path) -> None:
    with old.errands(urls.app, tmp_path) as before:
        upgrade(urls.owner)
        assert before.carry("paying", "A", thread="a")[1]["status"] == "completed"  # it started before the upgrade
        assert before.leave() == 0
    with old.errands(urls.app, tmp_path) as olds, THIS.errands(urls.app, tmp_path, serve=False) as news:
        assert olds.home != news.home
        run, asked = olds.carry("approved", "B", thread="b")
        news.do("decide", approval=asked["approvals"][0], decision="approve")
        assert olds.result(run) == news.result(run)
        assert news.result(run)["output"]["log"][0].startswith("B: paid under")
        run, asked = news.carry("approved", "C", thread="b")  # the old worker carries it, and stops to ask
        olds.do("decide", approval=asked["approvals"][0], decision="reject")
        assert news.result(run)["status"] == "completed"
        assert olds.carry("failing", "D", thread="d")[1]["status"] == "failed"
        run, _ = news.carry("asking", "E", thread="e")
        olds.do("cancel", run=run, tenant="acme")
        assert news.result(run)["status"] == "cancelled"


@pytest.mark.parametrize("new_takes_over", [True, False])
def test_version_takes_over_what_the_other_died_of(
    old: Version, urls: DatabaseUrls, tmp_path: Path, new_takes_over: bool
) -> None:
    upgrade(urls.owner)
    first, second = (old, THIS) if new_takes_over else (THIS, old)
    with first.errands(urls.app, tmp_path) as errands:
        run = errands.start("paying", HANG, thread="t")
        key = errands.hangs()
        errands.kill()
    with second.errands(urls.app, tmp_path) as errands:
        assert errands.hangs() == key
        errands.do("cancel", run=run, tenant="acme")
        assert errands.result(run)["status"] == "cancelled"


def test_old_version_is_not_pulled_the_ground_from_under(old: Version, urls: DatabaseUrls, tmp_path: Path) -> None:
    with old.errands(urls.app, tmp_path) as errands:
        upgrade(urls.owner)
        code, said = THIS.command("db", "upgrade", "--finish", HOLDFAST_OWNER_DATABASE_URL=urls.owner)
        assert code == 4
        assert "processes of an older version are connected" in said
        assert errands.carry("paying", "A", thread="a")[1]["status"] == "completed"
        errands.leave()
    assert upgrade(urls.owner, finish=True)
    assert old.command("runs", DATABASE_URL=urls.app)[0] == 4  # it says so, and does no harm
