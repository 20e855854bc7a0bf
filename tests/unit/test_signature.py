"""The version of a graph that names none: which edits of a project change it, and that nothing else does."""

import importlib
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from holdfast import govern
from holdfast.contracts.errors import InvalidRequest

PROJECT = {
    "desk/__init__.py": "",
    "desk/words.txt": "Answer in one sentence.",
    "desk/state.py": '''
import operator
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

from pydantic import BaseModel, Field, field_validator
from typing_extensions import NotRequired, TypedDict


def newest(old, new):
    return new or old


class Mood(Enum):
    CALM = "calm"
    ANGRY = "angry"


class Item(BaseModel):
    """What was bought."""

    name: str = Field(description="as on the invoice", max_length=80)
    count: int = 1

    @field_validator("count")
    @classmethod
    def positive(cls, count):
        return max(count, 1)


@dataclass
class Notes:
    lines: list = field(default_factory=list)
    mood: Mood = Mood.CALM


class State(TypedDict):
    text: str
    item: NotRequired[Item]
    log: Annotated[list, operator.add]
    last: Annotated[str, newest]


class Settings(BaseModel):
    tone: str = "kind"
''',
    "desk/prompts.py": '''
from pathlib import Path

HOUSE = "You work at Fernwell."
SYSTEM = f"""{HOUSE}
Be brief."""
WORDS = (Path(__file__).parent / "words.txt").read_text()
FOLDER = {str(Path(__file__).parent / "cache"): str(Path(__file__).parent / "more")}
TONES = {"kind", "formal", "cheerful", "plain", "warm"}
UNUSED = "nobody reads this"


def system(state):
    return f"{SYSTEM} {WORDS} {FOLDER} {sorted(TONES)}"
''',
    "desk/helpers.py": '''
import functools


def logged(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        print("called")
        return function(*args, **kwargs)

    return inner


def shorten(text, limit=40):
    """Make a text short."""
    # no longer than the limit
    return tidy(text)[:limit]


def tidy(text):
    if not text:
        return shorten("empty")
    return text.strip() if len(text) in {1, 2, 3, 5, 8, 13} else text


def unused():
    return 1


class Clerk:
    manner = "polite"

    def __init__(self, prompt):
        self.prompt = prompt
        self.client = object()

    def work(self, state):
        return {"last": self.phrase(state["text"])}

    def phrase(self, text):
        return f"{self.prompt}: {text}"

    async def __call__(self, state):
        return {"last": self.prompt}
''',
    "desk/later.py": """
from desk.deeper import DEPTH


def later(text):
    return text * DEPTH
""",
    "desk/deeper.py": "DEPTH = 2\n",
    "desk/graph.py": '''
from functools import partial

from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy

from desk import helpers, prompts
from desk.helpers import Clerk, logged
from desk.state import Notes, Settings, State

from holdfast import govern, tool

LIMIT = 10


def made(factor):
    def node(state):
        return {"text": state["text"] * factor}

    return node


def read(state: State) -> State:
    """Read the text."""
    # what it says
    return {"text": helpers.shorten(prompts.system(state), LIMIT)}


@logged
def note(state):
    notes = Notes()
    return {"log": [str(notes)]}


def lazy(state):
    from desk.later import later

    return {"text": later(state["text"])}


def greet(state, greeting):
    return {"text": greeting + state["text"]}


def after(state):
    return "clerk" if state["text"] else END


def failed(state):
    return {"last": "failed"}


@tool(effect="read")
def look_up(order: str) -> str:
    """Look an order up."""
    return find(order)


def inner(state):
    return {"text": "inner"}


below = StateGraph(State).add_node("inner", inner).add_edge(START, "inner").compile()

builder = StateGraph(State, context_schema=Settings)
builder.add_node("read", read)
builder.add_node("note", note)
builder.add_node("made", made(3))
builder.add_node("lazy", lazy)
builder.add_node("greet", partial(greet, greeting="hello "))
builder.add_node("shout", lambda state: {"text": state["text"].upper()})
texts = RunnableLambda(lambda state: state["text"])
builder.add_node("chain", texts | RunnableLambda(lambda text: {"text": text + "!"}))
builder.add_node("clerk", Clerk("Help the customer").work)
builder.add_node("called", Clerk("Call them"))
builder.add_node("below", below)
builder.add_node("last", inner, defer=True)
builder.add_edge(START, "read")
builder.add_edge("read", "note")
builder.add_edge(["note", "read"], "made")
builder.add_edge("made", "lazy")
builder.add_edge("lazy", "greet")
builder.add_edge("greet", "shout")
builder.add_edge("shout", "chain")
builder.add_edge("chain", "below")
builder.add_edge("below", "last")
builder.add_conditional_edges("made", after)
builder.add_edge("clerk", "called")

graph = govern(builder.compile(), name="desk", tools=[look_up])


def find(order):
    return order.title()
''',
}

