"""The simulation proves itself: with any one defence taken away it finds what goes wrong, by seeds that always run."""

import re

import pytest
from simulation.conductor import Result, drawn
from simulation.mutants import MUTANTS
from simulation.seeds import EVIDENCE, FOUND_BY, SEEDS
from simulation.simulate import performed

pytestmark = pytest.mark.slow  # many processes: `make test-sim`, not beside other tests


@pytest.mark.timeout(900)
@pytest.mark.parametrize("defence", MUTANTS)
async def test_missing_defence_is_found(defence: str):
    def found(result: Result) -> bool:
        return any(re.search(EVIDENCE[defence], violation) for violation in result.violations)

    known = FOUND_BY[defence]
    seeds = [*known, *(seed for seed in SEEDS if seed not in known)]
    results = await performed(map(drawn, seeds), at_once=4, mutant=defence, until=found)
    assert any(map(found, results)), f"{len(results)} schedules did not miss it"
