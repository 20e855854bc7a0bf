"""The public face of holdfast on a database of the test's own."""

import os
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from fix_database import DatabaseUrls

from holdfast import Principal, open_runtime
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.saver import saver_for
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.runs import owner_of
from holdfast.contracts.tenancy import Tenant
from holdfast.runtime.runtime import Runtime
from holdfast.server.settings import Settings, load_settings

HERE = Path(__file__).parent

PEOPLE = {
    "dana": Principal(user_id="dana", tenants=("acme",), roles=("approver",)),
    "olga": Principal(user_id="olga", tenants=("acme",), roles=("operator",)),
    "clark": Principal(user_id="clark", tenants=("acme",), roles=("clerk",)),
    "mallory": Principal(user_id="mallory", tenants=("bolt",), roles=("approver", "admin")),
}
TENANTS = (Tenant(tenant_id="acme"), Tenant(tenant_id="bolt"))
LEASE_SECONDS = 2.0


class Office:
    """Where runs are started: a database, its tenants acme and bolt, and their people."""

    def __init__(self, urls: DatabaseUrls, database: Database) -> None:
        self.urls = urls
        self.database = database

    def open(
        self, *, graphs: Iterable[Any] = (), worker: bool = True, **settings: Any
    ) -> AbstractAsyncContextManager[Runtime]:
        """`open_runtime` on this database, with short leases and quick polling."""
        return open_runtime(self.settings(**settings), graphs=graphs, serve=worker)

    def settings(self, **settings: Any) -> Settings:
        """The settings that `open` uses."""
        standard = {
            "DATABASE_URL": self.urls.app,
            "tenants": TENANTS,
            "principals": PEOPLE,
            "worker": {"lease_ttl_seconds": LEASE_SECONDS, "poll_seconds": 0.1},
        }
        return load_settings(**standard | settings)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a process of its own that works on this database."""
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "DATABASE_URL": self.urls.app, "PYTHONPATH": os.pathsep.join(paths), **more}

    async def checkpoints(self, runtime: Runtime, run_id: str, tenant: str = "acme") -> list[Any]:
        """The checkpoints of a run's thread through LangGraph's own interface, newest first."""
        run = await runtime.store.runs.get(TenantId(tenant), RunId(run_id))
        saver = saver_for(self.database, owner_of(run))
        return [each async for each in saver.alist({"configurable": {"thread_id": run.thread_id}})]

    async def alter(self, statement: LiteralString, *values: object) -> None:
        """Change the tables as nobody else may: mostly to let time pass."""
        async with await psycopg.AsyncConnection.connect(self.urls.admin, autocommit=True) as conn:
            await conn.execute(statement, values)
