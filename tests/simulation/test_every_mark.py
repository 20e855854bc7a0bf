"""A crash at every mark: nothing is lost, nothing is done twice, and no mark is a place that nobody comes to."""

import pytest
from simulation.conductor import Result, Stage
from simulation.schedules import crash_at, crashes_in_turn
from simulation.simulate import performed, told

from holdfast.contracts.marks import Mark
from holdfast.testing.faults import Action

CHAINS = 7


def died_at(results: list[Result]) -> set[Mark]:
    return {Mark(mark) for result in results for action, mark in result.faults if action is Action.CRASH}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(600)
async def test_crash_at_any_mark_loses_nothing_and_repeats_nothing(stage: Stage):
    results = await performed(stage, crashes_in_turn(CHAINS))
    passed_by = set(Mark) - died_at(results)
    results += await performed(stage, [crash_at(mark) for mark in sorted(passed_by)])
    assert set(Mark) - died_at(results) == set(), "a mark that nobody comes to"
    assert [told(result) for result in results if result.violations] == []