CHANGES = {
    "a node's code": ("graph.py", 'return {"text": "inner"}', 'return {"text": "changed"}'),
    "a helper in another module": ("helpers.py", "tidy(text)[:limit]", "tidy(text)[limit:]"),
    "a helper's helper": ("helpers.py", "text.strip()", "text.lstrip()"),
    "a helper that stands below the graph": ("graph.py", "order.title()", "order.upper()"),
    "a helper's default": ("helpers.py", "limit=40", "limit=41"),
    "a constant": ("graph.py", "LIMIT = 10", "LIMIT = 11"),
    "a set of constants in code": ("helpers.py", "8, 13}", "8, 21}"),
    "a prompt": ("prompts.py", "Be brief.", "Be kind."),
    "a part of a prompt": ("prompts.py", "work at Fernwell", "work for Fernwell"),
    "a prompt in a file": ("words.txt", "one sentence", "two sentences"),
    "a set of a module": ("prompts.py", '"warm"', '"cold"'),
    "an f-string": ("prompts.py", "{SYSTEM} {WORDS}", "{WORDS} {SYSTEM}"),
    "a tool's code": ("graph.py", "return find(order)", "return find(order) or order"),
    "a tool's docstring": ("graph.py", "Look an order up", "Find an order"),
    "a tool's terms": ("graph.py", 'effect="read"', 'effect="write"'),
    "a tool's parameter": ("graph.py", "order: str", "order: int"),
    "what a closure holds": ("graph.py", "made(3)", "made(4)"),
    "what a partial holds": ("graph.py", 'greeting="hello "', 'greeting="hi "'),
    "a lambda": ("graph.py", ".upper()", ".lower()"),
    "a link of a chain": ("graph.py", 'text + "!"', 'text + "?"'),
    "a prompt that an instance holds": ("graph.py", "Help the customer", "Get rid of the customer"),
    "a prompt that a called object holds": ("graph.py", "Call them", "Call us"),
    "a method that a bound method calls": ("helpers.py", "{self.prompt}: {text}", "{self.prompt} - {text}"),
    "a class's attribute": ("helpers.py", 'manner = "polite"', 'manner = "curt"'),
    "a decorator": ("helpers.py", 'print("called")', 'print("calls")'),
    "a module imported later": ("later.py", "text * DEPTH", "text + str(DEPTH)"),
    "what a module imported later imports": ("deeper.py", "DEPTH = 2", "DEPTH = 3"),
    "a router": ("graph.py", 'if state["text"] else END', 'if state["log"] else END'),
    "a reducer": ("state.py", "new or old", "old or new"),
    "another reducer": ("state.py", "Annotated[list, operator.add]", "Annotated[list, operator.concat]"),
    "a field of the state": ("state.py", "    text: str", "    text: str\n    more: NotRequired[int]"),
    "a field's type": ("state.py", "    text: str", "    text: bytes"),
    "a field that need not be there": ("state.py", "item: NotRequired[Item]", "item: Item"),
    "a model's field": ("state.py", "count: int = 1", "count: int = 2"),
    "a model's description": ("state.py", "as on the invoice", "as on the label"),
    "a model's constraint": ("state.py", "max_length=80", "max_length=90"),
    "a model's docstring": ("state.py", "What was bought.", "What was sold."),
    "a model's validator": ("state.py", "max(count, 1)", "max(count, 2)"),
    "a dataclass's default": ("state.py", "Mood = Mood.CALM", "Mood = Mood.ANGRY"),
    "a dataclass's factory": ("state.py", "default_factory=list", "default_factory=set"),
    "an enumeration": ("state.py", '"calm"', '"quiet"'),
    "the context": ("state.py", 'tone: str = "kind"', 'tone: str = "plain"'),
    "an edge": ("graph.py", 'add_edge("lazy", "greet")', 'add_edge("lazy", "shout")'),
    "a join": ("graph.py", '["note", "read"]', '["note", "greet"]'),
    "a node's name": ("graph.py", '"called"', '"phoned"'),
    "a node more": (
        "graph.py",
        'builder.add_edge("clerk"',
        'builder.add_node("more", inner)\nbuilder.add_edge("clerk"',
    ),
    "a deferred node": ("graph.py", ", defer=True", ""),
    "a conditional edge's destinations": ("graph.py", '"made", after)', '"made", after, ["clerk", "read", END])'),
    "a breakpoint": ("graph.py", "govern(builder.compile()", 'govern(builder.compile(interrupt_before=["read"])'),
    "a subgraph's edge": ("graph.py", 'add_node("inner", inner)', 'add_node("inner", inner).add_node("two", inner)'),
    "an error handler": (
        "graph.py",
        'add_node("note", note)',
        'add_node("note", note, error_handler=failed)',
    ),
}

