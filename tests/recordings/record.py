"""Records this version: its wheel, and the rows that it writes. To be run, and its outcome committed, at a release.

`python tests/recordings/record.py` makes a folder named for the version; with the path of a wheel it records that.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import sql

sys.path.insert(0, str(Path(__file__).parent.parent))

from errands import HANG
from fix_database import ServerUnderTest
from versions import RECORDINGS, Errands, Recording, Version
from wheel import build

from holdfast.checkpoints.embedded import EmbeddedServer

_TABLES = """
select relname from pg_class
 where relkind = 'r' and relnamespace = 'public'::regnamespace and relname !~ 'migrations' order by 1"""


def work(version: Version, url: str, folder: Path) -> dict[str, object]:
    """Have runs in every state, the last one cut off by SIGKILL and one queued after it; returns which they are."""
    with version.errands(url, folder) as errands:
        facts = _settled(errands)
        facts["killed"] = errands.start("paying", HANG, thread="killed")
        facts["key"] = errands.hangs()
        errands.kill()
    with version.errands(url, folder, serve=False) as errands:
        facts["queued"] = errands.start("paying", "F", thread="queued")
        errands.leave()
    return facts


def _settled(errands: Errands) -> dict[str, object]:
    completed, _ = errands.carry("paying", "A", thread="completed")
    granted, asked = errands.carry("approved", "B", thread="granted")
    errands.do("decide", approval=asked["approvals"][0], decision="approve")
    errands.result(granted)
    waiting, _ = errands.carry("approved", "C", thread="waiting")
    asking, _ = errands.carry("asking", "D", thread="asking")
    failed, _ = errands.carry("failing", "E", thread="failed")
    cancelled, _ = errands.carry("asking", "G", thread="cancelled")
    errands.do("cancel", run=cancelled, tenant="acme")
    bolts, _ = errands.carry("approved", "H", thread="waiting", tenant="bolt")
    return {
        "completed": completed,
        "granted": granted,
        "waiting": waiting,
        "asking": asking,
        "failed": failed,
        "cancelled": cancelled,
        "bolts": bolts,
    }


def rows(admin_url: str) -> Iterator[str]:
    """The rows of every table but the lists of migrations, as psql can read them."""
    with psycopg.connect(admin_url) as conn:
        for (table,) in conn.execute(_TABLES).fetchall():
            select = sql.SQL("copy (select * from {} order by 1, 2, 3) to stdout").format(sql.Identifier(table))
            with conn.cursor().copy(select) as copy:
                written = b"".join(bytes(each) for each in copy).decode()
            described = conn.execute(sql.SQL("select * from {}").format(sql.Identifier(table))).description or ()
            columns = [column.name for column in described]
            yield f"\ncopy {table} ({', '.join(columns)}) from stdin;\n{written}\\.\n"


def main() -> None:
    """Record the version of the given wheel, or of this checkout."""
    with tempfile.TemporaryDirectory() as place:
        wheel = Path(sys.argv[1]) if sys.argv[1:] else build(Path(place))
        recording = Recording(RECORDINGS / wheel.name.split("-")[1])
        recording.folder.mkdir()
        shutil.copy(wheel, recording.folder)
        shutil.copy(RECORDINGS.parent / "errands.py", place)  # errors name the line that raised, and its folder
        version = recording.unpacked(Path(place) / "unpacked")
        server = EmbeddedServer(temporary=True)
        server.start()
        try:
            urls = ServerUnderTest(server.admin_url).create("recorded")
            version.upgrade(urls.owner)
            facts = {"recorded_at": datetime.now(UTC).isoformat(), **work(version, urls.app, Path(place))}
            dump = f"-- What holdfast {recording.folder.name} wrote.\n{''.join(rows(urls.admin))}"
        finally:
            server.stop()
        (recording.folder / "rows.sql").write_text(dump, encoding="utf-8")
        (recording.folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
