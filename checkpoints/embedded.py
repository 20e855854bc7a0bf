"""The embedded server: a Postgres of one's own, for a laptop, a notebook, a demo and the tests.

The cluster stands in the user's data folder (for root, whose private folders the server's account cannot enter, in
/var/lib/holdfast) and listens on a socket in a short folder of its own that nobody else may enter. There is no TCP.
Any number of processes may use it: whoever comes first starts it, each holds a shared lock on `users.lock`, and
whoever leaves last stops it. When its owner is killed the server goes on, and the next to come takes it over.
Roles and row-level security are those of production. Workers are given `app_url` and never own the server.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psycopg
from platformdirs import user_data_path
from psycopg.rows import dict_row

from holdfast.checkpoints.cluster import Account, Cluster
from holdfast.checkpoints.migrating import make_roles, upgrade
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.translation import translating
from holdfast.contracts.errors import ConfigurationError

_SQL = load_queries(__name__, "embedded.sql")
_FOLDER_FOR_ROOT = Path("/var/lib/holdfast/postgres")
_SOCKETS = Path("/tmp")  # noqa: S108  # a socket's path has 107 bytes at most; the folder below it is 0700 and checked
_TEMPORARY = "holdfast-temporary-"
_MEMORY = Path("/dev/shm")  # noqa: S108  # what is made in it has a name of its own, as in the folder for such files
_MEMORY_BYTES = 2 << 30
_LOCK_SECONDS = 180
_POLL_SECONDS = 0.05


class EmbeddedServer:
    """A hold on the embedded server. `start` and `stop` block; from a loop use `embedded_server`."""

    def __init__(self, folder: Path | None = None, *, temporary: bool = False) -> None:
        """`folder` is where the data stands; a `temporary` server has one of its own, loses everything when it
        stops, and trades durability for speed."""
        if temporary and folder is not None:
            raise ConfigurationError("a temporary embedded server takes no folder: it makes and removes its own")
        self._account = Account.choose()
        self._temporary = temporary
        self._folder = Path() if temporary else (folder or _default_folder(self._account)).absolute()
        self._users: int | None = None

    @property
    def folder(self) -> Path:
        """Where data, log and locks stand."""
        return self._folder

    @property
    def app_url(self) -> str:
        """For the application: what `DATABASE_URL` is in production."""
        return self._cluster.url("holdfast_app", "holdfast")

    @property
    def owner_url(self) -> str:
        """For migrations."""
        return self._cluster.url("holdfast_owner", "holdfast")

    @property
    def admin_url(self) -> str:
        """For making databases; the superuser."""
        return self._cluster.url("postgres", "postgres")

    def start(self) -> None:
        """Start the server or join it, with our roles, database and schema in place.

        Raises `ConfigurationError` with what to do about it: the extra is not installed, the folder cannot be used,
        the server does not start (then with the end of its log).
        """
        if self._temporary:
            _sweep(self._account)
        self._make_folder()
        with self._alone():
            # Not before the lock: between making it and giving it to the server's account it is not yet private.
            _make_private(_socket_folder(self._folder), self._account)
            self._users = _opened(self._folder / "users.lock")
            fcntl.flock(self._users, fcntl.LOCK_SH)
            try:
                self._cluster.run()
                self._furnish()
            except BaseException:
                self._leave()
                raise

    def stop(self) -> None:
        """Let go of the server; the last to do so stops it. Does nothing when it was not started."""
        if self._users is None:
            return
        with self._alone():
            self._leave()
        if self._temporary:
            shutil.rmtree(self._folder, ignore_errors=True)  # another one's sweep may be at it already

    @property
    def _cluster(self) -> Cluster:
        return Cluster(self._folder, _socket_folder(self._folder), self._account, durable=not self._temporary)

    def _leave(self) -> None:
        assert self._users is not None
        users, self._users = self._users, None
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # others use it
        else:
            self._cluster.stop()
            shutil.rmtree(_socket_folder(self._folder), ignore_errors=True)
        finally:
            os.close(users)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = _opened(self._folder / "start.lock")
        try:
            _await_lock(lock, self._folder)
            yield
        finally:
            os.close(lock)

    def _make_folder(self) -> None:
        if self._temporary:
            self._folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=_place_of_temporary()))
        # The server's account must be able to pass through; what it holds is its own, and 0700.
        mode = 0o711 if self._account.borrowed else 0o700
        try:
            self._folder.mkdir(mode=mode, parents=True, exist_ok=True)
            if self._temporary:
                self._folder.chmod(mode)
        except OSError as error:
            raise ConfigurationError(f"the folder {self._folder} for the embedded database: {error}") from error
        if not self._account.can_reach(self._folder):
            raise ConfigurationError(
                f"for root Postgres runs as {self._account.name}, who may not enter {self._folder}; "
                "choose a folder outside private ones, or run holdfast as an ordinary user"
            )

    def _furnish(self) -> None:
        with translating(), psycopg.connect(self.admin_url, autocommit=True, row_factory=dict_row) as conn:
            for question, answer in (("has_owner", "make_owner"), ("has_database", "make_database")):
                row = conn.execute(_SQL[question]).fetchone()
                if not row or not row["present"]:
                    conn.execute(_SQL[answer])
        make_roles(self.admin_url)
        upgrade(self.owner_url, finish=True)  # versions do not share it, so there is none to wait for


@asynccontextmanager
async def embedded_server(folder: Path | None = None, *, temporary: bool = False) -> AsyncIterator[EmbeddedServer]:
    """The embedded server, for as long as the block lasts; see `EmbeddedServer`."""
    server = EmbeddedServer(folder, temporary=temporary)
    try:
        await _to_the_end(server.start)
        yield server
    finally:
        await _to_the_end(server.stop)


async def _to_the_end(work: Callable[[], None]) -> None:
    # A thread cannot be cancelled: whoever cancels us waits until it is done, and no server is left without a hold.
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _sweep(account: Account) -> None:
    """Remove the temporary servers of processes that were killed: nobody holds their locks any more."""
    for folder in (found for place in _places_of_temporary() for found in place.glob(f"{_TEMPORARY}*")):
        with suppress(FileNotFoundError, BlockingIOError):  # swept by another process just now; in use
            # One that has only been made by now has no data yet, and is left alone.
            if folder.stat().st_uid == os.geteuid() and any(folder.glob("data*")):
                with _held(folder / "start.lock"), _held(folder / "users.lock"):
                    Cluster(folder, _socket_folder(folder), account, durable=False).stop()
                    shutil.rmtree(_socket_folder(folder), ignore_errors=True)
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    lock = _opened(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _place_of_temporary() -> Path:
    """Memory, where there is plenty and programs may be run in it (copies of the binaries may stand beside the data):
    a new database is hundreds of files, which some disks take a second to make."""
    with suppress(OSError):
        facts = os.statvfs(_MEMORY)
        if facts.f_bavail * facts.f_frsize >= _MEMORY_BYTES and not facts.f_flag & os.ST_NOEXEC:
            return _MEMORY
    return Path(tempfile.gettempdir())


def _places_of_temporary() -> tuple[Path, ...]:
    return (Path(tempfile.gettempdir()), _MEMORY)


def _default_folder(account: Account) -> Path:
    return _FOLDER_FOR_ROOT if account.borrowed else user_data_path("holdfast") / "postgres"


def _socket_folder(folder: Path) -> Path:
    """The same for every process that means the same folder."""
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return _SOCKETS / f"holdfast-{os.geteuid()}-{place}"


def _make_private(folder: Path, account: Account) -> None:
    try:
        folder.mkdir(mode=0o700)
        if account.borrowed:
            os.chown(folder, account.uid, account.gid)
    except FileExistsError:
        pass
    facts = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or facts.st_uid != account.uid or facts.st_mode & 0o077:
        raise ConfigurationError(
            f"{folder} is not a private folder of the user {account.name}: remove it, whoever made it"
        )


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _await_lock(lock: int, folder: Path) -> None:
    for _ in range(int(_LOCK_SECONDS / _POLL_SECONDS)):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
    raise ConfigurationError(
        f"another process has been starting or stopping the database in {folder} for {_LOCK_SECONDS} s; end it (it has "
        "start.lock open) and try again"
    )