SAME = {
    "a comment": ("graph.py", "# what it says", "# what the text says\n    # or does not"),
    "a comment in a helper": ("helpers.py", "# no longer than the limit", "# x"),
    "lines above": ("graph.py", "\nfrom functools", "\n# the desk\n\n\nfrom functools"),
    "quotes and brackets": (
        "graph.py",
        '    return {"text": helpers.shorten(prompts.system(state), LIMIT)}',
        "    return {\n        'text': helpers.shorten(\n            prompts.system(state), (LIMIT)\n        ),\n    }",
    ),
    "a docstring's indentation": ("helpers.py", '"""Make a text short."""', '"""\n    Make a text short.\n    """'),
    "a text that does nothing": ("helpers.py", "    return tidy(text)[", '    "a remark"\n    return tidy(text)['),
    "what nobody calls": ("helpers.py", "return 1", "return 2"),
    "what nobody reads": ("prompts.py", "nobody reads this", "and never will"),
    "the order of a set": ("prompts.py", '"kind", "formal"', '"formal", "kind"'),
    "the order in which nodes are added": (
        "graph.py",
        'builder.add_node("read", read)\nbuilder.add_node("note", note)',
        'builder.add_node("note", note)\nbuilder.add_node("read", read)',
    ),
    "how often a node is tried": (
        "graph.py",
        'add_node("read", read)',
        'add_node("read", read, retry_policy=RetryPolicy(max_attempts=9))',
    ),
    "policies": ("graph.py", "tools=[look_up])", "tools=[look_up], policies=['forbid(principal, action, resource);'])"),
    "whom a test stands in for": (
        "graph.py",
        "tools=[look_up])",
        "tools=[look_up], default_model='scripted:desk.x:y')",
    ),
}

