"""Rows that somebody else has written: whatever they name, nothing is imported, called or unpickled."""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.types import Send

from holdfast.checkpoints.serialization import strict_serializer
from holdfast.contracts.errors import PermanentDependency

CODES = range(10)
"""Of LangGraph's extensions to msgpack (constructors, methods, models, arrays, snapshots), and some that are none."""

TRAP = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
def spring(*args, **kwargs):
    Path(__file__).with_name("called").touch()
class Spring:
    __init__ = construct = model_construct = fromisoformat = spring
"""


@pytest.fixture(autouse=True)
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that tells when it is imported, and when anything in it is called: it must do neither."""
    (tmp_path / "a_trap.py").write_text(TRAP, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert "a_trap" not in sys.modules
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_trap.py"]


def packed(code: int, value: Any) -> bytes:
    return ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(value)))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_the_trap_springs_where_it_is_stepped_on(trap: Path, tmp_path: Path):
    import a_trap

    a_trap.Spring()
    assert {path.name for path in tmp_path.iterdir()} >= {"imported", "called"}
    del sys.modules["a_trap"]
    for path in set(tmp_path.iterdir()) - {tmp_path / "a_trap.py"}:
        path.unlink() if path.is_file() else [*map(Path.unlink, path.iterdir()), path.rmdir()]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", ["spring", "Spring", "Spring.__init__"])
@pytest.mark.parametrize("given", ["x", ["x"], {"x": 1}])
def test_class_that_no_graph_declares_comes_back_as_what_it_was_made_of(code: int, name: str, given: Any):
    value = strict_serializer().loads_typed(("msgpack", packed(code, ("a_trap", name, given, "construct"))))
    assert value in (given, None) or value.value == ["a_trap", name, given, "construct"]


@pytest.mark.parametrize("lc", [1, 2, 3, "1", None])
@pytest.mark.parametrize("kind", ["constructor", "secret", "not_implemented"])
@pytest.mark.parametrize(
    "path",
    [
        ["a_trap", "Spring"],
        ["langchain_core", "a_trap", "Spring"],
        ["langchain", "prompts", "prompt", "PromptTemplate"],
        ["langchain_core", "runnables", "base", "RunnableLambda"],
        ["HOME"],
        "messages",
        [["messages"]],
    ],
)
def test_constructor_in_json_stays_json(lc: Any, kind: str, path: Any):
    value = {"lc": lc, "type": kind, "id": path, "args": ["x"], "kwargs": {"template": "x"}, "method": "construct"}
    assert strict_serializer().loads_typed(("json", as_json({"deep": [value]}))) == {"deep": [value]}


def test_message_of_an_old_checkpoint_is_read():
    old = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"],
           "kwargs": {"content": "hello"}}  # fmt: skip
    assert strict_serializer().loads_typed(("json", as_json([old]))) == [HumanMessage("hello")]


def test_pickle_is_never_read():
    class Armed:
        def __reduce__(self) -> Any:
            return __import__, ("a_trap",)

    with pytest.raises(PermanentDependency, match="'pickle', which is never read"):
        strict_serializer().loads_typed(("pickle", pickle.dumps(Armed())))


def nested(depth: int) -> list[tuple[str, str, bytes]]:
    snapshot = constructor = b"\xc0"
    for _ in range(min(depth, 2_000)):
        snapshot = ormsgpack.packb(ormsgpack.Ext(7, snapshot))
        constructor = ormsgpack.packb(ormsgpack.Ext(2, b"\x93\xa6a_trap\xa6spring" + constructor))
    return [
        ("lists", "msgpack", b"\x91" * depth + b"\xc0"),
        ("maps", "msgpack", b"\x81\xa1k" * depth + b"\xc0"),
        ("json", "json", b"[" * depth + b"]" * depth),
        ("snapshots", "msgpack", snapshot),
        ("constructors", "msgpack", constructor),
    ]


@pytest.mark.parametrize(("what", "kind", "data"), [case for depth in (1_500, 1_000_000) for case in nested(depth)])
def test_nesting_without_end_is_refused_or_cut(what: str, kind: str, data: bytes):
    try:
        value = strict_serializer().loads_typed((kind, data))
    except PermanentDependency:
        return
    assert value is None or isinstance(value, str)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x92", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1"],
    ids=["nothing", "cut off", "four billion items", "four billion keys", "four gigabytes", "no msgpack"],
)
def test_what_is_cut_off_or_claims_too_much_is_refused(data: bytes):
    with pytest.raises(PermanentDependency, match="a stored value cannot be read"):
        strict_serializer().loads_typed(("msgpack", data))


def test_array_of_objects_is_not_made():
    assert strict_serializer().loads_typed(("msgpack", packed(6, ("|O", (1,), "C", b"\x00" * 8)))) is None


@given(st.sampled_from(["json", "msgpack", "bytes", "null", "pickle", "", "msgpack+aes"]), st.binary(max_size=60))
def test_whatever_the_bytes_are_they_are_read_or_refused_in_our_words(kind: str, data: bytes):
    try:
        strict_serializer().loads_typed((kind, data))
    except PermanentDependency as refused:
        assert refused.facts["kind"] == kind  # noqa: PT017  # most of what is drawn is read


def test_what_langgraph_needs_is_read_as_it_was():
    here = strict_serializer()
    for value in (Send("node", {"x": 1}), HumanMessage("hello", id="1"), {1, 2}, b"x", None, {"lc": 1, "id": "mine"}):
        assert here.loads_typed(here.dumps_typed(value)) == value
