"""The simulation proves itself: with any one defence taken away it finds what goes wrong, by seeds that always run."""

import asyncio
import re
from dataclasses import replace

import pytest
from simulation.conductor import Result, Stage
from simulation.mutants import MUTANTS
from simulation.schedules import drawn
from simulation.seeds import EVIDENCE, FOUND_BY, SEEDS
from simulation.simulate import performed


async def found(stage: Stage, defence: str) -> tuple[int, int] | None:
    """The seed that finds what the absence of a defence lets through, and how many were tried. Those that are known to
    find it come first."""

    def shows(result: Result) -> bool:
        return any(re.search(EVIDENCE[defence], violation) for violation in result.violations)

    seeds = [*FOUND_BY[defence], *(seed for seed in SEEDS if seed not in FOUND_BY[defence])]
    schedules = (replace(drawn(seed), mutant=defence) for seed in seeds)
    results = await performed(stage, schedules, at_once=1, until=shows)
    return (results[-1].schedule.seed, len(results)) if shows(results[-1]) else None


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(600)
async def test_missing_defence_is_found(stage: Stage, capsys: pytest.CaptureFixture[str]):
    answers = dict(zip(MUTANTS, await asyncio.gather(*(found(stage, each) for each in MUTANTS)), strict=True))
    with capsys.disabled():
        told = ", ".join(f"{defence} by {answer[0]} (of {answer[1]})" for defence, answer in answers.items() if answer)
        print(f"\nmissed: {told}")
    assert [defence for defence, answer in answers.items() if answer is None] == [], "a defence that nobody misses"


def test_what_finds_a_missing_defence_is_among_the_seeds_that_always_run():
    assert set(FOUND_BY) == set(EVIDENCE) == set(MUTANTS)
    assert {seed for seeds in FOUND_BY.values() for seed in seeds} <= set(SEEDS)
