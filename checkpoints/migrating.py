"""Bringing a database up to the code: each migration once, in a transaction of its own, by the owner.

Everything here blocks; from a loop call it through `asyncio.to_thread`. What the phases mean is told in `schema`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
from psycopg.rows import dict_row

from holdfast.checkpoints.obstacles import Persistence
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.schema import Migration, Phase, compare
from holdfast.checkpoints.translation import translating
from holdfast.contracts.errors import ConfigurationError

_SQL = load_queries(__name__, "migrating.sql")
_OPTIONS = "-c lock_timeout=60s -c client_min_messages=warning"
_CONNECT_TIMEOUT_SECONDS = 10
_TURN_SECONDS = 600.0
_FIRST_SCHEMA = 2
WAIT_SECONDS = 120.0
"""How long a migration asks for its locks when nothing else is said."""

UPGRADE = "run: holdfast db upgrade"
FINISH = "once no older version runs: holdfast db upgrade --finish"
APPLIED = _SQL["applied"]
"""What `compare` compares; for who has a connection already."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a database stands to this version of the code."""

    applied: Sequence[Mapping[str, Any]]
    """Rows: `number`, `phase`, `name`, `applied_at`; those of newer code among them."""
    pending: Sequence[Migration]


def _tell_nobody(_: str) -> None: ...


def upgrade(
    owner_url: str,
    *,
    finish: bool = False,
    wait_seconds: float = WAIT_SECONDS,
    tell: Callable[[str], None] = _tell_nobody,
) -> Sequence[Migration]:
    """Apply what the database lacks of the pre migrations, and with `finish` of the post ones; returns those.

    A new database gets all of them: no older version can run on it.

    `owner_url` logs in as the role that owns (or shall own) the tables, never the application's. Any number of these
    may run at once. A migration whose tables are locked asks again for `wait_seconds`, and holds nobody up meanwhile;
    `tell` is called with a line that says whom it waits for.

    Raises `ConfigurationError` when the login is not the owner's, when the database was changed by other code, when the
    roles are missing and the owner may not make them, and when a post migration would pull the ground from under a
    connected process of an older version; `StoreUnavailable` when there is no server, when a table stays locked, or
    when another upgrade is under way for longer than ten minutes.
    """
    asking = Persistence(tell, lambda: _connected(owner_url))
    with translating(), _connected(owner_url) as conn, _as_owner(conn):
        asking.until_done(conn, "this upgrade", partial(_take_our_turn, conn), seconds=_TURN_SECONDS)
        _ensure_roles(conn)
        with conn.transaction():
            conn.execute(_SQL["make_list"])
            conn.execute(_SQL["let_the_app_read"])
            if _lists(conn)["first"]:
                conn.execute(_SQL["take_over_the_first_list"])
        applied = _applied(conn)
        due = [each for each in compare(applied) if finish or not applied or each.phase is Phase.PRE]
        for migration in due:
            if migration.phase is Phase.POST:
                _require_no_older(conn, migration)
            asking.until_done(conn, f"migration {migration}", partial(_apply, conn, migration), seconds=wait_seconds)
        return due


def standing(url: str) -> Standing:
    """What was applied and what is pending; `url` may be the owner's or the application's."""
    with translating(), _connected(url) as conn:
        applied = _applied(conn)
        return Standing(applied, compare(applied))


def make_roles(url: str) -> None:
    """Make the roles of the application and the engine, where the server lacks them. `upgrade` does it as well, where
    its login may; raises `ConfigurationError` with the statements for an administrator otherwise."""
    with translating(), _connected(url) as conn:
        _ensure_roles(conn)


def application_name(schema: int) -> str:
    """What a process whose code knows migrations up to `schema` calls itself when it connects."""
    return f"holdfast schema {schema}"


def _connected(url: str) -> psycopg.Connection[dict[str, Any]]:
    return psycopg.connect(
        url,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        options=_OPTIONS,
        application_name="holdfast db upgrade",
    )


@contextmanager
def _as_owner(conn: psycopg.Connection[dict[str, Any]]) -> Iterator[None]:
    """What a login is refused here is the owner's to do, and no upgrade by the same login helps."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the login {conn.info.user!r} may not do this ({error.diag.message_primary}); HOLDFAST_OWNER_DATABASE_URL "
            "must name the login that owns the tables, never the application's"
        ) from error


def _take_our_turn(conn: psycopg.Connection[dict[str, Any]]) -> None:
    conn.execute(_SQL["take_our_turn"])


def _lists(conn: psycopg.Connection[dict[str, Any]]) -> Mapping[str, bool]:
    return conn.execute(_SQL["lists_present"]).fetchone() or {}


def _applied(conn: psycopg.Connection[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
    present = _lists(conn)
    if present["ours"]:
        return conn.execute(APPLIED).fetchall()
    return conn.execute(_SQL["applied_by_the_first_version"]).fetchall() if present["first"] else []


def _apply(conn: psycopg.Connection[dict[str, Any]], migration: Migration) -> None:
    row = {
        "number": migration.number,
        "phase": migration.phase,
        "name": migration.name,
        "checksum": migration.checksum,
    }
    try:
        conn.execute(migration.sql)
        conn.execute(_SQL["write_down"], row)
    except psycopg.errors.DuplicateTable as error:
        raise ConfigurationError(
            f"migration {migration} finds a table that is not holdfast's: "
            f"{error.diag.message_primary}; give holdfast a database of its own"
        ) from error


def _require_no_older(conn: psycopg.Connection[dict[str, Any]], migration: Migration) -> None:
    connected = conn.execute(_SQL["connected"], {"first": _FIRST_SCHEMA}).fetchall()
    older = [each for each in connected if each["schema"] < migration.number]
    if older:
        raise ConfigurationError(
            f"processes of an older version are connected ({'; '.join(map(_described, older))}), and the migration "
            f"{migration} takes away what they use; stop them and upgrade again. What comes before it was applied"
        )


def _described(session: Mapping[str, Any]) -> str:
    pids = ", ".join(map(str, session["pids"]))
    return f"{session['name']!r}{' from ' + session['address'] if session['address'] else ''}, pid {pids}"


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
