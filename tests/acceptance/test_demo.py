"""`holdfast demo`, as somebody sees it who has just cloned the repository."""

import os
import pty
import select
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from holdfast.server.demo import run_demo

COMMAND = [sys.executable, "-m", "holdfast.server.cli", "demo"]


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "DATABASE_URL"))}
    return kept | {"XDG_DATA_HOME": str(folder), "COLUMNS": "110", "TERM": "xterm-256color"}


def typed_into(process: subprocess.Popen[bytes], terminal: int, answers: dict[str, str]) -> str:
    """What the demo shows on a terminal while `answers` are typed, each after its question was seen."""
    seen, typed, deadline = "", dict(answers), time.monotonic() + 90
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 65_536).decode(errors="replace")
            except OSError:  # the other end is closed: the demo has ended
                return seen
            for question in [question for question in typed if question in seen]:
                os.write(terminal, f"{typed.pop(question)}\n".encode())
        elif process.poll() is not None:
            return seen
    raise AssertionError(f"the demo did not end; it showed:\n{seen[-3000:]}")


async def shown(sample: str) -> tuple[int, str]:
    screen = StringIO()
    code = await run_demo(console=Console(file=screen, width=110), sample=sample, fast=True)
    return code, screen.getvalue()


def test_the_demo_ends_with_one_refund_and_can_be_run_again(tmp_path: Path):
    for _ in range(2):
        done = subprocess.run(
            COMMAND, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )

        assert done.returncode == 0, done.stdout + done.stderr
        assert "Nobody is at a terminal here, so the demo approves by itself, as dana." in done.stdout
        assert "in the shop's own ledger: exactly one refund" in done.stdout
        assert "✗" not in done.stdout
        assert done.stderr == ""


def test_someone_at_a_terminal_is_asked_and_may_change_the_amount(tmp_path: Path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(COMMAND, env=environment(tmp_path), cwd=tmp_path, stdin=theirs, stdout=theirs)
    os.close(theirs)
    seen = typed_into(process, ours, {"[e]dit the amount": "e", "Amount in US dollars": "120.00"})

    assert process.wait(timeout=30) == 0
    assert "we have refunded $120.00" in seen
    assert "exactly one refund" in seen


def test_someone_at_a_terminal_may_say_no(tmp_path: Path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(COMMAND, env=environment(tmp_path), cwd=tmp_path, stdin=theirs, stdout=theirs)
    os.close(theirs)
    seen = typed_into(process, ours, {"[e]dit the amount": "n", "Why not?": "It is not back yet."})

    assert process.wait(timeout=30) == 0
    assert "It is not back yet." in seen
    assert "in the shop's own ledger: no refund" in seen.replace("\x1b[1m", "").replace("\x1b[0m", "")


@pytest.mark.parametrize(
    ("sample", "ending"), [("small", "exactly one refund"), ("denied", "in the shop's own ledger: no refund")]
)
async def test_the_other_samples_ask_nobody(sample: str, ending: str):
    code, screen = await shown(sample)

    assert code == 0
    assert "a person is asked" not in screen
    assert ending in screen


async def test_the_demo_shows_every_agent_with_what_it_used():
    _, screen = await shown("large")

    table = screen[screen.index("model calls") : screen.index("the reply")]
    for agent in ("intake", "order_history", "refund_policy", "fraud_signals", "decision", "issue_refund", "reply"):
        assert agent in table
