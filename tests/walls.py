"""The walls between tenants, tried one statement at a time.

The court sends a statement, or what was left of it, in a transaction that is rolled back, and says what it showed,
changed or locked of another tenant's. It does so in a database without checks, foreign keys and triggers, in which
row-level security is the only thing that refuses anything; and again in one in which there is no other tenant.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from fix_database import DatabaseUrls
from mutilation import (
    Statement,
    conditions,
    embedded,
    in_peace,
    mutilated,
    relations,
    with_embedded,
    with_embedded_first,
    without_one,
)
from pglast import parse_sql
from pglast.visitors import Visitor
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import Jsonb as Json
from uuid_utils import uuid7
from wiretap import Sent, named_queries, numbered

from holdfast.checkpoints.arrays import Encoded

_AS = """
select set_config('statement_timeout', $1, true), set_config('holdfast.tenants', $2, true),
       set_config('role', $3, true), set_config('walls.reached', $4, true)"""
_SLOWEST = "10s"
_OUT_OF_THE_WAY = tuple(
    f"{what} where tenant_id = current_setting('walls.tenant')"
    for what in ("delete from calls", "delete from approvals", "update run_heads set last_flush = null")
)
"""What of a tenant's own would stop a flush that is sent again, because it was written already."""


def stand_alone(admin_url: str) -> None:
    """Let row-level security stand alone in a database: without checks, foreign keys, triggers, and the unique indexes
    that no statement of ours asks for, what a statement does to the tenant's own rows does not stop it."""
    asked_for = _inferred()
    with psycopg.connect(admin_url, autocommit=True, row_factory=dict_row) as conn:
        for kind in ("f", "c"):
            for row in conn.execute(
                "select conrelid::regclass::text as name, conname from pg_constraint"
                " where contype = %s and connamespace = 'public'::regnamespace and conparentid = 0",
                [kind],
            ).fetchall():
                drop = sql.SQL("alter table {} drop constraint {}")
                conn.execute(drop.format(sql.Identifier(row["name"]), sql.Identifier(row["conname"])))
        for row in conn.execute(_UNIQUE).fetchall():
            if (row["name"], frozenset(row["columns"])) not in asked_for:
                what = "alter table {} drop constraint {}" if row["constrained"] else "drop index {1}"
                conn.execute(sql.SQL(what).format(sql.Identifier(row["name"]), sql.Identifier(row["index"])))
        for name in tables(conn):
            conn.execute(sql.SQL("alter table {} disable trigger user").format(sql.Identifier(name)))


_UNIQUE = """
select c.relname as name, i.relname as index,
       exists (select from pg_constraint where conindid = i.oid) as constrained,
       array(select a.attname::text from pg_attribute a
              where a.attrelid = c.oid and a.attnum = any(x.indkey)) as columns
  from pg_index x join pg_class c on c.oid = x.indrelid join pg_class i on i.oid = x.indexrelid
 where x.indisunique and not x.indisprimary and c.relnamespace = 'public'::regnamespace"""


def _inferred() -> set[tuple[str, frozenset[str]]]:
    """The tables and columns that `on conflict` names."""
    found: set[tuple[str, frozenset[str]]] = set()

    class Inserts(Visitor):  # type: ignore[misc]
        def visit_InsertStmt(self, _: Any, node: Any) -> None:  # noqa: N802
            if node.onConflictClause is not None and node.onConflictClause.infer is not None:
                columns = frozenset(element.name for element in node.onConflictClause.infer.indexElems)
                found.add((node.relation.relname, columns))

    for query in named_queries().values():
        Inserts()(parse_sql(numbered(query)))
    return found


def ripen(admin_url: str) -> None:
    """Let every run be held as it last was, and what has ended be due: so what was sent can be sent again."""
    with psycopg.connect(admin_url, autocommit=True) as conn:
        conn.execute(
            "insert into leases (run_id, tenant_id, epoch, worker_id, expires_at)"
            " select run_id, tenant_id, epoch, 'worker', 'infinity' from runs on conflict do nothing"
        )
        conn.execute("""update tenants set retention = '{"events_days": 0, "contents_days": 0}'""")


