"""Run LangGraph's own tests of what needs a checkpointer: `python tests/upstream/run.py CHECKOUT [MODE [FILE...]]`.

CHECKOUT is a clone of LangGraph's repository; its tests are copied, so that they import the LangGraph installed here.
MODE is `ours`, `theirs` or `governed`; `holdfast_upstream.py` says what that means, and which tests of a file are
chosen. FILE is one of those below; all of them, where none is named. A file of which no test runs is a failure.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NEEDED = ["pytest-mock", "syrupy", "redis", "langgraph-checkpoint-sqlite", "aiosqlite", "sqlite-vec", "pycryptodome"]
FILES = [
    "test_pregel_async.py",
    "test_large_cases_async.py",
    "test_time_travel_async.py",
    "test_subgraph_persistence_async.py",
    "test_interruption.py",
    "test_delta_channel_exit_mode.py",
    "test_delta_channel_id_stability.py",
    "test_delta_channel_migration.py",
    "test_delta_channel_supersteps_bound.py",
    "test_delta_channel_update_state.py",
]


def main(checkout: Path, mode: str = "ours", *files: str) -> int:
    theirs = checkout / "libs" / "langgraph"
    with tempfile.TemporaryDirectory(prefix="holdfast-upstream-") as name:
        folder = Path(name)
        shutil.copytree(theirs / "tests", folder / "tests")
        shutil.copy(theirs / "pyproject.toml", folder)
        install = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder / "more"),
        ]
        subprocess.run([*install, *NEEDED], check=True)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(HERE), str(folder / "more")]),
            "HOLDFAST_UPSTREAM": mode,
            "LANGSMITH_TRACING": "false",
        }
        options = ["-p", "holdfast_upstream", "-p", "no:cacheprovider", "-p", "no:asyncio", "-q"]
        chosen = [f"tests/{file}" for file in files or FILES]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options, *chosen], cwd=folder, env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
