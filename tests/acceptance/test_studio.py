"""Governance under `langgraph dev`: the server that Studio talks to, started offline with this project's own
langgraph.json, and spoken to through langgraph_sdk."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fix_database import DatabaseUrls
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from holdfast import open_runtime
from holdfast.contracts.approvals import ApprovalStatus
from holdfast.graphs.refund_desk import sample

pytest.importorskip("langgraph_api", reason="needs the extra studio")

LANGGRAPH = Path(sys.executable).with_name("langgraph")
OURS = Path(__file__).parents[2] / "langgraph.json"
START_SECONDS = 90

SETTINGS = """
[principals.studio]
tenants = ["default"]
roles = ["approver"]

[prices."teller:teller-1"]
input_usd_per_million = "1"
output_usd_per_million = "1"
"""

# As somebody else would write it; the one line that is ours is the last.
FOREIGN = '''
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from holdfast import govern


class Teller(BaseChatModel):
    model: str = "teller-1"

    @property
    def _llm_type(self):
        return "teller"

    def _get_ls_params(self, stop=None, **kwargs):
        return {"ls_provider": "teller", "ls_model_name": self.model, "ls_model_type": "chat"}

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        answer = AIMessage("Sent.")
        if not isinstance(messages[-1], ToolMessage):
            wish = {"name": "send_money", "args": {"amount": "12.00"}, "id": "t-1"}
            answer = AIMessage("", tool_calls=[wish])
        return ChatResult(generations=[ChatGeneration(message=answer)])


@tool
def look_up_balance() -> str:
    """Look up the balance."""
    return "100.00"


@tool
def send_money(amount: str) -> str:
    """Send money."""
    return f"sent {amount}"


graph = govern(create_agent(Teller(), [look_up_balance, send_money]), name="teller")
'''

Serve = Callable[..., LangGraphClient]


@pytest.fixture
def serve(tmp_path: Path, database_urls: DatabaseUrls) -> Iterator[Serve]:
    """Starts `langgraph dev` in a folder of its own, and gives a client of it."""
    project = json.loads(OURS.read_text(encoding="utf-8"))
    project["graphs"]["teller"] = "./teller.py:graph"
    (tmp_path / "langgraph.json").write_text(json.dumps(project), encoding="utf-8")
    (tmp_path / "holdfast.toml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "teller.py").write_text(FOREIGN, encoding="utf-8")
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: str) -> LangGraphClient:
        offline = {
            "LANGSMITH_TRACING": "false",
            "LANGGRAPH_CLI_NO_ANALYTICS": "1",
            "DATABASE_URL": database_urls.app,
            "XDG_DATA_HOME": str(tmp_path / "data"),
        }
        port = _free_port()
        with (tmp_path / "server.log").open("wb") as log:
            options = f"dev --no-browser --no-reload --host 127.0.0.1 --port {port}".split()
            started.append(
                subprocess.Popen(
                    [str(LANGGRAPH), *options],
                    cwd=tmp_path,
                    env=os.environ | offline | settings,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        url = f"http://127.0.0.1:{port}"
        _await_ready(started[-1], url, tmp_path / "server.log")
        return get_client(url=url)

    yield start
    for server in started:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


async def test_the_refund_desk_asks_in_our_inbox_and_goes_on_when_studio_answers(
    serve: Serve, database_urls: DatabaseUrls
) -> None:
    async with serve() as studio:
        (assistant,) = await studio.assistants.search(graph_id="refund_desk")
        schemas = await studio.assistants.get_schemas(assistant["assistant_id"])
        assert "model" in _properties(schemas["context_schema"])

        thread = await studio.threads.create()
        await studio.runs.wait(thread["thread_id"], "refund_desk", input={"email": sample("large")})
        interrupt = await _interrupt(studio, thread["thread_id"])
        assert interrupt["value"]["action_requests"][0]["name"] == "issue_refund"

        async with open_runtime(database_url=database_urls.app, serve=False, attached_tenant="default") as runtime:
            (approval,) = await runtime.approvals(tenant="default")
            assert (approval.tool_name, approval.interrupt_id) == ("issue_refund", interrupt["id"])

            answer = {interrupt["id"]: {"decisions": [{"type": "approve"}]}}
            done = await studio.runs.wait(thread["thread_id"], "refund_desk", command={"resume": answer})
            assert done["refund"]["status"] == "paid", done

            report = await runtime.show(approval.run_id, tenant="default")
            assert (report.run.status, report.run.attached) == ("completed", True)
            assert [each.status for each in report.approvals] == [ApprovalStatus.APPROVED]
            assert [each.decided_by for each in report.approvals] == ["studio"]
            assert [call.identity.name for call in report.calls].count("issue_refund") == 1


async def test_an_agent_of_somebody_elses_asks_in_our_inbox_and_ends_at_its_budget_of_one_model_call(
    serve: Serve, database_urls: DatabaseUrls
) -> None:
    async with serve(HOLDFAST_LIMITS__MAX_MODEL_CALLS="1") as studio:
        thread = await studio.threads.create()
        question = {"messages": [{"role": "user", "content": "Send 12.00"}]}
        await studio.runs.wait(thread["thread_id"], "teller", input=question)

        async with open_runtime(database_url=database_urls.app, serve=False, attached_tenant="default") as runtime:
            (approval,) = await runtime.approvals(tenant="default")
            assert (approval.tool_name, approval.args) == ("send_money", {"amount": "12.00"})

            interrupt = await _interrupt(studio, thread["thread_id"])
            answer = {interrupt["id"]: {"decisions": [{"type": "approve"}]}}
            await studio.runs.wait(thread["thread_id"], "teller", command={"resume": answer}, raise_error=False)
            report = await runtime.show(approval.run_id, tenant="default")
            assert report.run.status == "failed"
            assert report.run.cause is not None
            assert report.run.cause.error_type == "budget_exceeded"
            assert report.budget.spent.model_calls == 1
            assert [(call.identity.kind, call.status) for call in report.calls] == [
                ("model", "returned"),
                ("tool", "returned"),
            ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _await_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/ok", timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
        assert server.poll() is None, log.read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < give_up, log.read_text(encoding="utf-8")[-4000:]


async def _interrupt(studio: LangGraphClient, thread_id: str) -> dict[str, Any]:
    """The one question that the thread rests on."""
    state = await studio.threads.get_state(thread_id)
    (interrupt,) = [each for task in state["tasks"] for each in task["interrupts"]]
    return dict(interrupt)


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    """What can be edited."""
    return dict(schema["properties"])
