"""LangGraph's own conformance kit for checkpointers, all of its extended capabilities included."""

from collections.abc import AsyncGenerator

import pytest
from fix_database import encrypting
from fix_house import House
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES

from holdfast.checkpoints.saver import saver_for


@pytest.mark.parametrize("encryption", [None, encrypting("k1")], ids=["in the clear", "encrypted"])
async def test_saver_passes_langgraphs_conformance_kit_in_full(house: House) -> None:
    @checkpointer_test(name="FencedSaver")
    async def ours() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
        await house.runs.admit(house.request())
        claim = await house.claim_one()
        yield saver_for(house.database, claim.owner)
        await house.end(claim)

    report = await validate(ours)
    assert {name: result.failures for name, result in report.results.items() if not result.passed} == {}
    assert set(report.results) == {capability.value for capability in ALL_CAPABILITIES}
    assert all(result.tests_passed for result in report.results.values())
