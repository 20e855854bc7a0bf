"""Migrations: numbered files, applied once each, in order, and never edited after a release.

Each one runs in a transaction of its own, by the owner. They only go forward, and each is safe while the previous
version of the code still runs. Everything here blocks; from a loop call it through `asyncio.to_thread`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.translation import translating
from holdfast.contracts.errors import ConfigurationError

_SQL = load_queries(__name__, "migrating.sql")
_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")
_OPTIONS = "-c lock_timeout=60s -c client_min_messages=warning"
_CONNECT_TIMEOUT_SECONDS = 10

UPGRADE = "run: holdfast db upgrade"
APPLIED = _SQL["applied"]
"""What `compare` compares; for who has a connection already."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    name: str
    sql: LiteralString
    checksum: str
    """SHA-256 of the file: what was applied must be what the code ships."""


def migrations() -> Sequence[Migration]:
    """The migrations that this version of the code ships, in order. Raises `ConfigurationError` for a gap."""
    found = []
    for file in files("holdfast.checkpoints").joinpath("migrations").iterdir():
        if match := _FILE.match(file.name):
            text = file.read_text(encoding="utf-8")
            found.append(Migration(int(match[1]), match[2], text, hashlib.sha256(text.encode()).hexdigest()))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ConfigurationError(f"the migrations are not numbered 1, 2, 3 …: {[m.number for m in found]}")
    return found


def upgrade(owner_url: str) -> Sequence[Migration]:
    """Bring the database up to this version of the code; returns what was applied now.

    `owner_url` logs in as the role that owns (or shall own) the tables, never the application's. Any number of these
    may run at once. Raises `ConfigurationError` when the database was changed by other code, or when the roles are
    missing and the owner may not make them, and `StoreUnavailable` when there is no server.
    """
    with translating(), _connected(owner_url) as conn:
        conn.execute(_SQL["wait_for_our_turn"])
        _ensure_roles(conn)
        with conn.transaction():
            conn.execute(_SQL["make_table"])
            conn.execute(_SQL["let_the_app_read"])
        missing = compare(conn.execute(_SQL["applied"]).fetchall())
        for migration in missing:
            _apply(conn, migration)
        return missing


def pending(url: str) -> Sequence[Migration]:
    """The migrations that the database lacks; `url` may be the owner's or the application's."""
    with translating(), _connected(url) as conn:
        present = conn.execute(_SQL["has_table"]).fetchone()
        rows = conn.execute(_SQL["applied"]).fetchall() if present and present["present"] else []
        return compare(rows)


def compare(applied: Sequence[Mapping[str, Any]]) -> Sequence[Migration]:
    """What the code has and the database lacks. Raises `ConfigurationError` when the database knows more than the
    code, or something else under the same number."""
    ours = {migration.number: migration for migration in migrations()}
    for row in applied:
        known = ours.pop(row["number"], None)
        if known is None:
            raise ConfigurationError(
                f"the database has migration {row['number']} ({row['name']}), which this version of holdfast does not "
                "know: it was upgraded by a newer one; install that version or a later one"
            )
        if known.checksum != row["checksum"]:
            raise ConfigurationError(
                f"migration {known.number} ({known.name}) was applied to this database with other contents than this "
                "version of holdfast ships; use the version that made the database, or restore a backup"
            )
    return list(ours.values())


def make_roles(url: str) -> None:
    """Make the roles of the application and the engine, where the server lacks them. `upgrade` does it as well, where
    its login may; raises `ConfigurationError` with the statements for an administrator otherwise."""
    with translating(), _connected(url) as conn:
        _ensure_roles(conn)


def _connected(url: str) -> psycopg.Connection[dict[str, Any]]:
    return psycopg.connect(
        url,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        options=_OPTIONS,
        application_name="holdfast db upgrade",
    )


def _apply(conn: psycopg.Connection[dict[str, Any]], migration: Migration) -> None:
    row = {"number": migration.number, "name": migration.name, "checksum": migration.checksum}
    try:
        with conn.transaction():
            conn.execute(migration.sql)
            conn.execute(_SQL["write_down"], row)
    except psycopg.errors.DuplicateTable as error:
        raise ConfigurationError(
            f"migration {migration.number} ({migration.name}) finds a table that is not holdfast's: "
            f"{error.diag.message_primary}; give holdfast a database of its own"
        ) from error


def _ensure_roles(conn: psycopg.Connection[dict[str, Any]]) -> None:
    missing = _missing_roles(conn)
    for name in missing:
        try:
            conn.execute(_SQL[name])
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            continue  # roles belong to the server: an upgrade of another database on it was quicker
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(_for_the_administrator(missing)) from error


def _missing_roles(conn: psycopg.Connection[dict[str, Any]]) -> Sequence[str]:
    present = conn.execute(_SQL["roles_present"]).fetchone() or {}
    steps = {"engine": "create_engine", "app": "create_app", "membership": "let_the_app_become_engine"}
    return [step for what, step in steps.items() if not present.get(what)]


def _for_the_administrator(steps: Sequence[str]) -> str:
    statements = [re.sub(r"^--.*\n", "", _SQL[step], flags=re.MULTILINE).strip() + ";" for step in steps]
    return "\n".join(
        [
            "the server lacks roles of holdfast, and this login may not make them. Have an administrator run:",
            *(f"    {statement}" for statement in statements),
            "give holdfast_app a password (alter role holdfast_app password '…'), and upgrade again",
        ]
    )
