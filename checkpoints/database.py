"""The way to Postgres: pools, one transaction at a time, each bound to tenants or to the engine's role.

Row-level security decides what a transaction sees: `tenant()` and `tenants()` set whose rows, for that transaction
alone; `engine()` logs in the same way and becomes `holdfast_engine`, which sees columns without payload, of everyone.

Nothing waits forever. The server's own timeouts end a slow statement; a server that has gone deaf (stopped, or cut
off by the network) is found out here: a transaction that is not over in time has its socket shut, and ends as
`StoreUnavailable`. What works for a run waits no longer than its lease or deadline leaves it (`contracts.patience`).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from holdfast.checkpoints.fence import hold
from holdfast.checkpoints.giving_up import Connection as Connection
from holdfast.checkpoints.giving_up import cancellation_kept, hanging_up_after
from holdfast.checkpoints.line import Line
from holdfast.checkpoints.migrating import APPLIED, UPGRADE, application_name
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.reader import CheckpointReader
from holdfast.checkpoints.schema import Phase, compare, newest
from holdfast.checkpoints.sealed_documents import ClearDocuments, Documents, SealedDocuments
from holdfast.checkpoints.translation import translating
from holdfast.checkpoints.unlocking import (
    holds_rows,
    keys_in_use,
    require_complete,
    require_off,
    tenants_of,
    unlocked,
)
from holdfast.checkpoints.vault import Encryption, Vault
from holdfast.checkpoints.writer import CheckpointWriter
from holdfast.contracts.errors import ConfigurationError, InvalidRequest, InvariantViolated
from holdfast.contracts.ids import RunId
from holdfast.contracts.patience import patience_here
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "database.sql")
_OLDEST_SERVER = 160_000
_LISTEN_CHECK_SECONDS = 30.0
_ANSWER_GRACE_SECONDS = 1.0
_PLACE_SECONDS = 2.0
"""Whoever waits for a connection keeps the place in the pool's queue so long, before it is seen whether to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSizes:
    """Connections of this process at most: for requests and runs, and for the engine."""

    app: int = 8
    engine: int = 2

    def __post_init__(self) -> None:
        if min(self.app, self.engine) < 1:
            raise ConfigurationError(f"a pool needs at least one connection; got app={self.app}, engine={self.engine}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTerms:
    """How long is waited, in seconds, before the database counts as unavailable."""

    connect_seconds: float = 5.0
    """For a new connection."""
    acquire_seconds: float = 10.0
    """For a free connection of the pool."""
    statement_seconds: float = 15.0
    """For one statement; ended by the server."""
    lock_seconds: float = 10.0
    """For one lock; ended by the server."""
    writer_lock_seconds: float = 2.0
    """For one lock of the writer that all runs share: they wait for it too."""
    transaction_seconds: float = 30.0
    """For a whole transaction; ended from here by shutting its socket, for a deaf server ends nothing."""
    idle_seconds: float = 10.0
    """For the next word of a client inside a transaction; ended by the server. A process that was stopped just then
    keeps its runs from others for so long, for it has their leases locked."""
    reconnect_seconds: float = 1.0
    """Between two tries to listen again."""

    def __post_init__(self) -> None:
        if not 0 < self.lock_seconds <= self.statement_seconds <= self.transaction_seconds:
            raise ConfigurationError("store timeouts must satisfy 0 < lock <= statement <= transaction")
        waits = (self.connect_seconds, self.acquire_seconds, self.reconnect_seconds, self.writer_lock_seconds)
        if min(*waits, self.idle_seconds) <= 0:
            raise ConfigurationError("store timeouts must be above 0 seconds")

    @classmethod
    def within(cls, lease_seconds: float, *, statement_seconds: float | None = None) -> Self:
        """Terms for a process whose workers count on a lease for so long. A worker that is stopped or cut off cannot
        end what it has begun at the server, and keeps its runs from others as long as that lasts: so no statement, no
        lock and no silence within a transaction may outlast a lease.

        `statement_seconds`: None for what follows from the lease. Raises `ConfigurationError` where it is longer.
        """
        usual = cls()
        statement = min(usual.statement_seconds, lease_seconds) if statement_seconds is None else statement_seconds
        if statement > lease_seconds:
            raise ConfigurationError(
                f"statement_seconds is {statement:g}, and a worker counts on a lease for {lease_seconds:g} s "
                "(lease_ttl_seconds less margin_seconds): one that was stopped within a statement would keep its run "
                f"from others past the end of its lease. Set at most {lease_seconds:g}, or a longer lease"
            )
        lock = min(usual.lock_seconds, statement)
        return cls(
            statement_seconds=statement,
            lock_seconds=lock,
            writer_lock_seconds=min(usual.writer_lock_seconds, lock),
            idle_seconds=min(usual.idle_seconds, lease_seconds),
            transaction_seconds=max(usual.transaction_seconds, statement),
        )


@dataclass(frozen=True, slots=True)
class Hint:
    """What was notified: that there is work, or that someone wants a run to stop."""

    stop: RunId | None = None

    @classmethod
    def of(cls, payload: str) -> "Hint":
        """What a payload says. One that says nothing we know means that there is work."""
        word, _, run_id = payload.partition(" ")
        return cls(stop=RunId(run_id) if word == "stop" and run_id else None)


class Database:
    """One database, as the application's login. Open it in the loop that uses it."""

    def __init__(
        self,
        dsn: str,
        sizes: PoolSizes = PoolSizes(),
        terms: StoreTerms = StoreTerms(),
        *,
        encryption: Encryption | None = None,
    ) -> None:
        self._terms = terms
        self._encryption = encryption
        self._vault: Vault | None = None
        self.documents: Documents = ClearDocuments()
        """How what runs, calls and approvals hold is stored, once it is open."""
        self._dsn = _with_timeouts(dsn, terms)
        self._app = self._pool("app", self._dsn, sizes.app)
        self._engine_dsn = _with_option(self._dsn, "role", "holdfast_engine")
        self._engine = self._pool("engine", self._engine_dsn, sizes.engine)
        self.reader = CheckpointReader(self._line(_planned_once(self._dsn)))
        """The latest checkpoints, read together."""
        self.writer = self._new_writer()
        """What the runs of this process have to write, written together."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self, *, to_encrypt: bool = False) -> None:
        """Check that the database is fit (`verify`), open the pools, and unlock what is encrypted.

        Raises `ConfigurationError` also when it is encrypted with other keys than ours or only in part, which
        whoever opens it `to_encrypt` it will mend.
        """
        await self.verify()
        try:
            await self._app.open()
            await self._engine.open()
            self._vault = await self._unlocked(to_encrypt=to_encrypt)
            self.documents = ClearDocuments() if self._vault is None else SealedDocuments(self._vault)
        except BaseException:
            await self.close()  # nobody else will: whoever opens it in a block does not get into it
            raise

    @property
    def vault(self) -> Vault | None:
        """What is stored is sealed with; None: it is stored in the clear."""
        if self._vault is None and self._encryption is not None:
            raise InvariantViolated("the database was not opened, and must not be written to in the clear")
        return self._vault

    async def close(self) -> None:
        """Write what the writer was given, then close every connection. Whoever still waits for one gets
        `StoreUnavailable`.
        """
        async with asyncio.TaskGroup() as closing:
            for part in (self._engine, self._app, self.reader, self.writer):
                closing.create_task(part.close())

    @asynccontextmanager
    async def tenant(self, tenant_id: str, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """A transaction that sees and writes this tenant's rows alone; committed on leaving.

        With `snapshot` all of it sees one state of the database (repeatable read): it then raises `StoreUnavailable`
        where it would change what someone else has changed meanwhile.
        """
        async with self._transaction(self._app, snapshot=snapshot) as conn:
            await conn.execute(_SQL["work_for_tenants"], {"tenants": _joined([tenant_id])})
            yield conn

    @asynccontextmanager
    async def owned(self, owner: Owner, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """A transaction of an owner, who holds its run until it is committed; after all that was handed in for it to
        the writer. Raises `LeaseLost` when the run has another epoch by now, or ended.
        """
        await self.writer.catch_up(owner)
        async with self.tenant(owner.tenant_id, snapshot=snapshot) as conn:
            await hold(conn, owner)
            yield conn

    @asynccontextmanager
    async def tenants(self, tenant_ids: Sequence[str]) -> AsyncIterator[Connection]:
        """A transaction that sees and writes the rows of these tenants."""
        names = _joined(tenant_ids)
        async with self._transaction(self._app) as conn:
            await conn.execute(_SQL["work_for_tenants"], {"tenants": names})
            yield conn

    @asynccontextmanager
    async def unbound(self) -> AsyncIterator[Connection]:
        """A transaction that sees no tenant's rows: for what belongs to the whole database."""
        async with self._transaction(self._app) as conn:
            yield conn

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Connection]:
        """A transaction under the role `holdfast_engine`: across tenants, without payload; committed on leaving."""
        async with self._transaction(self._engine) as conn:
            yield conn

    def line_apart(self, name: str, *, within_seconds: float) -> Line:
        """A connection of the engine's for one purpose alone, in whatever loop uses it first. A statement on it is
        over, one way or the other, within so many seconds, the making of the connection included. `name` is what is
        added to its `application_name`.
        """
        dsn = make_conninfo(self._engine_dsn, application_name=f"{application_name(newest())} {name}")
        for option in ("statement_timeout", "lock_timeout"):
            dsn = _with_option(dsn, option, f"{within_seconds:g}s")
        return Line(lambda: self._connect(dsn), patience_seconds=within_seconds)

    async def verify(self) -> None:
        """Refuse a database that is not fit to start with.

        Raises `ConfigurationError` for a login that row-level security would not hold for, a server that is too old,
        a schema that lacks a pre migration of this code, and one that newer code has taken something away from;
        `StoreUnavailable` when there is no server.
        """
        with translating():
            async with await self._connect(self._dsn) as conn:
                with self._hanging_up_on(conn):
                    _require_fit(await (await conn.execute(_SQL["describe_login"])).fetchone() or {})
                    pending = compare(await (await conn.execute(APPLIED)).fetchall())
        if missing := [migration for migration in pending if migration.phase is Phase.PRE]:
            raise ConfigurationError(f"the database lacks {len(missing)} migration(s), from {missing[0]} on; {UPGRADE}")

    async def listen(self) -> AsyncGenerator[Hint]:
        """What is notified; and after every (re)connection, that there may be work.

        A hint, never the truth: what was notified while the connection was lost is not repeated, so whoever listens
        polls as well. Never ends by itself; close it with `contextlib.aclosing`.
        """
        while True:
            try:
                async with await self._connect(self._dsn) as conn:
                    with self._hanging_up_on(conn):
                        await conn.execute(_SQL["listen_for_runs"])
                    yield Hint()
                    while True:
                        async with aclosing(conn.notifies(timeout=_LISTEN_CHECK_SECONDS)) as notices:
                            while (notice := await _next(notices)) is not None:
                                yield Hint.of(notice.payload)
                        with cancellation_kept(), self._hanging_up_on(conn):
                            await conn.execute(_SQL["still_there"])
            except psycopg.OperationalError:
                await asyncio.sleep(self._terms.reconnect_seconds)

    async def _unlocked(self, *, to_encrypt: bool) -> Vault | None:
        async with self.unbound() as conn:
            found = await keys_in_use(conn)
        if self._encryption is None:
            require_off(found)
            return None
        in_the_clear = not found and await self._holds_rows()
        if not to_encrypt:
            require_complete(found, in_the_clear=in_the_clear)
        async with self.unbound() as conn:
            return await unlocked(conn, self._encryption, complete=not in_the_clear)

    async def _holds_rows(self) -> bool:
        async with self.engine() as conn:
            tenants = await tenants_of(conn)
        if not tenants:
            return False
        async with self.tenants(tenants) as conn:
            return await holds_rows(conn)

    @asynccontextmanager
    async def _transaction(
        self, pool: AsyncConnectionPool[Connection], *, snapshot: bool = False
    ) -> AsyncIterator[Connection]:
        with cancellation_kept(), translating():
            async with self._checked_out(pool) as conn:
                # The pool's connections are reused: each is given its level anew, which costs no round trip.
                await conn.set_isolation_level(IsolationLevel.REPEATABLE_READ if snapshot else None)
                conn.documents = self.documents
                with self._hanging_up_on(conn):
                    async with conn.transaction():
                        yield conn

    @asynccontextmanager
    async def _checked_out(self, pool: AsyncConnectionPool[Connection]) -> AsyncIterator[Connection]:
        conn = await self._free(pool)
        try:
            yield conn
        finally:
            await pool.putconn(conn)

    async def _free(self, pool: AsyncConnectionPool[Connection]) -> Connection:
        """A connection of the pool, waited for as long as whoever needs it has patience, which may grow."""
        loop, patience = asyncio.get_running_loop(), patience_here()
        ends_at = loop.time() + self._terms.acquire_seconds
        while True:
            left = ends_at - loop.time()
            seconds = left if patience is None else min(left, patience(), _PLACE_SECONDS)
            if seconds <= 0:
                raise psycopg.OperationalError("it was not waited for any longer, by the run's lease or deadline")
            try:
                return await pool.getconn(timeout=seconds)
            except PoolTimeout:
                if left <= seconds:
                    raise

    @contextmanager
    def _hanging_up_on(self, conn: Connection) -> Iterator[None]:
        with hanging_up_after(conn, self._terms.transaction_seconds):
            yield

    def _new_writer(self) -> CheckpointWriter:
        return CheckpointWriter(self._line(_for_writing(_planned_once(self._dsn), self._terms)))

    def _line(self, dsn: str) -> Line:
        # The server itself ends a statement that takes too long, and says so: what says nothing then is deaf.
        answer = self._terms.statement_seconds + _ANSWER_GRACE_SECONDS
        return Line(lambda: self._connect(dsn), patience_seconds=self._terms.transaction_seconds, answer_seconds=answer)

    def _pool(self, name: str, dsn: str, size: int) -> AsyncConnectionPool[Connection]:
        return AsyncConnectionPool(
            dsn,
            connection_class=Connection,
            kwargs={"autocommit": True, "row_factory": dict_row},
            min_size=1,
            max_size=size,
            open=False,
            name=f"holdfast-{name}",
            timeout=self._terms.acquire_seconds,
            check=self._check,
        )

    async def _check(self, conn: Connection) -> None:
        with self._hanging_up_on(conn):
            await conn.execute(_SQL["still_there"])

    async def _connect(self, dsn: str) -> Connection:
        return await Connection.connect(dsn, autocommit=True, row_factory=dict_row)