def tables(conn: psycopg.Connection[Any]) -> list[str]:
    """The tables whose rows have a tenant."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return [str(name) for (name,) in cursor.execute(_TABLES).fetchall()]


def without_others(admin_url: str, tenant: str, *, but: Iterable[str] = ()) -> None:
    """Leave one tenant's rows alone in a database, `but` in those tables."""
    with psycopg.connect(admin_url) as conn:
        conn.execute("set session_replication_role = replica")  # without triggers and foreign keys
        for name in set(tables(conn)) - set(but):
            conn.execute(sql.SQL("delete from {} where tenant_id <> %s").format(sql.Identifier(name)), [tenant])


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TELLING = re.compile(rf"{_ID.pattern}|[0-9a-f]{{64}}")
REFUSED = "42501"
"""Insufficient privilege: also what row-level security says of a row that may not be written."""
_FEW = 8
"""Of a statement with so many conditions each is taken out alone, too; of others those that must be."""
_WRITTEN_TWICE = ("21000", "23505")


@dataclass(frozen=True)
class Answer:
    """What came of a statement."""

    error: str | None
    """Its state, and what Postgres said."""
    rows: Sequence[tuple[Any, ...]] = ()
    count: int = -1
    changed: frozenset[str] = frozenset()
    """Tables in which a row of another tenant is not as it was, or has come, or gone."""
    locked: frozenset[str] = frozenset()
    """Tables in which a row of another tenant was locked."""
    tainted: frozenset[str] = frozenset()
    """Tables in which a row of the tenant's own has another's name in it."""
    reached: bool = True
    """Whether a function came to what was changed in it."""

    @property
    def text(self) -> str:
        return "\n".join(_flat(value) for value in [self.error, *self.rows])


_State = Mapping[str, tuple[Any, Any, int]]


