"""A whole run under a key: nobody who reads the database reads what it was about."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from fix_database import DatabaseUrls, encrypting
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from offices import LEASE_SECONDS, Office
from projects import standing_in
from psycopg import sql
from typing_extensions import TypedDict

from holdfast import RunContext, RunStatus, ToolCall, govern, open_runtime, tool
from holdfast.checkpoints.vault import Encryption
from holdfast.contracts.errors import ConfigurationError, SealBroken
from holdfast.contracts.events import Event
from holdfast.contracts.ids import TenantId
from holdfast.contracts.tenancy import RetentionTerms, Tenant
from holdfast.testing.invariants import assert_invariants

IN_TIME = 20.0
TABLES = ("events", "runs", "calls", "approvals", "checkpoints", "checkpoint_blobs", "checkpoint_writes")
WORDS = {
    "input": "weasel",
    "setting of the context": "heron",
    "prompt": "badger",
    "answer of a model": "magpie",
    "argument of a tool": "stoat",
    "result of a tool": "otter",
    "changed argument": "marten",
    "output": "gannet",
    "reason of a failure": "puffin",
}


def key(key_id: str) -> str:
    return b64encode(key_id.encode().ljust(32, b".")).decode()


KEYS = {"keys": {"k1": key("k1")}}


@pytest.fixture
def encryption() -> Encryption | None:
    return encrypting("k1")


class Context(RunContext):
    setting: str = ""


class State(TypedDict, total=False):
    text: str
    paid: str


def answer(request: Any) -> str:
    return "magpie"


@tool(effect="external", idempotent=True)
async def pay(amount: str, *, call: ToolCall) -> dict[str, str]:
    """Pay an amount."""
    return {"paid": f"otter {amount}"}


async def work(state: State, runtime: NodeRuntime[Context]) -> State:
    reply = await runtime.context.models.call([{"role": "user", "content": f"badger {state['text']}"}])
    result = await runtime.context.tools.call("pay", {"amount": f"stoat {reply.content}"})
    return {"paid": f"gannet {result.text}"}


async def fall(state: State) -> State:
    raise ValueError("puffin")


def graph(name: str, node: Any) -> Any:
    builder = StateGraph(State, context_schema=Context)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    return govern(builder.compile(), name=name, tools=[pay], default_model=f"scripted:{__name__}:answer")


def readable(urls: DatabaseUrls) -> list[str]:
    found = bytearray()
    with psycopg.connect(urls.admin) as conn, conn.cursor() as cursor:
        for table in TABLES:
            with cursor.copy(sql.SQL("copy {} to stdout (format binary)").format(sql.Identifier(table))) as rows:
                for data in rows:
                    found += data
    return sorted(what for what, word in WORDS.items() if word.encode() in found)


async def work_through(office: Office, **settings: Any) -> None:
    async with office.open(**settings) as runtime:
        payer, faller = graph("payer", work), graph("faller", fall)
        run = await runtime.start(payer, {"text": "weasel"}, tenant="acme", context={"setting": "heron"})
        [question] = (await run.result(IN_TIME)).approvals
        assert question.args == {"amount": "stoat magpie"}
        await runtime.decide(question.id, "edit", by="dana", args={"amount": "marten"})
        result = await run.result(IN_TIME)
        assert result.status is RunStatus.COMPLETED, result.error
        assert "otter marten" in result.output["paid"]
        failed = await (await runtime.start(faller, {"text": "weasel"}, tenant="acme")).result(IN_TIME)
        assert failed.error is not None
        assert failed.error.message.endswith("puffin")
        report = await runtime.show(run.run_id, tenant="acme")
        assert [call.status for call in report.calls] == ["returned", "returned"]


async def test_nothing_of_a_run_is_readable_in_the_database(office: Office) -> None:
    await work_through(office, encryption=KEYS)
    assert readable(office.urls) == []


async def test_run_that_was_altered_fails_for_a_person_to_see_and_keeps_no_other_waiting(office: Office) -> None:
    async with office.open(worker=False, encryption=KEYS) as runtime:
        payer = graph("faller", fall)
        altered, *others = [await runtime.start(payer, {"text": "weasel"}, tenant="acme") for _ in range(4)]
    await office.alter("update runs set input = '{}' where run_id = %s", altered.run_id)
    async with office.open(graphs=[payer], encryption=KEYS) as runtime:
        for other in others:
            found = await runtime.wait(other.run_id, tenant="acme", timeout=IN_TIME)
            assert found.error is not None
            assert found.error.message.endswith("puffin")
        told: Sequence[Event] = ()
        async with asyncio.timeout(IN_TIME):
            while len(told) < 3:
                told = await runtime.store.events.read(TenantId("acme"), altered.run_id)
        assert [event.kind.value for event in told] == ["run.admitted", "run.claimed", "run.failed"]
        assert told[-1].payload == {"error_type": "permanent_dependency", "step_name": "claim"}
        listed = await runtime.runs(tenant="acme")
        assert [(run.run_id, run.status) for run in listed if run.unreadable] == [(altered.run_id, RunStatus.FAILED)]
        assert len(listed) == 4
        with pytest.raises(SealBroken, match=altered.run_id):
            await runtime.show(altered.run_id, tenant="acme")


async def test_run_under_a_newer_key_is_left_to_a_worker_that_has_it_and_takes_no_place_meanwhile(
    office: Office,
) -> None:
    both, faller = {"keys": {"k1": key("k1"), "k2": key("k2")}, "key_id": "k2"}, graph("faller", fall)
    one_at_a_time = {"lease_ttl_seconds": LEASE_SECONDS, "poll_seconds": 0.1, "slots": 1}
    async with open_runtime(office.settings(encryption=KEYS, worker=one_at_a_time), graphs=[faller]) as old:
        async with office.open(worker=False, encryption=both) as admitting:
            run, *_ = [await admitting.start(faller, {"text": "weasel"}, tenant="acme") for _ in range(3)]
        own = await old.start(faller, {"text": "weasel"}, tenant="acme")
        assert (await own.result(IN_TIME)).status is RunStatus.FAILED
        told: Sequence[Event] = ()
        async with asyncio.timeout(IN_TIME):
            while "run.released" not in [event.kind.value for event in told]:
                told = await old.store.events.read(TenantId("acme"), run.run_id)
    async with office.open(graphs=[faller], encryption=both) as new:
        found = await new.wait(run.run_id, tenant="acme", timeout=IN_TIME)
        assert found.error is not None
        assert found.error.message.endswith("puffin")


@pytest.mark.parametrize("encryption", [None], ids=["in the clear"])
async def test_without_a_key_the_same_search_finds_all_of_it(office: Office) -> None:
    await work_through(office)
    assert readable(office.urls) == sorted(WORDS)


@pytest.mark.parametrize("encryption", [None], ids=["in the clear"])
async def test_nothing_of_a_run_is_readable_once_its_terms_have_taken_contents_and_checkpoints(office: Office) -> None:
    await work_through(office)
    at_once = RetentionTerms(events_days=0, checkpoints_days=0, contents_days=0)
    async with office.open(worker=False, tenants=(Tenant(tenant_id="acme", retention=at_once),)) as runtime:
        while await runtime.store.retention.prune(TenantId("acme")):
            pass
        failed, paid = await runtime.runs(tenant="acme")
        assert (failed.status, paid.status) == (RunStatus.FAILED, RunStatus.COMPLETED)
        report = await runtime.show(paid.run_id, tenant="acme")
        assert [call.status for call in report.calls] == ["returned", "returned"]
        assert [(asked.status, asked.decided_by) for asked in report.approvals] == [("edited", "dana")]
        assert report.budget.spent.tool_calls == 1
    assert readable(office.urls) == []
    await assert_invariants(office.database)


async def test_runtime_without_the_key_does_not_start(office: Office) -> None:
    with pytest.raises(ConfigurationError, match="encrypted, with the key 'k1', and this process has no keys"):
        async with office.open():
            pass


@pytest.mark.parametrize("encryption", [None], ids=["in the clear"])
async def test_database_that_is_in_use_is_encrypted_and_its_key_changed_by_the_command_line(
    office: Office, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await work_through(office)
    await asyncio.to_thread(_at_the_command_line, office, tmp_path, monkeypatch, capsys)
    two = {"keys": {"k2": key("k2")}}
    async with open_runtime(office.settings(encryption=two), serve=False) as runtime:
        [failed, paid] = await runtime.runs(tenant="acme")
        assert "otter marten" in paid.output["paid"]
        assert failed.cause is not None
        assert failed.cause.message.endswith("puffin")


def _at_the_command_line(office: Office, folder: Any, monkeypatch: Any, capsys: Any) -> None:
    with standing_in(folder, office.urls.app, monkeypatch, capsys) as project:
        assert "there is no key" in project.holdfast("db", "encrypt").complaint
        monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEYS", json.dumps({"k1": key("k1")}))
        assert "in the clear" in project.holdfast("runs").complaint
        done = project.holdfast("db", "encrypt", "--json").json
        assert (done["key_id"], done["threads"], done["retired"]) == ("k1", 2, [])
        assert done["rows"] == 5
        assert readable(office.urls) == []
        monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEYS", json.dumps({"k1": key("k1"), "k2": key("k2")}))
        monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEY_ID", "k2")
        assert "k2 writes; k1 only opens" in project.holdfast("doctor").out
        assert "no process needs k1 any more" in project.holdfast("db", "encrypt").out
        assert "all is encrypted with k2" in project.holdfast("db", "encrypt").out
        monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEYS", json.dumps({"k1": key("k1")}))
        monkeypatch.setenv("HOLDFAST_ENCRYPTION__KEY_ID", "k1")
        assert "'k2'" in project.holdfast("runs").complaint