SIGN = """
import importlib, os, sys

from langchain_core.runnables import RunnableLambda
from langgraph.graph import StateGraph

from holdfast import govern, tool

for folder in sys.stdin.read().splitlines():
    sys.stdout.flush()
    if (child := os.fork()) == 0:  # each from a process that has seen none of the others
        sys.path[:0] = folder.split(os.pathsep)
        print(importlib.import_module("desk.graph").graph.governance.version)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


def laid_out(folder: Path, edit: tuple[str, str, str] | None = None) -> Path:
    for name, text in PROJECT.items():
        if edit is not None and name == f"desk/{edit[0]}":
            assert edit[1] in text, f"{edit[1]!r} is not in {name}"
            text = text.replace(edit[1], edit[2])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def signatures(folders: list[Path | str], *flags: str, seed: int = 1) -> list[str]:
    signed = subprocess.run(
        [sys.executable, *flags, "-c", SIGN],
        input="\n".join(map(str, folders)),
        env=os.environ | {"PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert signed.returncode == 0, signed.stderr
    found = signed.stdout.split()
    assert len(found) == len(folders), signed.stderr
    return found


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> dict[str, str]:
    """The signature of the project after each edit; that of the unedited under the empty name."""
    edits = {"": None} | CHANGES | SAME
    folders = [laid_out(tmp_path_factory.mktemp("project"), edit) for edit in edits.values()]
    return dict(zip(edits, signatures(folders), strict=True))


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_what_a_graph_does_changes_its_version(edited, what):
    assert edited[what] != edited[""]


def test_no_two_changes_make_the_same_version(edited):
    changed = [edited[what] for what in CHANGES]
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize("what", SAME)
def test_a_change_of_nothing_that_a_graph_does_leaves_its_version(edited, what):
    assert edited[what] == edited[""]


def test_the_version_is_the_same_in_every_process_folder_and_order_of_sets(edited, tmp_path):
    elsewhere = laid_out(tmp_path / "another machine" / "src")
    # The second time from bytecode that was cached, the third with asserts taken out.
    assert signatures([elsewhere, elsewhere], seed=7) == [edited[""]] * 2
    assert signatures([elsewhere], "-O", seed=8) == [edited[""]]


INSTALLED = {
    "desk/graph.py": """
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

import desk_words
import third_party
from holdfast import govern


class State(TypedDict):
    text: str


def node(state: State) -> State:
    return {"text": desk_words.word() + third_party.word()}


