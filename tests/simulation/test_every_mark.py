"""A crash at every mark: nothing is lost, nothing is done twice, and no mark is a place that nobody comes to."""

import pytest
from simulation.conductor import crash_at
from simulation.simulate import performed, told

from holdfast.contracts.marks import Mark
from holdfast.testing.faults import Action

pytestmark = pytest.mark.slow  # many processes: `make test-sim`, not beside other tests


@pytest.mark.timeout(600)
async def test_crash_at_any_mark_loses_nothing_and_repeats_nothing():
    results = await performed([crash_at(mark) for mark in Mark], at_once=6)
    assert {mark for result in results for action, mark in result.faults if action is Action.CRASH} == set(Mark)
    assert [told(result) for result in results if result.violations] == []