async def _next(notices: AsyncGenerator[psycopg.Notify]) -> psycopg.Notify | None:
    with cancellation_kept():
        return await anext(notices, None)


def _joined(tenant_ids: Sequence[str]) -> str:
    for tenant_id in tenant_ids:
        if not tenant_id or "," in tenant_id or "\x00" in tenant_id:
            raise InvalidRequest(f"{tenant_id!r} is not a tenant id: it is empty, or holds a comma or a NUL")
    return ",".join(tenant_ids)


def _with_timeouts(dsn: str, terms: StoreTerms) -> str:
    with _readable(dsn):
        dsn = make_conninfo(
            dsn,
            connect_timeout=max(2, round(terms.connect_seconds)),  # libpq's smallest is two seconds
            application_name=application_name(newest()),
            keepalives_idle=15,
            keepalives_interval=5,
            keepalives_count=3,
        )
    for option, value in {
        "statement_timeout": f"{terms.statement_seconds:g}s",
        "lock_timeout": f"{terms.lock_seconds:g}s",
        "idle_in_transaction_session_timeout": f"{terms.idle_seconds:g}s",
        "client_connection_check_interval": "1s",  # what nobody waits for any more is not worked on, nor kept locked
        "timezone": "UTC",
    }.items():
        dsn = _with_option(dsn, option, value)
    return dsn


