"""Versions of holdfast at work on one database: processes of an older one, from its recording, and of this one."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from holdfast.checkpoints.queries import parse_queries
from holdfast.checkpoints.schema import migrations

HERE = Path(__file__).parent
RECORDINGS = HERE / "recordings"


class Errands:
    """A process of `errands.py`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self._hangs: list[str] = []
        self.home = Path(self._line()["home"])
        """Where its holdfast stands."""

    def do(self, command: str, **given: Any) -> dict[str, Any]:
        """Have it do something, and return what it answers."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": command, **given}) + "\n")
        self._process.stdin.flush()
        while "hangs" in (answer := self._line()):
            self._hangs.append(answer["hangs"])
        return answer

    def start(self, graph: str, order: str, *, thread: str, tenant: str = "acme") -> str:
        """Start a run, and return its id."""
        return str(self.do("start", graph=graph, order=order, thread=thread, tenant=tenant)["run"])

    def result(self, run: str, *, tenant: str = "acme") -> dict[str, Any]:
        """How the run rests, once it does."""
        return self.do("result", run=run, tenant=tenant)

    def carry(self, graph: str, order: str, *, thread: str, tenant: str = "acme") -> tuple[str, dict[str, Any]]:
        """Start a run, and see how it rests."""
        run = self.start(graph, order, thread=thread, tenant=tenant)
        return run, self.result(run, tenant=tenant)

    def hangs(self) -> str:
        """The key of a payment that hangs, once it does."""
        return self._hangs.pop() if self._hangs else str(self._line()["hangs"])

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def leave(self) -> int:
        """Let it end in order; its exit code."""
        assert self._process.stdin
        self._process.stdin.close()
        return self._process.wait(60)

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the process is gone, and said:\n{self._log.read_text()}"
        return dict(json.loads(line))


@dataclass(frozen=True)
class Version:
    """A version of holdfast that can be run: this one, or the one whose wheel was unpacked in `home`."""

    name: str
    home: Path | None = None

    def begin(self, *args: str, **environment: str) -> "subprocess.Popen[str]":
        """A process of Python that imports this version."""
        return subprocess.Popen(
            [sys.executable, *args],
            env=self._environment(environment),
            cwd=HERE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def command(self, *args: str, **environment: str) -> tuple[int, str]:
        """`holdfast` of this version, to its end: its exit code, and what it said."""
        process = self.begin("-m", "holdfast", *args, **environment)
        said, _ = process.communicate(timeout=90)
        return process.returncode, said

    def upgrade(self, owner_url: str, **options: bool) -> Sequence[str]:
        """The migrations that `upgrade` of this version, in a process of its own, says it has applied."""
        process = self.begin_upgrade(owner_url, **options)
        said, _ = process.communicate(timeout=90)
        assert process.returncode == 0, said
        return list(json.loads(said))

    def begin_upgrade(self, owner_url: str, **options: bool) -> "subprocess.Popen[str]":
        """The process of `upgrade`. It does not load what the whole command line does."""
        return self.begin("-c", _UPGRADE, owner_url, json.dumps(options))

    @contextmanager
    def errands(self, database_url: str, folder: Path, *, serve: bool = True) -> Iterator[Errands]:
        """A process of this version on the database; killed when the block is left, if it still runs."""
        log = folder / f"errands-{self.name}.log"
        command = [sys.executable, "-c", "import errands; errands.main()", "worker" if serve else "client"]
        with log.open("a") as complaints:
            process = subprocess.Popen(
                command,
                env=self._environment({"DATABASE_URL": database_url}),
                cwd=folder,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
            )
        with process:
            try:
                yield Errands(process, log)
            finally:
                process.kill()

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        homes = [str(self.home)] if self.home else []
        paths = os.pathsep.join([*homes, str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": paths, **more}


_UPGRADE = """
import json, sys
from holdfast.checkpoints.migrating import upgrade
print(json.dumps([str(each) for each in upgrade(sys.argv[1], **json.loads(sys.argv[2]))]))"""
THIS = Version("this")


def leave_as_the_first_version_did(owner_url: str) -> None:
    """Bring an empty database up to the schema of 0.1.0: two migrations, in a list that knew no phases."""
    with psycopg.connect(owner_url, autocommit=True) as conn:
        conn.execute("create table holdfast_migrations (number integer primary key, name text, checksum text)")
        conn.execute("alter table holdfast_migrations add applied_at timestamptz not null default clock_timestamp()")
        conn.execute("grant select on holdfast_migrations to holdfast_app")
        for each in migrations()[:2]:
            conn.execute(each.sql)
            row = [each.number, each.name, each.checksum]
            conn.execute("insert into holdfast_migrations (number, name, checksum) values (%s, %s, %s)", row)


@dataclass(frozen=True)
class Recording:
    """What is kept of a released version: its wheel, the rows that it wrote, and which runs they are."""

    folder: Path

    @property
    def wheel(self) -> Path:
        """The version as it was shipped."""
        (wheel,) = self.folder.glob("*.whl")
        return wheel

    @property
    def facts(self) -> Any:
        """When it was recorded, the runs by what they are, and the key of the payment under way."""
        return json.loads((self.folder / "facts.json").read_text())

    def unpacked(self, home: Path) -> Version:
        """The version, to be run."""
        zipfile.ZipFile(self.wheel).extractall(home)
        return Version(self.folder.name, home)

    def queries(self) -> dict[str, str]:
        """Every named query of that version, by its file and name."""
        wheel = zipfile.ZipFile(self.wheel)
        files = [path for path in wheel.namelist() if re.fullmatch(r"holdfast/checkpoints/\w+\.sql", path)]
        return {
            f"{path}: {name}": query
            for path in files
            for name, query in parse_queries(wheel.read(path).decode(), source=path).items()
        }

    def load(self, admin_url: str) -> None:
        """Fill a database of that version's schema with its rows, as if they had been written just now."""
        with psycopg.connect(admin_url) as conn:
            conn.execute("set session_replication_role = replica")  # tables come in no particular order
            for table, rows in blocks((self.folder / "rows.sql").read_text()):
                with conn.cursor().copy(table.encode()) as copy:
                    copy.write(rows)
            for table, column in conn.execute(_INSTANTS).fetchall():
                names = {"table": sql.Identifier(table), "column": sql.Identifier(column)}
                shift = sql.SQL("update {table} set {column} = {column} + (clock_timestamp() - %s)").format(**names)
                conn.execute(shift, [self.facts["recorded_at"]])


def blocks(dump: str) -> Iterator[tuple[str, str]]:
    """Each `copy … from stdin;` with its rows."""
    for block in dump.split("\ncopy ")[1:]:
        statement, _, rest = block.partition(";\n")
        yield f"copy {statement}", rest.partition("\\.\n")[0]


_INSTANTS = """
select table_name, column_name from information_schema.columns
 where table_schema = 'public' and data_type = 'timestamp with time zone' and table_name <> 'holdfast_migrations'"""
