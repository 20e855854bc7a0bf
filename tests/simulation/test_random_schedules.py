"""Random faults over real processes and a real Postgres: so many schedules with every change."""

import pytest
from simulation.conductor import Stage
from simulation.schedules import drawn
from simulation.seeds import MINIMUM, SEEDS
from simulation.simulate import histogram, performed, told

from holdfast.testing.faults import Action


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(600)
async def test_what_is_promised_holds_under_any_schedule(stage: Stage, capsys: pytest.CaptureFixture[str]):
    results = await performed(stage, map(drawn, SEEDS))
    with capsys.disabled():
        print(f"\n{histogram(results)}")
    assert len(results) == len(SEEDS) >= MINIMUM
    assert {action for result in results for action, _ in result.faults} == set(Action), "a fault that never happens"
    unheard = {each for result in results for each in result.unheard}
    assert unheard >= {"flush", "transaction"}, "a commit whose answer is never lost"
    assert [told(result) for result in results if result.violations] == []


def test_seed_draws_the_same_schedule_again():
    assert drawn(SEEDS[0]) == drawn(SEEDS[0])
    assert drawn(SEEDS[0]) != drawn(SEEDS[1])