graph = govern(StateGraph(State).add_node("node", node).add_edge(START, "node").compile(), name="desk")
""",
    "desk_words.py": "def word():\n    return 'ours'\n",
}


def installed(folder: Path, name: str, files: dict[str, str], *, where: str = "site-packages") -> str:
    """A distribution as pip leaves it."""
    site = folder / where
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    if where == "site-packages":
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files), encoding="utf-8")
    return str(site)


def test_an_installed_project_is_its_own_still_and_other_distributions_are_not(tmp_path):
    """The project is one distribution of two packages; a wheel of it has the version that its checkout has."""

    def laid(name: str, *, ours: str = "ours", others: str = "others", where: str = "site-packages") -> str:
        words = {"desk_words.py": INSTALLED["desk_words.py"].replace("ours", ours)}
        third = {"third_party.py": f"def word():\n    return {others!r}\n"}
        paths = [
            installed(tmp_path / name, "third", third),
            installed(tmp_path / name, "desk", INSTALLED | words, where=where),
        ]
        return os.pathsep.join(dict.fromkeys(paths))

    whole, helper, other, checkout = signatures(
        [laid("whole"), laid("helper", ours="changed"), laid("other", others="changed"), laid("out", where="src")]
    )
    assert helper != whole
    assert other == whole
    assert checkout == whole


def test_the_version_is_marked_so_that_no_range_of_numbers_holds_it(edited):
    assert edited[""].startswith("code-")
    assert len(edited[""]) == len("code-") + 16


class State(TypedDict, total=False):
    text: str


def version_of(node: Any, state: type = State) -> str:
    return govern(StateGraph(state).add_node("node", node).add_edge(START, "node").compile()).governance.version


def test_an_agent_of_langchains_is_known_by_its_prompt_its_tools_and_its_middleware():
    def look_up(order: str) -> str:
        """Look an order up."""
        return order

    def look_out(order: str) -> str:
        """Look an order up."""
        return order.upper()

    class Polite(AgentMiddleware):
        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

        def before_model(self, state: Any, runtime: Any) -> None:
            print(self.words)

    def agent(prompt="Help.", tool=look_up, words="please", key="one"):
        model = FakeListChatModel(responses=[key])
        made = create_agent(model, tools=[tool], system_prompt=prompt, middleware=[Polite(words)])
        return govern(made, name="agent").governance.version

    assert agent() == agent()
    assert len({agent(), agent(prompt="Do not help."), agent(tool=look_out), agent(words="now")}) == 4
    assert agent(key="two") == agent(), "how a model is reached is the machine's affair"


def test_governing_a_graph_does_not_change_its_version_nor_does_doing_it_twice():
    graph = StateGraph(State).add_node("node", lambda state: state).add_edge(START, "node").compile()
    first = govern(graph).governance.version
    assert govern(graph, name="other").governance.version == first


def test_a_file_that_was_edited_since_it_was_imported_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "def node(state):\n    return {'text': 'one'}\n"
    versions = []
    for name, on_disk in (("first", text), ("second", text), ("third", text.replace("one", "two"))):
        (tmp_path / f"signed_{name}.py").write_text(text, encoding="utf-8")
        module = importlib.import_module(f"signed_{name}")
        (tmp_path / f"signed_{name}.py").write_text(on_disk, encoding="utf-8")
        versions.append(version_of(module.node))
    (tmp_path / "signed_fourth.py").write_text(text.replace("one", "two"), encoding="utf-8")
    versions.append(version_of(importlib.import_module("signed_fourth").node))
    first, second, third, fourth = versions
    assert first == second
    assert third not in {first, fourth}, "what runs is the old code, and what can be read is not"


def test_code_without_a_source_is_known_by_its_bytecode():
    def made(body: str) -> Any:
        module: dict[str, Any] = {"__name__": "typed_in"}
        exec(f"def node(state):\n{body}", module)
        return module["node"]

    told = version_of(made("    return {'text': 'one'}"))
    assert told == version_of(made("    # said again\n\n    return {'text': 'one'}"))
    assert told != version_of(made("    return {'text': 'two'}"))
    sets = [version_of(made(f"    return state in {{{words}}}")) for words in ("'a', 'b'", "'b', 'a'", "'b', 'c'")]
    assert sets[0] == sets[1] != sets[2]


def test_two_lambdas_on_a_line_are_told_apart():
    one, two = (lambda state: {"text": "one"}), (lambda state: {"text": "two"})  # fmt: skip
    assert version_of(one) != version_of(two)


def test_nothing_of_the_graphs_is_called():
    class Touchy:
        words = "as they are"

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __hash__(self) -> int:
            raise AssertionError("hashed")

        def __repr__(self) -> str:
            raise AssertionError("shown")

        @property
        def computed(self) -> str:
            raise AssertionError("computed")

        def work(self, state: State) -> State:
            return {"text": self.words}

    touchy = Touchy()
    assert version_of(touchy.work) == version_of(touchy.work)


def test_what_has_no_value_that_is_the_same_everywhere_counts_by_its_name(tmp_path):
    def holding(thing: Any) -> str:
        def node(state: State) -> State:
            return {"text": str(thing)}

        return version_of(node)

    def unreadable() -> list[Any]:
        stream = (number for number in itertools.count())
        return [object(), threading.Lock(), stream, tmp_path / str(id(stream)), iter([1]), {object(): 1}, {object()}]

    for one, other in zip(unreadable(), unreadable(), strict=True):
        assert holding(one) == holding(other)
    assert holding(object()) != holding(threading.Lock())


def test_cycles_and_long_chains_end():
    class Link:
        def __init__(self, next_one: Any) -> None:
            self.next = next_one

        def work(self, state: State) -> State:
            return state

    ring = Link(None)
    ring.next = Link(ring)
    chain = Link(None)
    for _ in range(5_000):
        chain = Link(chain)
    knot: list[Any] = []
    knot.append(knot)
    assert len({version_of(each.work) for each in (ring, chain, Link(knot), Link(None))}) == 4


def test_a_value_without_end_asks_for_a_version():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="version="):
        version_of(lambda state: {"text": str(deep)})
    while deep:  # or its end would recurse as well
        deep = deep.pop()


def test_a_version_that_is_given_is_not_worked_out():
    graph = StateGraph(State).add_node("node", lambda state: state).add_edge(START, "node").compile()
    assert govern(graph, version="2.1.0").governance.version == "2.1.0"
