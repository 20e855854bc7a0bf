"""Back in a run's history and on from it, by the command line: real settings, a real database."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_database import DatabaseUrls
from projects import Project, standing_in

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.retention import PostgresRetention
from holdfast.contracts.ids import TenantId


@pytest.fixture
def project(
    tmp_path: Path,
    database_urls: DatabaseUrls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Project]:
    with standing_in(tmp_path, database_urls.app, monkeypatch, capsys) as project:
        yield project


def asked(project: Project) -> tuple[str, str]:
    """A run that waits for leave to pay, and what it asks."""
    answer = project.holdfast("run", "payer", "--input", '{"text": "12.00"}', "--json")
    assert answer.code == 3, answer.err
    return answer.json["run_id"], answer.json["approvals"][0]["id"]


def test_history_is_listed_and_a_state_of_it_shown(project: Project) -> None:
    run_id, approval = asked(project)
    assert project.holdfast("approve", approval, "--by", "dana").code == 0
    entries = project.holdfast("history", run_id, "--by", "olga", "--json").json
    assert [(entry["step"], entry["next"], entry["run_id"]) for entry in entries] == [
        (1, [], run_id),
        (0, ["work"], run_id),
        (-1, ["__start__"], run_id),
    ]
    assert [one["node"] for one in entries[0]["written"]] == ["work"]
    listed = project.holdfast("history", run_id, "--by", "olga", "--limit", "1").out
    assert entries[0]["checkpoint_id"] in listed
    assert entries[1]["checkpoint_id"] not in listed
    before = project.holdfast("show", run_id, "--at", entries[1]["checkpoint_id"], "--by", "olga")
    assert before.json == {"text": "12.00"}
    assert "paid" in project.holdfast("show", run_id, "--at", entries[0]["checkpoint_id"], "--by", "olga").out


def test_fork_is_asked_for_itself_and_can_have_another_state(project: Project) -> None:
    run_id, approval = asked(project)
    assert project.holdfast("approve", approval, "--by", "dana").code == 0
    [_, before, _] = project.holdfast("history", run_id, "--by", "olga", "--json").json
    fork = project.holdfast(
        "fork", run_id, "--at", before["checkpoint_id"], "--values", '{"text": "7.00"}', "--by", "olga", "--json"
    )
    assert fork.code == 3, fork.err
    [question] = fork.json["approvals"]
    assert question["args"] == {"amount": "7.00"}
    assert question["id"] != approval
    assert '"7.00"' in project.holdfast("approve", question["id"], "--by", "dana", "--json").json["output"]["answer"]
    shown = project.holdfast("show", fork.json["run_id"], "--json").json
    assert (shown["forked_from"], shown["forked_at"]) == (run_id, before["checkpoint_id"])


def test_cancelled_run_is_resumed_as_a_new_one(project: Project) -> None:
    run_id, _ = asked(project)
    assert project.holdfast("resume", run_id, "--by", "olga").code == 2, "it has not ended"
    assert project.holdfast("cancel", run_id, "--by", "dana").code == 0
    queued = project.holdfast("resume", run_id, "--by", "olga", "--detach", "--json")
    assert (queued.code, queued.json["status"], queued.json["resumed_from"]) == (0, "queued", run_id)
    again = project.holdfast("resume", run_id, "--by", "olga")
    assert (again.code, "was followed by" in again.complaint) == (2, True)


def test_replay_says_by_its_exit_code_whether_the_code_does_the_same(project: Project) -> None:
    run_id, approval = asked(project)
    waiting = project.holdfast("replay", run_id, "--by", "olga", "--json")
    assert (waiting.code, waiting.json["same"], waiting.json["status"]) == (0, True, "interrupted")
    assert project.holdfast("approve", approval, "--by", "dana").code == 0
    same = project.holdfast("replay", run_id, "--by", "olga")
    assert (same.code, "does the same" in same.out, "replayed  work  pay  returned" in same.out) == (0, True, True)
    changed = (
        (project.folder / "my_graphs.py")
        .read_text(encoding="utf-8")
        .replace('"amount": state["text"]', '"amount": "1.00"')
    )
    (project.folder / "my_graphs.py").write_text(changed, encoding="utf-8")
    sys.modules.pop("my_graphs")
    other = project.holdfast("replay", run_id, "--by", "olga")
    assert (other.code, "differs   node work: it no longer asks for pay as it had asked" in other.out) == (1, True)
    told = project.holdfast("replay", run_id, "--by", "olga", "--json").json
    assert told["stopped_at"]["node"] == "work"
    assert told["graph_version"] != told["recorded_version"]
    assert [call["name"] for call in told["left_out"]] == ["pay"]


def test_who_may_not_and_what_is_not_there_is_said_in_a_line(project: Project) -> None:
    run_id, _ = asked(project)
    denied = project.holdfast("fork", run_id, "--by", "dana")
    assert (denied.code, "admin or operator" in denied.complaint) == (2, True)
    nobody = project.holdfast("show", run_id, "--at", "1f0")
    assert (nobody.code, "who looks" in nobody.complaint) == (2, True)
    nothing = project.holdfast("show", run_id, "--at", "1f0", "--by", "olga")
    assert (nothing.code, "has no checkpoint '1f0'" in nothing.complaint) == (2, True)
    list_given = project.holdfast("fork", run_id, "--by", "olga", "--values", "[]")
    assert (list_given.code, "--values must be a JSON object" in list_given.complaint) == (2, True)


def test_run_whose_contents_were_pruned_is_shown_without_them_and_nothing_goes_back_in_it(
    project: Project, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_TENANTS", '[{"tenant_id": "default", "retention": {"contents_days": 0}}]')
    run_id, approval = asked(project)
    assert project.holdfast("approve", approval, "--by", "dana").code == 0
    assert '"12.00"' in project.holdfast("show", run_id).out
    asyncio.run(prune(database_urls.app))
    shown = project.holdfast("show", run_id)
    assert '"12.00"' not in shown.out
    [contents] = [line for line in shown.out.splitlines() if line.startswith("contents")]
    assert "by its tenant's terms of retention" in contents
    assert "returned, pruned" in shown.out
    assert "approved by dana: pay (pruned on " in shown.out
    told = project.holdfast("show", run_id, "--json").json
    at = told["contents_pruned_at"]
    assert at is not None
    assert [part["contents_pruned_at"][:19] for part in (*told["calls"], *told["approvals"])] == [at[:19]] * 2
    for command in ("replay", "fork"):
        refused = project.holdfast(command, run_id, "--by", "olga")
        assert (refused.code, "were pruned on" in refused.complaint, "contents_days" in refused.complaint) == (
            2,
            True,
            True,
        )


async def prune(url: str) -> None:
    async with Database(url) as database:
        assert await PostgresRetention(database).prune(TenantId("default"))


UNNAMED = """
from langgraph.graph import START, StateGraph

