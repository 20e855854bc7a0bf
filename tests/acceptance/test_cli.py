"""The command line, as a person and a script use it: real processes, a real database."""

import json
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_database import DatabaseUrls
from projects import Project, standing_in
from versions import leave_as_the_first_version_did

TEXT = '{"text": "12.00"}'


@pytest.fixture
def project(
    tmp_path: Path,
    database_urls: DatabaseUrls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Project]:
    with standing_in(tmp_path, database_urls.app, monkeypatch, capsys) as project:
        yield project


def test_a_run_that_completes_exits_0_and_says_what_it_used(project: Project) -> None:
    answer = project.process("run", "thinker", "--input", TEXT)
    assert (answer.code, answer.err) == (0, "")
    assert "completed" in answer.out
    assert "used 1 model call, 0 tool calls" in answer.out
    assert '"answer": "answered: 12.00"' in answer.out


def test_json_is_one_document_and_the_run_can_be_looked_up_by_it(project: Project) -> None:
    started = project.holdfast(
        "run", "thinker", "--input", TEXT, "--thread", "t-1", "--user", "dana", "--max-steps", "5", "--json"
    )
    assert started.json["status"] == "completed"
    assert started.json["usage"]["model_calls"] == 1
    assert started.json["output"]["answer"] == "answered: 12.00"
    run_id = started.json["run_id"]

    (listed,) = project.holdfast("runs", "--thread", "t-1", "--json").json
    assert (listed["run_id"], listed["status"], listed["user_id"]) == (run_id, "completed", "dana")
    shown = project.holdfast("show", run_id, "--json").json
    assert [(call["kind"], call["status"]) for call in shown["calls"]] == [("model", "returned")]
    assert (shown["limits"]["max_steps"], shown["limits"]["max_model_calls"]) == (5, 50)
    kinds = [event["kind"] for event in project.holdfast("events", run_id, "--json").json]
    assert kinds[0] == "run.admitted"
    assert kinds[-1] == "run.completed"


def test_tables_show_the_run_its_limits_with_defaults_its_calls_and_its_events(project: Project) -> None:
    run_id = project.holdfast("run", "thinker", "--input", TEXT, "--json").json["run_id"]
    assert re.search(rf"{run_id} +completed +thinker", project.holdfast("runs").out)
    shown = project.holdfast("show", run_id).out
    assert re.search(r"model calls +50 +1 +0", shown)
    assert re.search(r"working time +300 s", shown)
    assert re.search(r"model scripted:\S+ +work +thinker +returned", shown)
    assert re.search(r"model\.returned +work", project.holdfast("events", run_id).out)


def test_a_run_that_asks_exits_3_and_the_command_it_prints_carries_it_on(project: Project) -> None:
    asked = project.holdfast("run", "payer", "--input", TEXT)
    assert asked.code == 3
    assert 'pay {"amount": "12.00"}' in asked.out
    command = next(line.strip() for line in asked.out.splitlines() if line.strip().startswith("holdfast approve"))
    approved = project.holdfast(*shlex.split(command.replace("YOU", "dana"))[1:])
    assert (approved.code, approved.err) == (0, "")
    assert '\\"paid\\":\\"12.00\\"' in approved.out


def test_an_approval_can_change_the_arguments_be_refused_and_be_answered(project: Project) -> None:
    def ask(graph: str) -> str:
        return str(project.holdfast("run", graph, "--input", TEXT, "--json").json["approvals"][0]["id"])

    edited = project.holdfast("approve", ask("payer"), "--by", "dana", "--args", '{"amount": "9.00"}', "--json")
    assert edited.json["output"]["answer"] == '{"paid":"9.00"}'
    rejected = project.holdfast("reject", ask("payer"), "--by", "dana", "--message", "too much", "--json")
    assert "too much" in rejected.json["output"]["answer"]
    answered = project.holdfast("approve", ask("asker"), "--by", "dana", "--answer", "forty-two", "--json")
    assert answered.json["output"]["answer"] == "forty-two"


