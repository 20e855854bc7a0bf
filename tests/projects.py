"""A project as a user has one: a folder with langgraph.json, holdfast.toml and two graphs, and `holdfast` run in it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.server.cli import main

HOLDFAST = Path(sys.executable).with_name("holdfast")

GRAPHS = '''
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from holdfast import RunContext, ToolCall, govern, tool


class State(TypedDict, total=False):
    text: str
    answer: str


def script(request):
    return "answered: " + str(request.messages[-1]["content"])


async def think(state: State, runtime: Runtime[RunContext]) -> State:
    reply = await runtime.context.models.call(
        [{"role": "user", "content": state["text"]}], agent="thinker", prompt_version="1"
    )
    return {"answer": reply.content}


@tool(effect="destructive", idempotent=True)
async def pay(amount: str, *, call: ToolCall) -> dict:
    """Pay an amount."""
    return {"paid": amount}


async def spend(state: State, runtime: Runtime[RunContext]) -> State:
    result = await runtime.context.tools.call("pay", {"amount": state["text"]})
    return {"answer": result.text}


def ask(state: State) -> State:
    return {"answer": interrupt({"question": state["text"]})}


def one(name, node, **terms):
    builder = StateGraph(State, context_schema=RunContext)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    return govern(builder.compile(), name=name, default_model=f"scripted:{__name__}:script", **terms)


thinker = one("thinker", think)
payer = one("payer", spend, tools=[pay])
asker = one("asker", ask)
'''

SETTINGS = """
[principals.dana]
tenants = ["default"]
roles = ["approver"]

[principals.olga]
tenants = ["default"]
roles = ["operator"]

[principals.mallory]
tenants = ["default"]
"""


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line of a refusal."""
        assert "Traceback" not in self.err
        (line,) = self.err.splitlines()
        assert line.startswith("error: "), line
        return line.removeprefix("error: ")


@dataclass(frozen=True)
class Project:
    """The folder that a test stands in, and the database it uses."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def holdfast(self, *args: str) -> Answer:
        """One command, in this process: what it costs to import everything is paid once."""
        code = main(list(args))
        said = self.capsys.readouterr()
        return Answer(code, said.out, said.err)

    def process(self, *args: str, **environment: str) -> Answer:
        """One command as a user types it."""
        done = subprocess.run(
            [str(HOLDFAST), *args],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str) -> "subprocess.Popen[str]":
        """A command that stays."""
        return subprocess.Popen([str(HOLDFAST), *args], stdout=subprocess.PIPE, text=True)


@contextmanager
def standing_in(
    folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Project]:
    """A project in `folder`, which is the current one for the block."""
    (folder / "my_graphs.py").write_text(GRAPHS, encoding="utf-8")
    names = {name: f"my_graphs:{name}" for name in ("thinker", "payer", "asker")}
    (folder / "langgraph.json").write_text(json.dumps({"graphs": names}), encoding="utf-8")
    (folder / "holdfast.toml").write_text(SETTINGS, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "200")  # so that no table is folded
    yield Project(folder, capsys)
    sys.modules.pop("my_graphs", None)