@dataclass
class Court:
    """Tries statements of one tenant in a database that it shares, and in one that it has for itself."""

    shared: psycopg.Connection[Any]
    alone: psycopg.Connection[Any]
    tenant: str
    others: tuple[str, ...]
    tables: Sequence[str] = field(init=False)
    functions: Mapping[str, str] = field(init=False)
    """Ours in PL/pgSQL, by name: their definitions."""
    leaks: list[str] = field(default_factory=list)
    came_to: Counter[str] = field(default_factory=Counter)
    _before: _State = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = tables(self.shared)
        self.functions = dict(self.shared.execute(_FUNCTIONS).fetchall())
        theirs, own = self._rows(self.others), self._rows((self.tenant,))
        self._theirs = self._telling(theirs) - self._telling(own)
        self._standins = _standins(own, theirs, self.tenant, self.others[0])
        once = {"calls": "call_id", "approvals": "approval_id"}
        self._written_once = {json.loads(row)[key] for name, key in once.items() for row in own[name]}
        self._started = datetime.now(UTC)
        for conn in (self.shared, self.alone):
            conn.adapters.register_dumper(Encoded, _AsItIs)
            conn.execute("select set_config('walls.tenant', $1, false)", [self.tenant])

    @contextmanager
    def without_wall(self, name: str) -> Iterator[None]:
        """A table for which row-level security is switched off."""
        alter = sql.SQL("alter table {} {} row level security")
        for conn in (self.shared, self.alone):
            conn.execute(alter.format(sql.Identifier(name), sql.SQL("disable")))
        try:
            yield
        finally:
            for conn in (self.shared, self.alone):
                conn.execute(alter.format(sql.Identifier(name), sql.SQL("enable")))

    def missing(self) -> list[str]:
        """The tables in which one of the tenants has no row, so that nothing could be seen there."""
        found = []
        for name in self.tables:
            query = sql.SQL("select array_agg(distinct tenant_id) from {}").format(sql.Identifier(name))
            [there] = self.shared.execute(query).fetchone() or [None]
            found += [f"{each} in {name}" for each in (self.tenant, *self.others) if each not in (there or ())]
        return found

    def try_all(self, sent: Sent) -> list[str]:
        """Try a statement in all its forms. Returns what could not be tried: conditions that no form was without."""
        forms, errors = list(mutilated(sent)), []
        left = set(forms[0].lacks)
        if len(left) <= _FEW:
            forms += [without_one(sent, number) for number in sorted(left)]
        for statement in forms:
            errors += self._try_form(sent, statement, left)
        for number in sorted(left):
            errors += self._try_form(sent, without_one(sent, number), left)
        answer = self.tried(sent, _of_another(sent, self._standins), sent.tenants)
        if answer.error is not None and answer.error[:5] not in (REFUSED, *_WRITTEN_TWICE):
            return [f"{sent.name}: with another's ids: {answer.error}"]
        return [f"{sent.name}: condition {number}: {'; '.join(errors)}" for number in sorted(left)]

    def _try_form(self, sent: Sent, statement: Statement, left: set[int]) -> list[str]:
        """Try one form, and strike the conditions that it is without off those that are left. Returns its error."""
        answer = self.tried(sent, statement, sent.tenants, compare=True)
        if answer.error is not None and answer.error[:5] in _WRITTEN_TWICE:
            answer = self.tried(sent, in_peace(statement), sent.tenants, compare=True)
        if answer.error is not None and not answer.error.startswith(REFUSED):
            return [f"{statement.form}: {answer.error}"]
        left -= statement.lacks
        return []

    def try_functions(self, statements: Sequence[Sent]) -> list[str]:
        """Try the functions that statements call, with the conditions of one of their own statements taken out at a
        time. Returns what could not be tried: conditions that nothing came to in a form that was without them."""
        not_tried: list[str] = []
        for name, definition in self.functions.items():
            calls = [sent for sent in statements if name in relations(sent.text)]
            soft = definition.replace("raise exception", "raise notice")
            for number, part in enumerate(embedded(soft), 1):
                inside = Sent(part.text, (), (), "", "", f"{name}, statement {number}")
                left, errors = set(range(1, conditions(inside) + 1)), set[str]()
                for form in mutilated(inside) if left else ():
                    errors |= self._try_part(calls, inside, form, with_embedded(soft, part, form.text), left)
                for form in [without_one(inside, number) for number in sorted(left)]:
                    errors |= self._try_part(calls, inside, form, with_embedded(soft, part, form.text), left)
                    peaceful = in_peace(form)
                    errors |= self._try_part(calls, inside, peaceful, with_embedded(soft, part, peaceful.text), left)
                for form in [without_one(inside, number) for number in sorted(left)]:
                    first = with_embedded_first(soft, part, form.text)
                    errors |= self._try_part(calls, inside, form, first, left)
                not_tried += [f"{inside.name}, condition {each}: {'; '.join(sorted(errors))}" for each in sorted(left)]
        return not_tried

    def _try_part(self, calls: Sequence[Sent], inside: Sent, form: Statement, changed: str, left: set[int]) -> set[str]:
        """Try a changed function with each call of it, and strike the conditions that it is without off those that are
        left. Returns what was in the way."""
        errors = set[str]()
        for sent in calls:
            for ready in (_made_ready(sent), ()):
                call = Statement(form.form, sent.text, sent.names, sent.values, form.lacks, (changed, *ready))
                answer = self.tried(replace(sent, name=inside.name), call, sent.tenants, compare=True)
                if answer.reached and (answer.error is None or answer.error.startswith(REFUSED)):
                    left -= form.lacks
                    break
                errors.add(f"{form.form}: {answer.error or 'nothing came to it'}")
        return errors

    def without_tenants(self, name: str) -> str:
        """A function as it would be if none of its statements named a tenant."""
        definition = self.functions[name]
        for part in sorted(embedded(definition), key=lambda part: part.start, reverse=True):
            for form in mutilated(Sent(part.text, (), (), "", "", "")):
                if form.form == "without its tenant":
                    definition = with_embedded(definition, part, form.text)
        return definition

    def try_among_others(self, sent: Sent, keeps: Iterable[str], first: Sequence[str] = ()) -> list[str]:
        """Try a statement with another's ids in a session that works for all tenants, but for the parameters that it
        `keeps`: those that say for whom each part of it is; after what a superuser does `first`. Returns Postgres'
        errors but refusals, if there are any."""
        everyone = ",".join((self.tenant, *self.others))
        standins = {mine: another for mine, another in self._standins.items() if mine != self.tenant}
        # What is there already stays as it is: so calls and questions are tried with ids that nothing has, too.
        unheard_of = {mine: str(uuid7()) for mine in standins if mine in self._written_once}
        ready = (*first, *_made_ready(sent))
        errors: list[str] = []
        for given, allowed in ((standins, (REFUSED, *_WRITTEN_TWICE)), (standins | unheard_of, (REFUSED,))):
            call = replace(_of_another(sent, given, keeps), first=ready)
            answer = self.tried(sent, call, everyone, locks=False)
            errors += [answer.error] if answer.error and answer.error[:5] not in allowed else []
        return errors

    def tried(
        self, sent: Sent, statement: Statement, tenants: str, *, compare: bool = False, locks: bool = True
    ) -> Answer:
        """What came of one form of a statement; whatever it told or did of another tenant's is noted: a lock too,
        unless `locks` do not count. With `compare`, also what it answers otherwise than where it is alone."""
        self._before = self._before or self._state()
        answer = self._answer(self.shared, sent.role, tenants, statement)
        found = [f"changed {name}" for name in sorted(answer.changed)]
        found += [f"locked {name}" for name in sorted(answer.locked) if locks]
        found += [f"put another's into {name}" for name in sorted(answer.tainted)]
        known = "\n".join(_flat(value) for value in statement.values)
        told = self._telling_of(answer.text) - self._telling_of(known)
        found += [f"told {each}" for each in sorted(told)[:3]]
        if compare and answer.error is None:
            lonely = self._answer(self.alone, sent.role, tenants, statement)
            if (lonely.error, lonely.count) != (None, answer.count) or self._seen(lonely) != self._seen(answer):
                found.append("answered otherwise than where there is no other tenant")
        self.leaks += [f"{sent.name}, {statement.form}: {each}" for each in found]
        self.came_to["ran" if answer.error is None else answer.error[:5]] += 1
        return answer

    def _answer(self, conn: psycopg.Connection[Any], role: str, tenants: str, statement: Statement) -> Answer:
        try:
            with conn.transaction(force_rollback=True):
                for first in statement.first:
                    conn.execute(first.encode())
                conn.execute(_AS, [_SLOWEST, tenants, role, "no" if statement.first else "yes"])
                cursor = conn.execute(statement.text.encode(), statement.values, prepare=False)
                answer = Answer(None, cursor.fetchall() if cursor.description else [], cursor.rowcount)
                [reached] = conn.execute("select current_setting('walls.reached')").fetchone() or [""]
                answer = replace(answer, reached=reached == "yes")
                conn.execute("reset role")
                return answer if conn is self.alone else self._compared(answer, self._before, self._state())
        except psycopg.Error as refusal:
            said = " ".join(filter(None, [refusal.diag.message_primary, refusal.diag.message_detail]))
            return Answer(f"{refusal.sqlstate} {said}")

    def _compared(self, answer: Answer, before: _State, after: _State) -> Answer:
        changed = frozenset(name for name in self.tables if before[name][0] != after[name][0])
        locked = frozenset(name for name in self.tables if before[name][1] != after[name][1])
        tainted = frozenset(name for name in self.tables if before[name][2] != after[name][2])
        if locked:
            self._before = {}
        return replace(answer, changed=changed, locked=locked - changed, tainted=tainted)

    def _state(self) -> _State:
        """Of each table: what others' rows are, how they are locked, and how many own ones name another tenant."""
        names = "|".join(other for name in self.others for other in (re.escape(name), name.encode().hex()))
        parts = sql.SQL(" union all ").join(
            sql.SQL(
                "select {}, sum(hashtextextended(t::text || ctid || xmin, 0)) filter (where tenant_id <> $1),"
                " sum(hashtextextended(ctid::text || xmax, 0)) filter (where tenant_id <> $1),"
                " count(*) filter (where tenant_id = $1 and t::text ~ $2) from {} t"
            ).format(sql.Literal(name), sql.Identifier(name))
            for name in self.tables
        )
        return {name: (*state,) for name, *state in self.shared.execute(parts, [self.tenant, names]).fetchall()}

    def _rows(self, tenants: Sequence[str]) -> Mapping[str, list[str]]:
        """The rows of tenants as JSON, by table; by their keys, which are as old as they are."""
        query = sql.SQL("select to_jsonb(t)::text from {} t where tenant_id = any($1) order by {}")
        found = {}
        for name in self.tables:
            key = sql.SQL(", ").join(sql.Identifier(column) for (column,) in self.shared.execute(_KEY, [name]))
            rows = self.shared.execute(query.format(sql.Identifier(name), key), [list(tenants)])
            found[name] = [row[0] for row in rows]
        return found

    def _telling(self, rows: Mapping[str, list[str]]) -> set[str]:
        return {each for written in rows.values() for row in written for each in _TELLING.findall(row)}

    def _telling_of(self, text: str) -> set[str]:
        """What of a text another tenant alone has: an id, a hash, its name."""
        return self._theirs & set(_TELLING.findall(text)) | {name for name in self.others if name in text}

    def _seen(self, answer: Answer) -> list[str]:
        """The rows of an answer, without what depends on when it was given."""
        return sorted(_flat([self._timeless(value) for value in row]) for row in answer.rows)

    def _timeless(self, value: Any) -> Any:
        now = isinstance(value, float) or (isinstance(value, datetime) and value > self._started)
        return "now" if now else value


