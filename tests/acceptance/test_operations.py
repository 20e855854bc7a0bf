"""docs/operations.md, done as it stands there: on a server that knows nothing of us, with Postgres' own tools."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from documents import blocks, section
from fix_database import DatabaseUrls, ServerUnderTest
from projects import Project, standing_in
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from holdfast.checkpoints.cluster import wheel_binaries
from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import upgrade
from holdfast.checkpoints.schema import migrations

ADMINISTRATORS, *QUERIES = blocks("operations.md", "sql")
TEXT = '{"text": "12.00"}'


@dataclass(frozen=True)
class Server:
    """A server whose administrator has run what the document says."""

    admin_url: str

    def url(self, login: str, database: str) -> str:
        return make_conninfo(**(conninfo_to_dict(self.admin_url) | {"user": login, "dbname": database}))

    def performed(self, line: str) -> "subprocess.CompletedProcess[str]":
        """A line of the document that calls a tool of Postgres, on this server: `other` is another database."""
        word, *args = shlex.split(re.sub(r"postgresql://(\w+):…@(\w+)\.example/holdfast", self._real, line))
        return subprocess.run([wheel_binaries(None) / word, *args], capture_output=True, text=True, check=False)

    def _real(self, address: re.Match[str]) -> str:
        return shlex.quote(self.url(address[1], {"db": "holdfast", "other": "restored"}[address[2]]))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    embedded = EmbeddedServer(temporary=True)
    embedded.start()
    try:
        with psycopg.connect(embedded.admin_url, autocommit=True) as admin:
            admin.execute("drop database holdfast")
            for role in ("holdfast_app", "holdfast_engine", "holdfast_owner"):
                admin.execute(f"drop role {role}")
            for statement in re.sub(r"--.*", "", ADMINISTRATORS).split(";")[:-1]:
                admin.execute(statement.encode())
        yield Server(embedded.admin_url)
    finally:
        embedded.stop()


@pytest.fixture(scope="module")
def urls(server: Server) -> DatabaseUrls:
    """The database, upgraded by its owner, who may not create roles."""
    logins = ("holdfast_app", "holdfast_owner", "postgres")
    found = DatabaseUrls(*(server.url(login, "holdfast") for login in logins))
    assert upgrade(found.owner) == migrations()
    return found


@pytest.fixture
def project(
    tmp_path: Path, urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Project]:
    with standing_in(tmp_path, urls.app, monkeypatch, capsys) as project:
        yield project


@pytest.mark.parametrize("query", QUERIES)
def test_queries_can_be_asked_by_the_administrator(urls: DatabaseUrls, query: str) -> None:
    with psycopg.connect(urls.admin) as admin:
        assert admin.execute(query.encode()).description


def test_owner_cannot_dump_what_row_level_security_hides(server: Server, urls: DatabaseUrls, tmp_path: Path) -> None:
    done = server.performed(
        f"pg_dump --file={tmp_path / 'x'} --dbname=postgresql://holdfast_owner:…@db.example/holdfast"
    )
    assert done.returncode != 0
    assert "row-level security" in done.stderr


def test_database_that_was_dumped_and_restored_is_gone_on_with(
    server: Server, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = project.holdfast("run", "thinker", "--input", TEXT, "--json").json["run_id"]
    queued = project.holdfast("run", "thinker", "--input", TEXT, "--detach", "--json").json["run_id"]
    tools, commands = blocks_of("Backup and restore")
    ServerUnderTest(server.admin_url).create("restored")
    for line in tools:
        ended = server.performed(line)
        assert ended.returncode == 0, ended.stderr

    monkeypatch.setenv("DATABASE_URL", server.url("holdfast_app", "restored"))
    monkeypatch.setenv("HOLDFAST_OWNER_DATABASE_URL", server.url("holdfast_owner", "restored"))
    assert project.holdfast("db", "upgrade").out == "the database is up to date\n"
    said = {}
    for line in commands:
        _, *args = shlex.split(line.replace("RUN", queued).replace("NAME", "dana"))
        answer = project.holdfast(*args)
        assert answer.code == 0, answer.err
        said[line] = answer.out
    assert queued in said["holdfast runs --status queued"]
    assert done not in said["holdfast runs --status running"]
    assert "2 runs verified; none of the runs broken" in said["holdfast events --verify"]
    assert project.holdfast("show", done, "--json").json["status"] == "completed"
    assert project.holdfast("run", "thinker", "--input", TEXT).code == 0


def blocks_of(heading: str) -> list[list[str]]:
    fences = re.findall(r"^```\n(.*?)^```$", section("operations.md", heading), re.DOTALL | re.MULTILINE)
    return [fence.splitlines() for fence in fences]
