"""The glossary names everything that the specification names, and what it points to is there."""

import re
from importlib import import_module

import pytest
from documents import ROOT, rows, section, text, ticked

COMPONENTS = [
    "API/Event ingress",
    "Run coordinator",
    "State store",
    "Policy engine",
    "Context builder",
    "Model gateway",
    "Tool executor",
    "Checkpoint manager",
    "Queue/worker pool",
    "Telemetry",
]
NAMES = """
    RunCoordinator Checkpointer EventLog ModelGateway ToolExecutor PolicyEngine BudgetTracker Deadline Worker
    RuntimeContext RuntimeResult TenantContext RunClaim RuntimeBudget BudgetState BudgetExceeded
    ModelRequest ModelResponse ToolRequest ToolResult AllowedCommand RuntimeErrorRecord
    AgentRuntime RunQueue SlidingWindowRateLimiter
    call_with_deadline commit_tool_result_safely run_specialists bounded_gather enforce_budget retry_async
"""
FOLDERS = """
    api/routes.py api/schemas.py
    runtime/coordinator.py runtime/deadlines.py runtime/cancellation.py runtime/budget.py runtime/errors.py
    orchestration/graph.py orchestration/supervisor.py orchestration/transitions.py
    state/models.py state/checkpointer.py state/event_log.py state/migrations.py
    model_gateway/client.py model_gateway/routing.py model_gateway/usage.py
    tools/registry.py tools/executor.py tools/policies.py tools/schemas.py
    policy/engine.py policy/autonomy.py policy/permissions.py
    telemetry/tracing.py telemetry/metrics.py telemetry/audit.py
    workers/runner.py workers/leases.py workers/shutdown.py
    tests/unit/ tests/integration/ tests/simulations/
"""
WORDS = """
    tenant principal graph thread run attempt lease epoch checkpoint superstep interrupt scope call intent outcome
    effect reconcile budget reserve settle release deadline timeout policy verdict autonomy approval decision specialist
    admission quota priority weight drain cancel
"""
NAMED = sorted({tick for tick in ticked(text("glossary.md")) if re.fullmatch(r"[a-z_.]+:\w+", tick)})


@pytest.mark.parametrize("where", NAMED)
def test_what_the_glossary_points_to_is_there(where: str):
    module, _, name = where.partition(":")
    assert hasattr(import_module(f"holdfast.{module}"), name)


def test_the_glossary_points_to_many_things():
    assert len(NAMED) > 60


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("The specification's components", COMPONENTS),
        ("The specification's names", NAMES.split()),
        ("The specification's folders", FOLDERS.split()),
    ],
)
def test_everything_of_the_specification_has_its_place_here(heading: str, expected: list[str]):
    found = rows(section("glossary.md", heading))
    assert sorted(name for row in found for name in row[0].replace("`", "").split(", ")) == sorted(expected)
    for row in found:
        assert ticked(row[1]) or row[1] == "not yet", f"{row[0]} leads nowhere"


def test_every_word_of_the_vocabulary_is_explained():
    explained = {word for row in rows(section("glossary.md", "Words")) for word in row[0].split(", ")}
    assert set(WORDS.split()) <= explained


def test_a_word_is_explained_once():
    words = [word for row in rows(section("glossary.md", "Words")) for word in row[0].split(", ")]
    assert len(words) == len(set(words))


def test_folders_of_tests_that_are_named_are_there():
    named = {
        tick for tick in ticked(section("glossary.md", "The specification's folders")) if tick.startswith("tests/")
    }
    ours = named - {"tests/unit/", "tests/integration/", "tests/simulations/"}
    assert ours
    assert all((ROOT / path).exists() for path in ours)
