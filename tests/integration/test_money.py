"""Money at its edges: what carried models say they used, and what no provider should be able to say."""

from typing import Any

import pytest
from governing import Desk
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from holdfast import Limits, govern
from holdfast.contracts.errors import BudgetExceeded

UNPRICED = Limits(deadline_seconds=None, max_cost_usd=None)


class State(TypedDict, total=False):
    said: Any


class Counting(BaseChatModel):
    """Answers at once, and says that it has used `tokens` for the input."""

    tokens: int

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **settings: Any
    ) -> ChatResult:
        usage = {"input_tokens": self.tokens, "output_tokens": 0, "total_tokens": self.tokens}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("yes", usage_metadata=usage))])


def asking(model: BaseChatModel) -> Any:
    async def node(state: State) -> State:
        return {"said": (await model.ainvoke("well?")).content}

    return govern(StateGraph(State).add_node("node", node).add_edge(START, "node").compile(), name="asking")


@pytest.mark.parametrize("tokens", [10**9, 2**53, 10**18, 10**30])
async def test_a_count_beyond_all_reason_ends_the_run_and_its_call_is_recorded(tokens: int):
    attempt = await Desk().start(asking(Counting(tokens=tokens)), {}, limits=UNPRICED)
    assert isinstance(attempt.error, BudgetExceeded)
    [call] = await attempt.calls()
    assert (call.status, call.usage.tokens_used) == ("returned", 10**9)
    state = await attempt.desk.store.ledger.state(attempt.run.tenant.tenant_id, attempt.session.budgets[0])
    assert (state.spent.tokens_used, state.reserved.tokens_used) == (10**9, 0)


async def test_a_negative_count_is_no_refund():
    attempt = await Desk().start(asking(Counting(tokens=-5)), {}, limits=UNPRICED)
    assert attempt.error is None
    [call] = await attempt.calls()
    assert call.usage.tokens_used > 0
