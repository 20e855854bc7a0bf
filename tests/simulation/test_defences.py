"""The simulation proves itself: with any one defence taken away it finds what goes wrong, by seeds that always run."""

import pytest
from simulation.conductor import drawn
from simulation.mutants import MUTANTS
from simulation.seeds import FIRST_SEED, FOUND_BY, SCHEDULES
from simulation.simulate import performed

pytestmark = pytest.mark.slow  # many processes: `make test-sim`, not beside other tests

ALWAYS = ("no_fence_in_transactions", "no_intent", "resend_instead_of_reconcile", "check_then_reserve")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("defence", ALWAYS)
async def test_missing_defence_is_found(defence: str):
    await assert_found(defence)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("defence", sorted(set(MUTANTS) - set(ALWAYS)))
async def test_any_other_missing_defence_is_found(defence: str):
    await assert_found(defence)


async def assert_found(defence: str) -> None:
    """The seeds that have found it before come first, and then the others."""
    known = FOUND_BY.get(defence, ())
    seeds = [*known, *known, *(n for n in range(FIRST_SEED, FIRST_SEED + SCHEDULES) if n not in known)]
    results = await performed(map(drawn, seeds), at_once=4, mutant=defence, until_violated=True)
    assert any(result.violations for result in results), f"{len(results)} schedules did not miss it"
