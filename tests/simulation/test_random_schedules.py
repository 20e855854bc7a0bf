"""Random faults over real processes and a real Postgres: so many schedules with every change."""

import pytest
from simulation.conductor import drawn
from simulation.seeds import SEEDS
from simulation.simulate import histogram, performed, told

from holdfast.testing.faults import Action

pytestmark = pytest.mark.slow  # many processes: `make test-sim`, not beside other tests


@pytest.mark.timeout(900)
async def test_what_is_promised_holds_under_any_schedule(capsys: pytest.CaptureFixture[str]):
    results = await performed(map(drawn, SEEDS), at_once=6)
    with capsys.disabled():
        print(f"\n{histogram(results)}")
    assert len(results) == len(SEEDS)
    assert sum(result.faults.total() for result in results) > len(SEEDS)
    assert [told(result) for result in results if result.violations] == []


def test_every_kind_of_fault_is_among_the_seeds_that_always_run():
    planned = [fault.action for schedule in map(drawn, SEEDS) for fault in schedule.faults]
    assert set(planned) == set(Action)


def test_seed_draws_the_same_schedule_again():
    assert drawn(SEEDS[0]) == drawn(SEEDS[0])
    assert drawn(SEEDS[0]) != drawn(SEEDS[1])