def _planned_once(dsn: str) -> str:
    return _with_option(dsn, "plan_cache_mode", "force_generic_plan")


def _for_writing(dsn: str, terms: StoreTerms) -> str:
    dsn = _with_option(dsn, "lock_timeout", f"{terms.writer_lock_seconds:g}s")
    # A flush joins short lists to each other and to rows by their key. Postgres, which does not know that they are
    # short, would build hash tables for them, and takes half as long again; and a plan that was made when the tables
    # were young would read them from one end to the other for good.
    for method in ("enable_hashjoin", "enable_mergejoin", "enable_seqscan"):
        dsn = _with_option(dsn, method, "off")
    return dsn


def _with_option(dsn: str, name: str, value: str) -> str:
    options = conninfo_to_dict(dsn).get("options") or ""
    return make_conninfo(dsn, options=f"{options} -c {name}={value}".strip())


@contextmanager
def _readable(dsn: str) -> Iterator[None]:
    try:
        yield
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            "DATABASE_URL cannot be read; it looks like postgresql://holdfast_app:password@host:5432/holdfast"
        ) from error


def _require_fit(facts: Mapping[str, Any]) -> None:
    login = facts.get("login")
    use = "log in as holdfast_app, or as a role that was granted holdfast_app alone"
    if facts["server_version"] < _OLDEST_SERVER:
        found, needed = (version // 10_000 for version in (facts["server_version"], _OLDEST_SERVER))
        raise ConfigurationError(f"this server is Postgres {found}, and holdfast needs {needed} or newer")
    if not facts["upgraded"]:
        raise ConfigurationError(f"the database has no tables of this version of holdfast yet; {UPGRADE}")
    if facts["superuser"] or facts["bypasses_rls"]:
        raise ConfigurationError(f"row-level security does not hold for the login {login!r} (superuser); {use}")
    if facts["owns_the_tables"]:
        raise ConfigurationError(f"the login {login!r} owns the tables and could lift row-level security; {use}")
    if not facts["is_app"]:
        raise ConfigurationError(f"the login {login!r} may not use the tables; {use}")
    if not facts["may_be_engine"] or facts["is_always_engine"]:
        raise ConfigurationError(
            f"the login {login!r} must be able to become holdfast_engine, and not have its rights by itself: "
            f"grant holdfast_engine to {login} with inherit false, set true"
        )
