"""`python -m benchmarks`: measure, and write the tables into README.md beside this file."""

import argparse
import asyncio
import os
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import calls, conversations, fanout, replays, savers, takeover

MOST_ROUNDS = {"conversations": 2}
"""Of those that take minutes a round."""
README = Path(__file__).parent / "README.md"
BENCHES: dict[str, tuple[str, Callable[[int], Awaitable[str]]]] = {
    "savers": (
        'Durable runs of five steps per second, `durability="sync"`, about 2 KB of state, a new thread for each',
        lambda rounds: savers.bench(rounds, loads=(1, 8, 32, 128)),
    ),
    "conversations": (
        "A conversation, 2 KB of random text at each step: all messages kept each time (`add_messages`) or what is new",
        conversations.bench,
    ),
    "calls": (
        "The journal: an intent before a call and its outcome after it, durable each, 600 and 900 bytes",
        calls.bench,
    ),
    "replays": ("What is recorded, done again", replays.bench),
    "fanout": ('`Send` to many branches that sleep for 10 ms each, `durability="sync"`', fanout.bench),
    "takeover": (
        "Takeover by another worker process after SIGKILL, workers that poll only every 30 s",
        lambda rounds: takeover.bench(rounds, ttls=(2.0, 5.0)),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which; all when left out")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    chosen = parser.parse_args()
    for name in chosen.names or BENCHES:
        title, bench = BENCHES[name]
        rounds = min(chosen.rounds, MOST_ROUNDS.get(name, chosen.rounds))
        found = asyncio.run(bench(rounds))
        text = f"## {title}\n\n{_conditions(rounds)}\n\n{found}\n"
        print(text)
        _write(name, text)


def _conditions(rounds: int) -> str:
    load = os.getloadavg()[0]
    return (
        f"Python {platform.python_version()}, {os.cpu_count()} cores shared by client and server, embedded Postgres "
        f"with its defaults (fsync on), {rounds} interleaved rounds, medians; ratios are taken within a round "
        f"(lowest to highest in brackets). Load average at the end: {load:.1f}."
    )


def _write(name: str, text: str) -> None:
    """Put `text` between the marks of the bench, and leave everything else as it is."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = README.read_text(encoding="utf-8") if README.exists() else "# Measured\n"
    before, found, rest = page.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    README.write_text(f"{before.rstrip()}\n\n{begin}\n{text}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
