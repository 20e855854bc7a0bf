"""Random schedules for a chosen time, one seed again, or a crash at every mark: see `make help`."""

import argparse
import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from simulation.conductor import Result, Stage
from simulation.schedules import NOT_OF_REFUNDS, WHOLE_HOUSE, Schedule, crash_at, drawn

from holdfast.contracts.marks import Mark

AT_ONCE = 8
"""Schedules side by side: mostly they wait, for leases to end and for whoever stands still."""


async def performed(
    stage: Stage,
    schedules: Iterable[Schedule],
    *,
    seconds: float = float("inf"),
    at_once: int = AT_ONCE,
    until: Callable[[Result], bool] | None = None,
) -> list[Result]:
    """The results of these schedules; none is begun after `seconds`, nor once one is what `until` waits for.
    What goes wrong is told at once."""
    started, results, waiting = time.monotonic(), list[Result](), iter(schedules)

    def over() -> bool:
        found = until is not None and any(map(until, results))
        return found or time.monotonic() - started >= seconds

    async def perform() -> None:
        while not over() and (schedule := next(waiting, None)) is not None:
            result = await stage.perform(schedule)
            results.append(result)
            if result.violations:
                print(told(result), flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(perform())
    return results


def from_seed(first: int, most: int | None = None) -> Iterator[Schedule]:
    """The schedules of the seeds from `first` on: `most` of them, or without end."""
    return map(drawn, count(first) if most is None else range(first, first + most))


def at_every_mark() -> list[Schedule]:
    """A crash at every mark of either graph, one at a time."""
    [errands, refunds] = WHOLE_HOUSE
    in_errands = [crash_at(mark, (errands,)) for mark in Mark]
    return in_errands + [crash_at(mark, (refunds,)) for mark in Mark if mark not in NOT_OF_REFUNDS]


def told(result: Result) -> str:
    """A schedule that went wrong, and how to see it again."""
    schedule = result.schedule
    lines = [f"VIOLATED {schedule}", *(f"  - {each}" for each in result.violations)]
    if schedule.seed:
        mutant = f" MUTANT={schedule.mutant}" if schedule.mutant else ""
        lines.append(f"  again: make sim SEED={schedule.seed} SCHEDULES=1{mutant}")
    return "\n".join(lines)


def histogram(results: list[Result]) -> str:
    """How often each fault was hit, by action and by mark."""
    faults = sum((result.faults for result in results), start=Counter())
    actions, marks = Counter[str](), Counter[str]()
    for (action, mark), hits in faults.items():
        actions[action] += hits
        marks[mark] += hits
    lines = [f"{len(results)} schedules, {faults.total()} faults hit"]
    lines += ["  " + "  ".join(f"{name} {hits}" for name, hits in actions.most_common())]
    unheard = sum((result.unheard for result in results), start=Counter())
    lines += ["  unheard: " + "  ".join(f"{kind} {unheard[kind]}" for kind in ("flush", "transaction", "missed"))]
    lines += [f"  {name:<22} {hits:>4} {'#' * min(hits, 60)}" for name, hits in sorted(marks.items())]
    return "\n".join(lines)


def main() -> int:
    """The command; 1 when anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="start no schedule after this time")
    parser.add_argument("--seed", type=int, default=None, help="the first seed; left out, one that was never used")
    parser.add_argument("--schedules", type=int, default=None, help="perform so many at most")
    parser.add_argument("--marks", action="store_true", help="a crash at every mark of either graph, in place of seeds")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="schedules side by side")
    parser.add_argument("--mutant", default=None, help="a defence to take away")
    parser.add_argument(
        "--keep", type=Path, default=None, help="where to keep the folders of schedules that went wrong"
    )
    parser.add_argument("--until-violated", action="store_true", help="stop at the first schedule that goes wrong")
    given = parser.parse_args()
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # that connections break is what is wanted
    first = given.seed if given.seed is not None else int(time.time()) % 1_000_000 * 1_000
    schedules = at_every_mark() if given.marks else from_seed(first, given.schedules)
    schedules = (replace(schedule, mutant=given.mutant) for schedule in schedules)
    seconds = float("inf") if given.marks or given.schedules else given.seconds
    until = (lambda result: bool(result.violations)) if given.until_violated else None

    async def perform() -> list[Result]:
        async with Stage(at_once=given.at_once, keep=given.keep).opened() as stage:
            return await performed(stage, schedules, seconds=seconds, at_once=given.at_once, until=until)

    started = time.monotonic()
    results = asyncio.run(perform())
    wrong = [result for result in results if result.violations]
    print(histogram(results))
    rate = len(results) / (time.monotonic() - started) * 60
    what = "a crash at every mark" if given.marks else f"from seed {first} on"
    print(f"{what}: {rate:.0f} schedules a minute, {len(wrong)} violated something")
    return 1 if wrong or not results else 0


if __name__ == "__main__":
    sys.exit(main())
