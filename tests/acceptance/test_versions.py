"""Two workers of different code on one database: real processes, each in the folder of its own version."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_database import DatabaseUrls
from projects import HOLDFAST, Answer

from holdfast.server.cli import main

GRAPH = """
import time
from pathlib import Path

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from holdfast import govern


class State(TypedDict, total=False):
    text: str
    answer: str
    flag: str


def phrase(text):
    return "{words}: " + text


def begin(state: State) -> State:
    if flag := state.get("flag"):
        Path(flag).touch()
        while Path(flag).exists():
            time.sleep(0.02)
    return {{}}


def ask(state: State) -> State:
    return {{"answer": phrase(interrupt("what?") if state["text"] == "ask" else state["text"])}}


builder = StateGraph(State).add_node("begin", begin).add_node("ask", ask)
builder.add_edge(START, "begin").add_edge("begin", "ask")
graph = govern(builder.compile(), name="desk"{terms})
"""

SETTINGS = """
[principals.dana]
tenants = ["default"]
roles = ["approver"]

[worker]
lease_ttl_seconds = 2.0
poll_seconds = 0.1
"""
IN_TIME = 60.0

pytestmark = pytest.mark.timeout(300)  # each of these starts several processes


class Site:
    """A folder with one version of the code."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def holdfast(self, *args: str) -> Answer:
        """One command, typed in this folder: nothing that was imported from another one is there."""
        with self._monkeypatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "path", [*sys.path])
            for name in [name for name in sys.modules if name.split(".")[0] == "desk"]:
                patch.delitem(sys.modules, name)
            code = main(list(args))
            sys.modules.pop("desk", None)
        said = self._capsys.readouterr()
        return Answer(code, said.out, said.err)

    def queue(self, **given: str) -> str:
        run = self.holdfast("run", "desk", "--input", json.dumps(given), "--detach", "--json")
        return str(run.json["run_id"])

    def show(self, run_id: str) -> Any:
        return self.holdfast("show", run_id, "--json").json

    @contextmanager
    def worker(self) -> Iterator["subprocess.Popen[str]"]:
        """`holdfast worker` in this folder, and its end."""
        process = subprocess.Popen([str(HOLDFAST), "worker"], cwd=self.folder, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving desk")
            yield process
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def site(
    tmp_path: Path,
    database_urls: DatabaseUrls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Site]:
    monkeypatch.setenv("DATABASE_URL", database_urls.app)
    monkeypatch.setenv("COLUMNS", "300")

    def laid_out(name: str, words: str, terms: str = "") -> Site:
        folder = tmp_path / name
        folder.mkdir()
        text = GRAPH.format(words=words, terms=f", {terms}" if terms else "")
        (folder / "desk.py").write_text(text, encoding="utf-8")
        (folder / "langgraph.json").write_text(json.dumps({"graphs": {"desk": "./desk.py:graph"}}), encoding="utf-8")
        (folder / "holdfast.toml").write_text(SETTINGS, encoding="utf-8")
        return Site(folder, capsys, monkeypatch)

    return laid_out


def wait_until(holds: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + IN_TIME
    while not holds():
        assert time.monotonic() < give_up, what


def test_a_run_waits_for_its_own_code_while_other_code_is_served_and_is_seen_to(site: Callable[..., Site]) -> None:
    old, new = site("old", "old"), site("new", "new")
    waiting = old.queue(text="hello")
    version = old.show(waiting)["graph_version"]
    with new.worker():
        newer = new.queue(text="hello")
        wait_until(lambda: new.show(newer)["status"] == "completed", "the newer run is served")
        assert new.show(newer)["output"]["answer"] == "new: hello"
        assert new.show(waiting)["status"] == "queued", "it is older, and was passed by"

        listed = new.holdfast("runs")
        assert re.search(rf"{waiting} +queued +desk .*no worker for version {version}", listed.out)
        assert "start a worker with that code, declare the version in govern(…, compatible=…), or cancel" in listed.out
        told = {run["run_id"]: run["served"] for run in new.holdfast("runs", "--json").json}
        assert told == {waiting: False, newer: True}
        assert f"no worker that is there goes on with version {version} of desk" in new.holdfast("show", waiting).out
        doctor = new.holdfast("doctor").out
        assert re.search(rf"warn +queue +no worker that is there serves version {version} of desk \(1 queued", doctor)
        assert "start a worker with that code" in doctor

        with old.worker():
            wait_until(lambda: old.show(waiting)["status"] == "completed", "its own code is there")
    assert old.show(waiting)["output"]["answer"] == "old: hello"
    assert old.show(waiting)["served_by"] == version
    assert re.search(r"ok +queue +0 runs wait", new.holdfast("doctor").out)
    assert re.search(r"ok +workers +none is there", new.holdfast("doctor").out), (
        "those that were told to stop have left"
    )


def test_an_approved_run_does_not_go_on_under_other_code(site: Callable[..., Site]) -> None:
    old, new = site("old", "old"), site("new", "new")
    asked = old.holdfast("run", "desk", "--input", '{"text": "ask"}', "--json")
    approval, run_id = asked.json["approvals"][0]["id"], asked.json["run_id"]
    decided = new.holdfast("approve", approval, "--by", "dana", "--answer", "twelve")
    assert decided.code == 0, decided.err
    assert "another worker must go on with it, for it was started by version code-" in decided.out
    assert "start a worker with that code, declare the version" in decided.out
    assert new.show(run_id)["status"] == "queued"
    with old.worker():
        wait_until(lambda: old.show(run_id)["status"] == "completed", "its own code goes on")
    assert old.show(run_id)["output"]["answer"] == "old: twelve"


def test_code_that_declares_a_range_goes_on_with_what_older_code_began(site: Callable[..., Site]) -> None:
    old = site("old", "old", 'version="2.0.3"')
    newer = site("newer", "newer", 'version="2.1.0", compatible=">=2.0,<3"')
    ancient = site("ancient", "ancient", 'version="1.9"')
    asked = old.holdfast("run", "desk", "--input", '{"text": "ask"}', "--json")
    approval, run_id = asked.json["approvals"][0]["id"], asked.json["run_id"]
    other = ancient.queue(text="left behind")
    decided = newer.holdfast("approve", approval, "--by", "dana", "--answer", "twelve", "--json")
    assert decided.json["output"]["answer"] == "newer: twelve"

    shown = newer.show(run_id)
    assert (shown["graph_version"], shown["served_by"]) == ("2.0.3", "2.1.0")
    assert "desk (version 2.0.3), last served by version 2.1.0" in newer.holdfast("show", run_id).out
    claims = [
        event["payload"]["graph_version"]
        for event in newer.holdfast("events", run_id, "--json").json
        if event["kind"] == "run.claimed"
    ]
    assert claims[0] == "2.0.3"
    assert set(claims[1:]) == {"2.1.0"}

    with newer.worker():
        queued = old.queue(text="hello")
        wait_until(lambda: old.show(queued)["status"] == "completed", "a worker claims what lies in its range")
        assert old.show(queued)["output"]["answer"] == "newer: hello"
        assert newer.show(other)["status"] == "queued", "1.9 lies in no range"
        assert newer.show(other)["served"] is False


def test_a_killed_workers_run_is_not_taken_over_by_other_code(site: Callable[..., Site], tmp_path: Path) -> None:
    old, new = site("old", "old"), site("new", "new")
    flag = tmp_path / "entered"
    with old.worker() as killed:
        run_id = old.queue(text="hello", flag=str(flag))
        wait_until(flag.exists, "its first node is at work")
        killed.kill()
        killed.wait()
    flag.unlink()
    with new.worker():
        wait_until(lambda: not new.show(run_id)["served"], "the killed worker has been forgotten")
        later = new.queue(text="later")
        wait_until(lambda: new.show(later)["status"] == "completed", "the other worker looks for work")
        left = new.show(run_id)
        assert (left["status"], left["attempt"]) == ("running", 1)
        with old.worker():
            wait_until(lambda: _goes_on(old, run_id, flag), "its own code takes it over")
    done = old.show(run_id)
    assert done["output"]["answer"] == "old: hello"
    assert done["attempt"] > left["attempt"]


def _goes_on(site: Site, run_id: str, flag: Path) -> bool:
    flag.unlink(missing_ok=True)  # the node that runs again waits for this as well
    return bool(site.show(run_id)["status"] == "completed")


def test_the_doctor_finds_a_graph_that_has_another_version_in_every_process(site: Callable[..., Site]) -> None:
    steady, fickle = site("steady", "the same"), site("fickle", "at {time.time()}")
    assert re.search(r"ok +versions +desk code-\w{16}\n", steady.holdfast("doctor").out)
    (fickle.folder / "desk.py").write_text(
        (fickle.folder / "desk.py")
        .read_text()
        .replace("def phrase", "STARTED = time.time()\n\n\ndef phrase")
        .replace('"at {time.time()}: "', 'f"at {STARTED}: "'),
        encoding="utf-8",
    )
    told = fickle.holdfast("doctor").out
    assert re.search(r"warn +versions +desk: another version in every process.*govern\(…, version=…\)", told)