_TABLES = """
select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid
 where a.attname = 'tenant_id' and c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
 order by 1"""


_FUNCTIONS = """
select proname, pg_get_functiondef(p.oid)
  from pg_proc p join pg_language l on l.oid = p.prolang
 where l.lanname = 'plpgsql' and p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype"""
_KEY = """
select a.attname
  from pg_index x
  join pg_attribute a on a.attrelid = x.indrelid and a.attnum = any(x.indkey)
 where x.indisprimary and x.indrelid = $1::regclass
 order by array_position(x.indkey::int[], a.attnum::int)"""


class _AsItIs(Dumper):
    format = Format.BINARY
    oid = 0  # the statement says which

    def dump(self, obj: Buffer) -> Buffer:
        return obj


def _flat(value: Any) -> str:
    """A value as text, in which whatever is in it can be found."""
    if isinstance(value, Encoded):
        ids = [str(UUID(bytes=found)) for found in _BINARY.findall(value)]
        return "\n".join([_flat(bytes(value)), *ids])
    if isinstance(value, bytes):
        return f"{value.decode('latin-1')} {value.hex()}"
    if isinstance(value, Mapping):
        return _flat([*value, *value.values()])
    if isinstance(value, list | tuple):
        return "\n".join(map(_flat, value))
    return _flat(value.obj) if isinstance(value, Json) else str(value)