def test_only_someone_entitled_decides_and_only_once(project: Project) -> None:
    approval = project.holdfast("run", "payer", "--input", TEXT, "--json").json["approvals"][0]["id"]
    stranger = project.holdfast("approve", approval, "--by", "eve")
    assert stranger.code == 2
    assert "'eve'" in stranger.complaint
    powerless = project.holdfast("approve", approval, "--by", "mallory")
    assert powerless.code == 2
    assert "needs the role" in powerless.complaint
    assert project.holdfast("reject", approval, "--by", "dana", "--no-wait").code == 0
    again = project.holdfast("approve", approval, "--by", "dana")
    assert again.code == 2
    assert again.complaint


def test_a_queued_run_is_cancelled_and_another_is_served_by_a_worker_that_leaves_when_told(project: Project) -> None:
    unwanted = project.holdfast("run", "thinker", "--input", TEXT, "--detach", "--json").json
    assert unwanted["status"] == "queued"
    cancelled = project.holdfast("cancel", unwanted["run_id"], "--by", "dana", "--reason", "mistyped")
    assert (cancelled.code, "cancelled" in cancelled.out) == (0, True)

    wanted = project.holdfast("run", "thinker", "--input", TEXT, "--detach", "--json").json["run_id"]
    worker = project.start("worker")
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline().startswith("serving thinker, payer, asker")
        give_up = time.monotonic() + 60
        while project.holdfast("show", wanted, "--json").json["status"] != "completed":
            assert time.monotonic() < give_up
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=30) == 0
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["thinkre", "--input", TEXT], 2, "no graph 'thinkre'; langgraph.json names: asker, payer, thinker"),
        (["thinker", "--input", "{text"], 2, "--input is not JSON"),
        (["thinker", "--input", TEXT, "--tenant", "umbrella"], 2, "no tenant 'umbrella'"),
        (["thinker", "--input", TEXT, "--max-model-calls", "0"], 1, "(budget_exceeded)"),
        (["thinker", "--input", TEXT, "--deadline-seconds", "-5"], 2, "--deadline-seconds: "),
    ],
)
def test_what_cannot_be_run_is_one_clear_line(project: Project, args: list[str], code: int, said: str) -> None:
    answer = project.process("run", *args)
    assert answer.code == code, answer.err
    assert said in answer.complaint


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["absent.module:graph", "--input", TEXT], 4, "cannot be imported"),
        (["thinker", "--input", "[1]"], 2, "input"),
        (["thinker", "--input", TEXT, "--user", "eve"], 2, "'eve'"),
        (["thinker", "--input", TEXT, "--max-cost-usd", "none"], 2, "max_cost_usd is None"),
        (["thinker", "--input", TEXT, "--deadline-seconds", "0"], 1, "(timeout)"),
    ],
)
def test_what_the_runtime_refuses_is_one_clear_line(project: Project, args: list[str], code: int, said: str) -> None:
    answer = project.holdfast("run", *args)
    assert answer.code == code, answer.err
    assert said in answer.complaint


def test_a_database_that_is_not_there_is_one_clear_line(project: Project) -> None:
    unreachable = "postgresql://holdfast_app@127.0.0.1:1/holdfast"
    answer = project.process("run", "thinker", "--input", TEXT, DATABASE_URL=unreachable)
    assert answer.code == 4
    assert answer.complaint


