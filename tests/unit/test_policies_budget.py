"""Arithmetic of budgets."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.models import PriceQuote
from holdfast.policies.budget import exceeded, reservation, share

UNLIMITED = Limits(**dict.fromkeys(Limits.model_fields))


def state(limits: Limits, spent: Usage | None = None, reserved: Usage | None = None) -> BudgetState:
    return BudgetState(limits=limits, spent=spent or Usage(), reserved=reserved or Usage())


def test_a_reservation_is_the_input_and_every_output_token_priced_and_rounded_up():
    quote = PriceQuote(cost_usd=Decimal("0.00123401"), source="configured")
    assert reservation(200, 100, quote) == Usage(model_calls=1, tokens_used=300, cost_usd=Decimal("0.001235"))


def test_an_unknown_price_is_reserved_as_unknown():
    assert reservation(1, 1, PriceQuote(cost_usd=None, source="unknown")).cost_usd is None


def test_a_share_is_cut_from_what_is_neither_spent_nor_reserved():
    limits = Limits(max_model_calls=12, max_tool_calls=10, max_tokens=1000, max_cost_usd=Decimal("1.00"))
    spent = Usage(model_calls=1, tokens_used=100, cost_usd=Decimal("0.10"))
    reserved = Usage(model_calls=1, tokens_used=100, cost_usd=Decimal("0.10"))
    cut = share(state(limits, spent, reserved), 0.3, deadline_seconds=20)
    assert cut == Limits(
        deadline_seconds=20,
        max_model_calls=3,
        max_tool_calls=3,
        max_tokens=240,
        max_cost_usd=Decimal("0.24"),
        max_steps=None,
    )


def test_a_small_share_of_a_small_rest_is_still_one_call():
    assert share(state(Limits(max_model_calls=1)), 0.1).max_model_calls == 1


def test_nothing_left_is_shared_out_as_nothing():
    cut = share(state(Limits(max_model_calls=1, max_cost_usd=1), Usage(model_calls=2, cost_usd=Decimal(2))), 0.5)
    assert (cut.max_model_calls, cut.max_cost_usd) == (0, 0)


def test_of_a_spending_of_unknown_price_nothing_is_left_to_share():
    assert share(state(Limits(max_cost_usd=1), Usage(cost_usd=None)), 0.5).max_cost_usd == 0


def test_what_is_unlimited_stays_so():
    assert share(state(UNLIMITED), 0.5) == UNLIMITED


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 2_000_000))
def test_shares_of_cost_that_add_up_to_the_whole_never_pass_it(weights, microusd):
    whole = state(Limits(max_cost_usd=Decimal(microusd) / 1_000_000))
    parts = [share(whole, max(weight / sum(weights), 1e-6)).max_cost_usd for weight in weights]
    assert sum(parts) <= whole.limits.max_cost_usd + Decimal("0.00001")


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_share_that_is_no_part_is_refused(fraction):
    with pytest.raises(InvalidRequest, match="share"):
        share(state(Limits()), fraction)


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        (Usage(), None),
        (Usage(model_calls=5, tool_calls=5, tokens_used=5, steps=5, cost_usd=Decimal(5)), None),
        (Usage(model_calls=6), "max_model_calls"),
        (Usage(tool_calls=6), "max_tool_calls"),
        (Usage(tokens_used=6), "max_tokens"),
        (Usage(steps=6), "max_steps"),
        (Usage(cost_usd=Decimal("5.000001")), "max_cost_usd"),
        (Usage(cost_usd=None), "max_cost_usd"),
    ],
)
def test_exceeded_names_the_limit_that_was_passed(spent, limit):
    five = Limits(max_model_calls=5, max_tool_calls=5, max_tokens=5, max_steps=5, max_cost_usd=5)
    assert exceeded(state(five, spent)) == limit


def test_without_limits_nothing_is_exceeded():
    assert exceeded(state(UNLIMITED, Usage(model_calls=10**9, cost_usd=None))) is None