def _standins(
    own: Mapping[str, list[str]], theirs: Mapping[str, list[str]], tenant: str, other: str
) -> Mapping[str, str]:
    """For each id in a tenant's rows, the one at the same place in another's, whose story is the same."""
    found = {tenant: other}
    for name, rows in own.items():
        for mine, another in zip(map(json.loads, rows), map(json.loads, theirs[name]), strict=False):
            for column in mine:
                found = dict(_ids_of(mine[column], another[column])) | found
    return found


def _ids_of(mine: Any, another: Any) -> Iterator[tuple[str, str]]:
    if isinstance(mine, list) and isinstance(another, list):
        for one, two in zip(mine, another, strict=False):
            yield from _ids_of(one, two)
    elif isinstance(mine, str) and isinstance(another, str) and _ID.fullmatch(mine) and _ID.fullmatch(another):
        yield mine, another


def _made_ready(sent: Sent) -> tuple[str, ...]:
    """What a superuser does so that a flush does again what it has done, its runs being held as they were then."""
    given = dict(zip(sent.names, sent.values, strict=True))
    if not isinstance(given.get("runs"), Encoded):
        return ()
    runs = [UUID(bytes=found) for found in _BINARY.findall(given["runs"])]
    epochs = [int.from_bytes(found) for found in _BIGINT.findall(given["epochs"])]
    return *_OUT_OF_THE_WAY, *(
        f"update leases set epoch = {epoch} where run_id = '{run}' and tenant_id = current_setting('walls.tenant')"
        for run, epoch in zip(runs, epochs, strict=True)
    )


def _of_another(sent: Sent, standins: Mapping[str, str], keeps: Iterable[str] = ()) -> Statement:
    """The statement as it is, with another tenant's ids in the place of the tenant's own."""
    kept = set(keeps)
    values = (
        value if name in kept else _exchanged(value, standins)
        for name, value in zip(sent.names, sent.values, strict=True)
    )
    return Statement("with another's ids", sent.text, sent.names, tuple(values))


_BINARY = re.compile(rb"\x00\x00\x00\x10(.{16})", re.DOTALL)
"""Sixteen bytes of an array: an id, most likely."""
_BIGINT = re.compile(rb"\x00\x00\x00\x08(.{8})", re.DOTALL)


def _binary(found: bytes, standins: Mapping[str, str]) -> bytes:
    known = str(UUID(bytes=found[4:]))
    return found[:4] + UUID(standins.get(known, known)).bytes


def _exchanged(value: Any, standins: Mapping[str, str]) -> Any:
    if isinstance(value, Json):
        return type(value)(_exchanged(value.obj, standins))
    if isinstance(value, Encoded):
        value = Encoded(_BINARY.sub(lambda found: _binary(found[0], standins), value))
    if isinstance(value, bytes):
        return type(value)(_exchanged(value.decode("latin-1"), standins).encode("latin-1"))
    if isinstance(value, Mapping):
        return {key: _exchanged(one, standins) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_exchanged(one, standins) for one in value)
    if isinstance(value, UUID):
        return UUID(standins.get(str(value), str(value)))
    if not isinstance(value, str):
        return value
    names = [re.escape(name) for name in standins if not _ID.fullmatch(name)]
    return re.sub("|".join([_ID.pattern, *names]), lambda found: standins.get(found[0], found[0]), value)


@contextmanager
def court(shared: DatabaseUrls, alone: DatabaseUrls, tenant: str, others: tuple[str, ...]) -> Iterator[Court]:
    """The court of two databases that are alike but for the others' rows, with row-level security standing alone."""
    with (
        psycopg.connect(shared.admin, autocommit=True, cursor_factory=psycopg.RawCursor) as first,
        psycopg.connect(alone.admin, autocommit=True, cursor_factory=psycopg.RawCursor) as second,
    ):
        yield Court(first, second, tenant, others)
