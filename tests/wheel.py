"""Runs tests against the built wheel: in a fresh environment, outside the checkout, without it on the path.

A wheel can lack a file, a command or a requirement, or look for something where only a checkout has it. Chosen is what
comes to every such place: the units and the contracts (every module, the public face, the documents with their
examples), the migrations and the queries (files of SQL), and the processes that are started by whoever has installed
it: the commands, the demo with its workers and its own Postgres, Studio, the notebook. What the code does once it is
there is the same as in the checkout, and all the other tests have shown it there.

Arguments are pytest's, in place of what is chosen: `python tests/wheel.py tests/integration`.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ROOMS = (
    "contracts",
    "policies",
    "telemetry",
    "checkpoints",
    "gateway",
    "nodes",
    "graphs",
    "runtime",
    "server",
    "testing",
)
BESIDE_THE_TESTS = (
    "tests",
    "docs",
    "benchmarks",
    "notebooks",
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "pyproject.toml",
    "requirements.lock",
    "langgraph.json",
    "Makefile",
    ".ci",
)
CHOSEN = (
    "tests/unit",
    "tests/contracts",
    "tests/integration/test_migrations.py",
    "tests/integration/test_queries.py",
    "tests/acceptance/test_cli.py",
    "tests/acceptance/test_demo.py",
    "tests/acceptance/test_notebook.py",
    "tests/acceptance/test_studio.py",
)


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command, and end with its exit code when it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def build(into: Path) -> Path:
    """Build the wheel and see that every room is a real folder in it."""
    run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", into, CHECKOUT, cwd=into)
    (wheel,) = into.glob("holdfast-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for room in ROOMS:
        assert f"holdfast/{room}/__init__.py" in names, f"the room {room} is missing in {wheel.name}"
    for suffix in (".sql", ".cedar", "py.typed"):
        assert any(name.endswith(suffix) for name in names), f"no {suffix} in {wheel.name}"
    return wheel


def main() -> None:
    """Build, install into a new environment, and run what is chosen there."""
    with tempfile.TemporaryDirectory(prefix="holdfast wheel ") as folder:
        place = Path(folder)
        place.chmod(0o755)  # where root runs this, Postgres runs under another account and must reach its binaries
        wheel = build(place)
        python = place / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", place / "venv", cwd=place)
        uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python)
        run(*uv, "--requirements", CHECKOUT / "requirements.lock", cwd=place)
        run(*uv, "--no-deps", wheel, cwd=place)
        work = place / "work"
        work.mkdir()
        for name in BESIDE_THE_TESTS:
            source = CHECKOUT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, work / name)
        chosen = sys.argv[1:] or CHOSEN
        run(python, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-q", "-m", "not slow", *chosen, cwd=work)


if __name__ == "__main__":
    main()
