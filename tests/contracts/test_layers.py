"""What each room may know and do. The floors are import-linter's; the rest is read in the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from sources import HOUSE, ROOMS, Source, dotted, house, sources

ROOT = Path(__file__).resolve().parents[2]

# Not our store: the shop's own ledger of refunds, the outside world of the worked example.
OUTSIDE_STORES = {"graphs/refund_desk/store.py"}

SQL = re.compile(
    r"^\s*(select\b.+|insert\s+into\s|update\s+\w+\s+set\s|delete\s+from\s|create\s+(table|role|database|index)\s"
    r"|alter\s+(table|role)\s|with\s+\w+\s+as\s*\(|set\s+local\s|listen\s+\w+$|notify\s+\w+)",
    re.IGNORECASE | re.DOTALL,
)

CLOCK_AND_CHANCE = re.compile(
    r"^(random|secrets|uuid_utils)(\.|$)"
    r"|^time\.(time|monotonic|perf_counter|process_time|clock_gettime|localtime|gmtime)(_ns)?$"
    r"|^uuid\.uuid\d$|^os\.urandom$|^(datetime\.)?(datetime|date)\.(now|utcnow|today)$"
)

CANCELLATIONS = {"BaseException", "asyncio.CancelledError", "CancelledError"}

# A task or thread that no TaskGroup owns, and who sees it end (G9).
OWNED_OTHERWISE = {
    "checkpoints/saver.py:FencedSaver._blocking": "waited for by the thread that asked",
    "checkpoints/shift.py:Shift.begin": "the writer's and the reader's; over when idle, waited for when they close",
    "checkpoints/obstacles.py:_seeing_whom": "looks on while a migration waits for a lock; waited for when it does not",
    "checkpoints/embedded.py:_to_the_end": "waited for, also when cancelled: a thread cannot be stopped",
    "gateway/closing.py:written": "waited for, also when cancelled, for at most five seconds; then cancelled",
    "nodes/bridge.py:in_thread": "a synchronous node's thread; awaited, and refused by its closed scope when it stays",
    "nodes/bridge.py:_start": "handed from that thread to its run's loop, counted and stopped with the node",
    "nodes/middleware.py:_in_time": "the node itself; cancelled and waited for before its scope closes",
    "runtime/blocking.py:_Steps.next": "waited for by the script that asked; cancelled and waited for when it does not",
    "runtime/heart.py:Heart.beat": "one beat of the heartbeat's thread, waited for",
    "runtime/heart.py:Heart.live": "the heartbeat's thread; stopped with the worker and waited for, for at most a beat",
    "server/bootstrap.py:_beside": "the worker and the listener; stopped and waited for when the runtime closes",
    "server/demo.py:Crew.lose_one": "cancelled and waited for when one worker was lost",
    "server/demo.py:_crew": "cancelled and waited for when the demo ends",
    "server/demo.py:_watched": "cancelled and waited for when the picture is done",
    "server/exporting.py:Pipe.__init__": "hands spans to the exporter; ends with its pipe, within a bound",
    "server/exporting.py:within": "a flush that may hang; waited for within a bound",
}


def test_the_walk_sees_every_room():
    assert {source.room for source in sources()} == set(ROOMS)
    assert len(sources()) > 100


def test_imports_go_down_the_floors():
    linter = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_every_room_has_its_floor():
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    floors = contracts.partition("layers = [")[2].partition("]")[0]
    assert set(re.findall(r"holdfast\.(\w+)", floors)) == set(HOUSE)


def test_sql_is_in_checkpoints_alone():
    found = {
        source.name
        for source in house()
        if source.room != "checkpoints" and source.name not in OUTSIDE_STORES
        if any(SQL.match(text) for text in source.strings())
    }
    assert found == set()


def test_the_search_for_sql_finds_it_where_it_is():
    by_name = {source.name: source for source in sources()}
    for name in OUTSIDE_STORES:
        assert any(SQL.match(text) for text in by_name[name].strings())


def test_the_driver_of_postgres_is_known_to_checkpoints_alone():
    found = {source.name for source in house() if any(name.startswith("psycopg") for name in source.imports())}
    assert {name.split("/")[0] for name in found} == {"checkpoints"}


def test_the_environment_is_read_by_the_server_alone():
    names = ("os.environ", "os.getenv", "os.environb", "os.putenv")
    found = {source.room for source in house() if any(name.startswith(names) for name in source.uses())}
    assert found == {"server"}


def test_clock_and_chance_come_from_the_runtime_alone():
    found = {source.name for source in house() if any(CLOCK_AND_CHANCE.match(name) for name in source.uses())}
    assert found == {"runtime/clock.py", "runtime/entropy.py"}


def test_every_task_and_thread_has_an_owner():
    assert {where for source in house() for where in started_outside_groups(source)} == set(OWNED_OTHERWISE)


def test_no_handler_swallows_a_cancellation():
    """`except BaseException`, `except CancelledError` and a bare `except` raise again, or hand the error on."""
    for source in house():
        for handler in (node for node in ast.walk(source.tree) if isinstance(node, ast.ExceptHandler)):
            if catches_cancellation(handler):
                assert hands_on(handler), f"{source.name}:{handler.lineno} swallows a cancellation"
        for _, call in source.calls():
            if dotted(call.func) in {"suppress", "contextlib.suppress"}:
                assert not {dotted(one) for one in call.args} & CANCELLATIONS, f"{source.name}:{call.lineno}"


def started_outside_groups(source: Source) -> list[str]:
    groups = task_groups(source.tree)
    found = []
    for inside, call in source.calls():
        name = dotted(call.func) or ""
        receiver, _, verb = name.rpartition(".")
        starts = {"create_task", "ensure_future", "run_coroutine_threadsafe", "gather", "Thread", "start_new_thread"}
        if verb in starts and receiver not in groups:
            found.append(f"{source.name}:{inside}")
    return found


def task_groups(tree: ast.Module) -> set[str]:
    """The names by which a module knows a TaskGroup."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem) and isinstance(node.context_expr, ast.Call):
            if dotted(node.context_expr.func) == "asyncio.TaskGroup" and isinstance(node.optional_vars, ast.Name):
                names.add(node.optional_vars.id)
        elif isinstance(node, ast.arg) and node.annotation and dotted(node.annotation) == "asyncio.TaskGroup":
            names.add(node.arg)
    return names


def catches_cancellation(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {dotted(one) if one is not None else "BaseException" for one in caught}
    return bool(names & CANCELLATIONS)


def hands_on(handler: ast.ExceptHandler) -> bool:
    """It raises, or gives the caught error to something else. The coordinator's `_stopped` takes a cancellation back
    (`Task.uncancel`): it becomes the attempt's ending, which has to be written."""
    for node in ast.walk(handler):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Name) and node.id == "_stopped"):
            return True
        if isinstance(node, ast.Name) and node.id == handler.name and isinstance(node.ctx, ast.Load):
            return True
    return False
