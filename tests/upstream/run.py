"""Run LangGraph's own async tests that take a checkpointer: `python tests/upstream/run.py CHECKOUT [MODE]`.

CHECKOUT is a clone of LangGraph's repository; its tests are copied, so that they import the LangGraph installed here.
MODE is `ours`, `theirs` or `governed` (see `holdfast_upstream.py`).
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
    "test_parent_command_async.py",
    "test_delta_channel_exit_mode.py",
    "test_delta_channel_id_stability.py",
    "test_delta_channel_migration.py",
    "test_delta_channel_supersteps_bound.py",
    "test_delta_channel_update_state.py",
]


def main(checkout: Path, mode: str = "ours") -> int:
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
        chosen = ["-k", "postgres_aio and not pipe and not pool", *(f"tests/{file}" for file in FILES)]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options, *chosen], cwd=folder, env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
