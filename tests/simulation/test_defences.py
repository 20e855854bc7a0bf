"""The simulation proves itself: with any one defence taken away it finds what goes wrong, by seeds that always run."""

import asyncio
import re
from dataclasses import replace

import pytest
from simulation.conductor import Result, Stage
from simulation.mutants import MUTANTS
from simulation.schedules import drawn
from simulation.seeds import EVIDENCE, FOUND_BY, SEEDS
from simulation.simulate import AT_ONCE, performed


async def search(stage: Stage, defence: str) -> tuple[int, int] | None:
    """The seed that finds what the absence of a defence lets through, and how many were tried. Those that are known to
    find it come first."""

    def shows(result: Result) -> bool:
        return any(re.search(EVIDENCE[defence], violation) for violation in result.violations)

    known = FOUND_BY[defence]
    tried = 0
    for seeds, at_once in ((known, 1), ([seed for seed in SEEDS if seed not in known], AT_ONCE)):
        schedules = [replace(drawn(seed), mutant=defence) for seed in seeds]
        results = await performed(stage, schedules, at_once=at_once, until=shows)
        tried += len(results)
        if found := next(filter(shows, results), None):
            return found.schedule.seed, tried
    return None


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(600)
async def test_missing_defence_is_found(stage: Stage, capsys: pytest.CaptureFixture[str]):
    answers = dict(zip(MUTANTS, await asyncio.gather(*(search(stage, each) for each in MUTANTS)), strict=True))
    with capsys.disabled():
        told = ", ".join(f"{defence} by {answer[0]} (of {answer[1]})" for defence, answer in answers.items() if answer)
        print(f"\nmissed: {told}")
    assert [defence for defence, answer in answers.items() if answer is None] == [], "a defence that nobody misses"


def test_what_finds_a_missing_defence_is_among_the_seeds_that_always_run():
    assert set(FOUND_BY) == set(EVIDENCE) == set(MUTANTS)
    assert {seed for seeds in FOUND_BY.values() for seed in seeds} <= set(SEEDS)
