"""`holdfast demo`, as somebody sees it who has just cloned the repository."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from holdfast.server.demo import run_demo

STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COMMAND = [sys.executable, "-m", "holdfast", "demo"]

AGENTS = ("intake", "order_history", "refund_policy", "fraud_signals", "decision", "issue_refund", "reply")


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "DATABASE_URL"))}
    return kept | {"XDG_DATA_HOME": str(folder), "COLUMNS": "110", "TERM": "xterm-256color"}


def on_a_terminal(folder: Path, answers: dict[str, str]) -> tuple[int, str]:
    """The demo's exit code and what it shows, while `answers` are typed, each once its question was seen."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(COMMAND, env=environment(folder), cwd=folder, stdin=theirs, stdout=theirs) as process:
        os.close(theirs)
        try:
            seen = typed_into(ours, dict(answers))
            return process.wait(timeout=30), seen
        finally:
            process.kill()
            os.close(ours)


def typed_into(terminal: int, answers: dict[str, str]) -> str:
    seen, deadline = "", time.monotonic() + 90
    while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            seen += STYLE.sub("", os.read(terminal, 65_536).decode(errors="replace"))
        except OSError:  # the other end is closed: the demo has ended
            return seen
        for question in [question for question in answers if question in seen]:
            os.write(terminal, f"{answers.pop(question)}\n".encode())
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
        assert "was killed with SIGKILL in the middle of the refund" in done.stdout
        assert "took over as attempt" in done.stdout
        assert "in the shop's own ledger: exactly one refund" in done.stdout
        assert done.stdout.count("✗") == 1  # the worker
        assert all(agent in done.stdout for agent in AGENTS)
        assert done.stderr == ""


def test_someone_at_a_terminal_is_asked_and_may_change_the_amount(tmp_path: Path):
    code, seen = on_a_terminal(tmp_path, {"[e]dit the amount": "e", "Amount in US dollars": "120.00"})

    assert code == 0
    assert "we have refunded $120.00" in seen
    assert "exactly one refund" in seen


def test_someone_at_a_terminal_may_say_no(tmp_path: Path):
    code, seen = on_a_terminal(tmp_path, {"[e]dit the amount": "n", "Why not?": "It is not back yet."})

    assert code == 0
    assert "SIGKILL" not in seen
    assert "It is not back yet." in seen
    assert "in the shop's own ledger: no refund" in seen


@pytest.mark.parametrize(
    ("sample", "ending"), [("small", "exactly one refund"), ("denied", "in the shop's own ledger: no refund")]
)
async def test_the_other_samples_ask_nobody(sample: str, ending: str):
    code, screen = await shown(sample)

    assert code == 0
    assert "approves by itself" not in screen
    assert ending in screen