from holdfast import RunContext, govern
from my_graphs import State, pay, spend

builder = StateGraph(State, context_schema=RunContext)
builder.add_node("work", spend)
builder.add_edge(START, "work")
graph = govern(builder.compile(), tools=[pay])
"""


def test_graph_that_its_author_gave_no_name_is_found_again_by_every_command(project: Project) -> None:
    (project.folder / "unnamed.py").write_text(UNNAMED, encoding="utf-8")
    (project.folder / "langgraph.json").write_text(json.dumps({"graphs": {"desk": "unnamed:graph"}}), encoding="utf-8")
    waiting = project.holdfast("run", "desk", "--input", '{"text": "12.00"}', "--json")
    assert waiting.code == 3, waiting.err
    run_id, [question] = waiting.json["run_id"], waiting.json["approvals"]
    approved = project.holdfast("approve", question["id"], "--by", "dana", "--json")
    assert (approved.code, approved.json["status"]) == (0, "completed")
    [_, before, _] = project.holdfast("history", run_id, "--by", "olga", "--json").json
    at = ("--at", before["checkpoint_id"], "--by", "olga")
    assert project.holdfast("show", run_id, *at).json == {"text": "12.00"}
    assert project.holdfast("replay", run_id, "--by", "olga").code == 0
    assert project.holdfast("fork", run_id, *at).code == 3
    assert "desk, whose runs are called LangGraph" in project.holdfast("doctor").out
    sys.modules.pop("unnamed")
