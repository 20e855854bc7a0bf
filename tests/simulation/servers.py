"""Postgres servers for schedules: copies of one cluster, which is made and furnished once."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from holdfast.checkpoints import cluster
from holdfast.checkpoints.embedded import EmbeddedServer
from holdfast.checkpoints.migrating import upgrade

MIGRATED = "sim"
"""A migrated database on every server: to be copied, or to be used where the server is one schedule's own."""


class Server:
    """A Postgres that may be shut down at once and started again, and whose connections may be cut."""

    def __init__(self, embedded: EmbeddedServer) -> None:
        self._embedded = embedded
        self._hands = threading.Lock()

    def url(self, database: str) -> str:
        return make_conninfo(self._embedded.app_url, dbname=database)

    def copy_migrated(self, name: str) -> None:
        self._execute(sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(MIGRATED)))

    def drop(self, name: str) -> None:
        self._execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def cut(self, database: str) -> None:
        """Terminate every connection to the database."""
        with self._hands, psycopg.connect(self._embedded.admin_url, autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [database])

    def restart(self) -> None:
        """Shut down as fast as it goes, and start again."""
        with self._hands:
            pid_file = self._embedded.folder / "data" / "postmaster.pid"
            pid = int(pid_file.read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)  # what "immediate" means
            while pid_file.exists() and _alive(pid):
                time.sleep(0.02)
            self._embedded._cluster.run()

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._embedded.admin_url, autocommit=True) as conn:
            conn.execute(statement)


class Servers:
    """One server that schedules share, and others like it for those that restart theirs."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where the others stand; the database's account must be able to pass through it."""
        self._folder = folder
        self._made = folder / "made"

    @contextmanager
    def opened(self) -> Iterator[Server]:
        """The server that is shared."""
        cluster.SETTINGS["max_connections"] = "600"  # of dozens of processes, each with its pools
        embedded = EmbeddedServer(temporary=True)
        embedded.start()
        try:
            self._furnish(embedded)
            embedded._cluster.stop()
            _copy(embedded.folder / "data", self._made)
            embedded._cluster.run()
            yield Server(embedded)
        finally:
            _stop(embedded)

    @contextmanager
    def another(self, name: str) -> Iterator[Server]:
        """One of a schedule's own."""
        folder = self._folder / name
        folder.mkdir()
        folder.chmod(0o711)
        _copy(self._made, folder / "data")
        embedded = EmbeddedServer(folder)
        embedded.start()
        try:
            yield Server(embedded)
        finally:
            _stop(embedded)
            shutil.rmtree(folder, ignore_errors=True)

    def _furnish(self, embedded: EmbeddedServer) -> None:
        with psycopg.connect(embedded.admin_url, autocommit=True) as conn:
            # A server for tests acknowledges commits before they are written, to be quick; this one is killed.
            for role in ("holdfast_app", "holdfast_owner"):
                conn.execute(sql.SQL("alter role {} set synchronous_commit = on").format(sql.Identifier(role)))
            conn.execute(sql.SQL("create database {} owner holdfast_owner").format(sql.Identifier(MIGRATED)))
        upgrade(make_conninfo(embedded.owner_url, dbname=MIGRATED))


def _copy(data: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", data, to], check=True)  # with its owner, who may not be us


def _stop(embedded: EmbeddedServer) -> None:
    # A server that was shut down at once may still have children that tidy up while its folder is removed.
    with contextlib.suppress(FileNotFoundError):
        embedded.stop()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
