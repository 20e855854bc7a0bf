"""Every promise has its row in docs/guarantees.md, and every row names tests that there are, or says "not yet"."""

import ast
import re
from functools import cache

import pytest
from documents import ROOT, rows, section, text, ticked

GUARANTEES = [f"G{number}" for number in range(1, 13)]
FAILURE_MODES = [
    "orphan task",
    "runaway agent",
    "provider overload",
    "duplicate side effect",
    "stuck worker",
    "cancellation swallowed",
    "context leak",
    "tool abuse",
    "hidden cost explosion",
    "shutdown corruption",
    "audit gap",
]
CHECKLIST = [
    "no orphan background tasks",
    "every run has deadline and budget",
    "every model call has timeout",
    "every tool call has timeout",
    "side-effecting tools use idempotency",
    "cancellation is propagated",
    "graceful shutdown is tested",
    "worker leases recover after crash",
    "backpressure is enforced",
    "model calls are routed through gateway",
    "tools are routed through executor",
    "policy checks are outside prompts",
    "telemetry includes run/thread/tenant IDs",
    "checkpointing occurs at safe boundaries",
    "tenant isolation is enforced in code",
    "retry policies classify errors",
    "rate limits exist per provider/tenant",
    "budget exhaustion stops execution",
    "human interrupts are durable",
]
QUESTIONS = [
    "What happens under load?",
    "What happens under cancellation?",
    "What happens if the model provider slows down?",
    "What happens if a tool hangs?",
    "What happens if one specialist fails?",
    "What happens if the process crashes after side effect?",
    "What happens during deployment shutdown?",
    "What happens if tenant A floods the system?",
    "What happens if budget is exhausted mid-run?",
    "What happens if telemetry fails?",
    "What happens if a queued run resumes with old code?",
    "What happens if a task is cancelled during checkpoint?",
]
TABLES = {
    "Guarantees": GUARANTEES,
    "Failure modes": FAILURE_MODES,
    "Checklist": CHECKLIST,
    "Questions": QUESTIONS,
}
LEFT_OUT = re.compile(r"mark\.(skip|skipif|xfail|slow)\b")
NAMED = sorted({tick for tick in ticked(text("guarantees.md")) if "::" in tick})


@cache
def collected_from(path: str) -> frozenset[str]:
    """The tests that pytest collects from a file and runs in `make test`, by name, without their parameters."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {name for name, function in functions(tree.body) if not left_out(function)}
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")):
        found |= {f"{cls.name}::{name}" for name, function in functions(cls.body) if not left_out(function)}
    return frozenset() if any(LEFT_OUT.search(mark) for mark in marks_of_all(tree)) else frozenset(found)


def functions(body: list[ast.stmt]) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.name, node) for node in body if isinstance(node, kinds) and node.name.startswith("test_")]


def left_out(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(LEFT_OUT.search(ast.unparse(decorator)) for decorator in function.decorator_list)


def marks_of_all(tree: ast.Module) -> list[str]:
    """The marks that a module puts on all its tests."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return [ast.unparse(node.value) for node in assigned if ast.unparse(node.targets[0]) == "pytestmark"]


@pytest.mark.parametrize("heading", TABLES)
def test_everything_that_is_promised_or_asked_has_its_row(heading: str):
    assert [row[0] for row in rows(section("guarantees.md", heading))] == TABLES[heading]


@pytest.mark.parametrize("heading", TABLES)
def test_every_row_names_tests_or_says_not_yet(heading: str):
    for row in rows(section("guarantees.md", heading)):
        *said, shown_by = row
        pieces = shown_by.split("<br>")
        assert pieces[-1], f"{row[0]}: nothing shows it"
        for piece in pieces:
            assert re.fullmatch(r"`tests/\w+/test_\w+\.py::[\w:]+`|not yet(: .+)?", piece), f"{row[0]}: {piece}"
        assert "not yet" not in " ".join(said), f"{row[0]}: what is missing is said in the last column"


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_is_collected(name: str):
    path, _, test = name.partition("::")
    assert (ROOT / path).is_file(), f"there is no {path}"
    assert test in collected_from(path), f"{path} has no {test} that is always run"


def test_every_question_has_one_sentence_for_an_answer():
    for question, answer, _ in rows(section("guarantees.md", "Questions")):
        assert re.fullmatch(r"[A-Z`][^.?!]+(?:\.\w[^.?!]*)*\.", answer), f"{question} {answer}"


def test_assumptions_are_written_down():
    assert section("guarantees.md", "Assumptions").count("\n- **") >= 5


def test_names_of_tests_are_read_where_they_are():
    assert "test_every_question_has_one_sentence_for_an_answer" in collected_from("tests/contracts/test_guarantees.py")
    assert len(NAMED) > 60