def test_settings_that_do_not_fit_are_a_line_each(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_WORKER__SLOTS", "many")
    monkeypatch.setenv("HOLDFAST_LIMITS__MAX_STEP", "1")
    answer = project.holdfast("runs")
    assert answer.code == 4
    assert [line.split(": ")[:2] for line in sorted(answer.err.splitlines())] == [
        ["error", "HOLDFAST_LIMITS__MAX_STEP"],
        ["error", "HOLDFAST_WORKER__SLOTS"],
    ]


def test_a_failure_of_holdfast_itself_is_one_line_and_debug_shows_where(project: Project) -> None:
    (project.folder / "langgraph.json").write_text(json.dumps({"graphs": {"bad": "my_graphs:bad"}}), encoding="utf-8")
    with (project.folder / "my_graphs.py").open("a", encoding="utf-8") as module:
        module.write("\nbad = one('bad', think)\ntype(bad).governance = None\n")
    answer = project.process("run", "bad", "--input", TEXT)
    assert answer.code == 5
    assert "holdfast --debug run bad" in answer.complaint
    assert "Traceback" in project.process("--debug", "run", "bad", "--input", TEXT).err


def test_a_new_database_is_upgraded_by_its_owner_and_only_then_used(
    project: Project, empty_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database.app)
    assert "holdfast db upgrade" in project.holdfast("runs").complaint
    assert "HOLDFAST_OWNER_DATABASE_URL is not set" in project.holdfast("db", "upgrade").complaint
    monkeypatch.setenv("HOLDFAST_OWNER_DATABASE_URL", empty_database.owner)
    monkeypatch.delenv("DATABASE_URL")  # whoever migrates needs no login of the application
    assert "pending; run: holdfast db upgrade" in project.holdfast("db", "status").out
    assert project.holdfast("db", "upgrade").out.startswith("applied 0001 ")
    assert project.holdfast("db", "status", "--json").json["pending"] == []
    monkeypatch.setenv("DATABASE_URL", empty_database.app)
    assert project.holdfast("db", "upgrade").out == "the database is up to date\n"
    assert project.holdfast("runs").out == "no runs\n"


def test_events_are_verified_and_the_first_that_was_altered_is_named(
    project: Project, database_urls: DatabaseUrls
) -> None:
    first, second = (project.holdfast("run", "thinker", "--input", TEXT, "--json").json["run_id"] for _ in "ab")
    sound = project.holdfast("events", first, "--verify", "--json")
    assert (sound.code, sound.json["ok"], sound.json["head"]["seq"]) == (0, True, sound.json["events"])
    assert "2 runs verified; none of the runs broken" in project.holdfast("events", "--verify").out

    with psycopg.connect(database_urls.admin) as conn:
        conn.execute("update events set payload = '{}' where run_id = %s and seq = 2", [first])
        conn.execute("delete from events where run_id = %s and seq = 3", [second])

    altered = project.holdfast("events", first, "--verify")
    assert altered.code == 1
    assert "BROKEN: event 2 is not what was hashed" in altered.out
    every = project.holdfast("events", "--verify", "--json")
    assert (every.code, every.json["runs"]) == (1, 2)
    assert {(one["run_id"], one["broken_at"]) for one in every.json["broken"]} == {(first, 2), (second, 3)}


def test_events_are_followed_as_they_commit_until_the_run_has_ended(project: Project) -> None:
    asked = project.holdfast("run", "payer", "--input", TEXT, "--json").json
    with project.start("events", asked["run_id"], "--follow", "--json") as following:
        assert following.stdout is not None
        seen = []
        while not seen or seen[-1]["kind"] != "run.interrupted":
            seen.append(json.loads(following.stdout.readline()))
        assert following.poll() is None
        project.holdfast("approve", asked["approvals"][0]["id"], "--by", "dana")
        seen += [json.loads(line) for line in following.stdout]
    assert following.returncode == 0
    assert seen == project.holdfast("events", asked["run_id"], "--json").json


def test_held_run_is_shown_as_held_until_an_admin_lifts_the_hold(project: Project) -> None:
    run_id = project.holdfast("run", "thinker", "--input", TEXT, "--json").json["run_id"]
    held = project.holdfast("hold", run_id, "--by", "dana", "--reason", "a claim", "--json")
    assert (held.json["legal_hold"]["by"], held.json["legal_hold"]["reason"]) == ("dana", "a claim")
    assert re.search(r"legal hold +by dana since .*: a claim", project.holdfast("show", run_id).out)
    assert "held already, by 'dana': a claim" in project.holdfast("hold", run_id, "--by", "dana").complaint
    refused = project.holdfast("hold", run_id, "--by", "dana", "--lift")
    assert "needs the role admin" in refused.complaint
    kinds = [event["kind"] for event in project.holdfast("events", run_id, "--json").json]
    assert kinds[-2:] == ["run.completed", "run.held"]
    assert project.holdfast("events", run_id, "--verify").code == 0


def test_events_of_no_run_can_only_be_verified(project: Project) -> None:
    assert "say which run" in project.holdfast("events").complaint
    assert "neither --after nor --follow" in project.holdfast("events", "--verify", "--after", "3").complaint


def test_what_must_wait_for_the_older_version_is_named_until_it_is_applied(
    project: Project, empty_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_as_the_first_version_did(empty_database.owner)
    monkeypatch.setenv("DATABASE_URL", empty_database.app)
    monkeypatch.setenv("HOLDFAST_OWNER_DATABASE_URL", empty_database.owner)
    told = "may follow once no older version runs: holdfast db upgrade --finish"
    assert re.search(rf"0003 first_list \(post\), .* {told}", " ".join(project.holdfast("db", "upgrade").out.split()))
    assert re.search(r"warn +schema +0003 first_list", project.holdfast("doctor").out)
    assert project.holdfast("db", "upgrade", "--finish").out.startswith("applied 0003 first_list (post)")
    assert project.holdfast("db", "upgrade", "--finish").out == "the database is up to date\n"


def test_the_doctor_finds_a_sound_project_sound(project: Project) -> None:
    answer = project.holdfast("doctor", "--json")
    assert {check["what"]: check["status"] for check in answer.json} == dict.fromkeys(
        (
            *("packages", "layout", "settings", "policies", "models", "embedded"),
            *("graphs", "graph", "versions", "database", "schema", "keys", "workers", "queue"),
        ),
        "ok",
    )
    assert (answer.code, answer.err) == (0, "")


def test_the_doctor_says_what_is_amiss_and_what_to_do(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.holdfast("run", "asker", "--input", TEXT, "--detach")
    (project.folder / "langgraph.json").write_text('{"graphs": {"lost": "absent:graph"}}', encoding="utf-8")
    monkeypatch.setenv("HOLDFAST_MODEL", "openai:gpt-5-mini")
    monkeypatch.setenv("HOLDFAST_MODLE", "openai:gpt-5-mini")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    answer = project.holdfast("doctor")
    assert answer.code == 1
    assert re.search(r"warn +settings +HOLDFAST_MODLE", answer.out)
    assert re.search(r"warn +models +openai: OPENAI_API_KEY is not set", answer.out)
    assert re.search(r"fail +graph +graph 'lost': absent cannot be imported", answer.out)
    assert re.search(r"warn +queue +no worker that is there serves version code-\w+ of asker \(1 queued", answer.out)


def test_help_lists_the_commands_and_the_exit_codes(project: Project) -> None:
    help_text = project.holdfast("--help").out
    commands = ["demo", "run", "runs", "show", "events", "approve", "reject", "cancel", "db", "doctor", "worker"]
    assert [name for name in commands if not re.search(rf"^  {name} ", help_text, re.MULTILINE)] == []
    assert "3 the run waits for a person" in " ".join(help_text.split())


def test_a_run_that_lost_worker_after_worker_is_called_dead_and_says_what_to_do(
    project: Project, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_WORKER__MAX_ATTEMPTS", "2")
    run_id = project.holdfast("run", "thinker", "--input", TEXT, "--detach", "--json").json["run_id"]
    with psycopg.connect(database_urls.admin, autocommit=True) as conn:  # as two workers leave it, the second killed
        conn.execute("update runs set status = 'running', epoch = 2, attempt = 2, takeovers = 1")
        conn.execute(
            "insert into leases (run_id, tenant_id, epoch, worker_id, expires_at) "
            "select run_id, tenant_id, epoch, 'gone', clock_timestamp() from runs"
        )
    assert project.holdfast("run", "thinker", "--input", TEXT).code == 0  # its worker takes the other up as well

    (listed,) = project.holdfast("runs", "--status", "failed", "--json").json
    assert (listed["run_id"], listed["dead"], listed["error"]["metadata"]["attempts"]) == (run_id, True, 2)
    assert re.search(rf"{run_id} +failed +thinker .*dead: its workers were lost", project.holdfast("runs").out)
    shown = project.holdfast("show", run_id).out
    assert "failed: dead" in shown
    assert "2 workers in a row were lost" in shown
    assert f"holdfast events {run_id}" in shown
    assert f"holdfast resume {run_id}" in shown  # another run on the thread would not have its journal
