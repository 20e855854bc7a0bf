"""A project as a user has one: a folder with langgraph.json, holdfast.toml and two graphs, and `holdfast` run in it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """The folder, and the database it uses."""

    folder: Path
    environment: dict[str, str]

    def holdfast(self, *args: str, **environment: str) -> Answer:
        """Run one command as a user does."""
        done = subprocess.run(
            [str(HOLDFAST), *args],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str) -> "subprocess.Popen[str]":
        """Start a command that stays."""
        return subprocess.Popen(
            [str(HOLDFAST), *args], cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        )


def make_project(folder: Path, *, database_url: str) -> Project:
    """A project on a database of its own."""
    (folder / "my_graphs.py").write_text(GRAPHS, encoding="utf-8")
    names = {name: f"my_graphs:{name}" for name in ("thinker", "payer", "asker")}
    (folder / "langgraph.json").write_text(json.dumps({"graphs": names}), encoding="utf-8")
    (folder / "holdfast.toml").write_text(SETTINGS, encoding="utf-8")
    # Wide, so that tables are not folded; the graphs' script is imported by name, as an installed package would be.
    environment = os.environ | {"DATABASE_URL": database_url, "COLUMNS": "200", "PYTHONPATH": str(folder)}
    return Project(folder, environment)
