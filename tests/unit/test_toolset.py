"""What may be a tool, what models are told of it, and which arguments it takes."""

import re
import threading
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from langchain_core.tools import InjectedToolArg
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel, Field

from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import ConfigurationError, InvalidRequest, NotFound, NotGoverned
from holdfast.contracts.tools import Effect, ToolTerms
from holdfast.gateway.toolset import Tool, ToolCall, Toolset, called_for, current_tool_call, tool
from holdfast.testing.clock import VirtualClock

CALL = ToolCall(
    idempotency_key="key-1",
    deadline=Deadline.after_seconds(60, clock=VirtualClock()),
    tenant="acme",
    run_id="run-1",
    tool_call_id="call-1",
)


class Payee(BaseModel):
    name: str
    country: str = "DE"


@tool(effect="external", idempotent=True, timeout_seconds=7, permissions=("payments",))
async def pay(
    amount_usd: Decimal,
    payee: Payee,
    purpose: Annotated[str, Field(description="shown to the payee")] = "refund",
    *,
    call: ToolCall,
) -> dict[str, Any]:
    """Pay someone."""
    return {"amount": str(amount_usd), "to": payee.name, "for": purpose, "key": call.idempotency_key}


@langchain_tool
def look_up(order_id: str, depth: int = 1) -> str:
    """Look an order up."""
    return f"{order_id}/{depth}"


def add(first: int, second: int = 2) -> int:
    """Add two numbers."""
    return first + second


def parameters(entry: Tool) -> dict[str, Any]:
    return dict(entry.input_schema)


async def test_a_decorated_function_is_told_its_call_and_models_are_not():
    entry = Toolset.of([pay])["pay"]
    assert set(parameters(entry)["properties"]) == {"amount_usd", "payee", "purpose"}
    with called_for(CALL):
        answer = await entry.run({"amount_usd": "12.50", "payee": {"name": "Jo"}})
    assert answer == {"amount": "12.50", "to": "Jo", "for": "refund", "key": "key-1"}


def test_the_declared_terms_are_kept():
    terms = Toolset.of([pay])["pay"].terms
    assert terms == ToolTerms(effect="external", idempotent=True, timeout_seconds=7, permissions=("payments",))


def test_models_are_told_name_description_and_parameters_in_openais_form():
    [schema] = Toolset.of([pay]).schemas()
    assert schema["type"] == "function"
    function = schema["function"]
    assert (function["name"], function["description"]) == ("pay", "Pay someone.")
    assert function["parameters"]["required"] == ["amount_usd", "payee"]
    assert function["parameters"]["properties"]["purpose"]["description"] == "shown to the payee"


async def test_langchain_tools_and_plain_functions_are_tools_too():
    tools = Toolset.of([look_up, add])
    assert list(tools) == ["look_up", "add"]
    assert await tools["look_up"].run({"order_id": "A-1"}) == "A-1/1"
    assert await tools["add"].run({"first": 3}) == 5


def test_what_declares_nothing_is_taken_for_the_strictest():
    for entry in Toolset.of([look_up, add, tool(do_nothing)]).values():
        assert (entry.terms.effect, entry.terms.idempotent, entry.harmless_twice) == (Effect.EXTERNAL, False, False)


def do_nothing() -> None:
    """Do nothing."""


def test_a_langchain_tool_declares_its_terms_in_its_metadata():
    declared = look_up.model_copy(update={"metadata": {"effect": "read", "timeout_seconds": 3, "team": "orders"}})
    terms = Toolset.of([declared])["look_up"].terms
    assert (terms.effect, terms.timeout_seconds) == (Effect.READ, 3)


def test_configured_terms_change_only_what_they_set():
    terms = Toolset.of([pay], {"pay": ToolTerms(timeout_seconds=2), "absent": ToolTerms()})["pay"].terms
    assert (terms.timeout_seconds, terms.effect, terms.idempotent) == (2, Effect.EXTERNAL, True)


async def test_a_synchronous_tool_runs_off_the_loop_and_still_knows_its_call():
    @tool(effect="read")
    def where() -> dict[str, Any]:
        """Say where."""
        return {"thread": threading.get_ident(), "key": current_tool_call().idempotency_key}

    with called_for(CALL):
        answer = await Toolset.of([where])["where"].run({})
    assert answer["key"] == "key-1"
    assert answer["thread"] != threading.get_ident()


async def test_a_tool_that_needs_its_call_does_not_run_without_one():
    with pytest.raises(NotGoverned, match="governed node"):
        await pay.ainvoke({"amount_usd": "1", "payee": {"name": "Jo"}})


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"payee": {"name": "Jo"}}, "'amount_usd' is a required property"),
        (
            {"amount_usd": "twelve", "payee": {"name": "Jo"}},
            "argument 'amount_usd' of pay: Input should be a valid decimal",
        ),
        ({"amount_usd": "1", "payee": {"name": 5}}, "argument 'payee.name' of pay: 5 is not of type 'string'"),
        ({"amount_usd": "1", "payee": {"name": "Jo"}, "to": "me"}, "'to' was unexpected"),
        ({"amount_usd": "1", "payee": {"name": "J\x00"}}, "NUL"),
        ({"amount_usd": float("inf"), "payee": {"name": "Jo"}}, "inf"),
    ],
)
def test_a_misfit_names_the_argument_and_what_is_wrong(args, complaint):
    with pytest.raises(InvalidRequest, match=re.escape(complaint)):
        Toolset.of([pay])["pay"].require_valid(args)


def test_a_misfit_says_what_the_tool_takes():
    with pytest.raises(InvalidRequest, match=r"add takes first \(integer\), second \(integer, optional\)"):
        Toolset.of([add])["add"].require_valid({"first": "three"})


def test_a_choice_is_told_as_its_values():
    @tool
    def paint(colour: Literal["red", "blue"]) -> None:
        """Paint."""

    with pytest.raises(InvalidRequest, match=r"paint takes colour \('red' \| 'blue'\)"):
        Toolset.of([paint])["paint"].require_valid({"colour": "green"})


def test_completed_arguments_hold_the_defaults_that_will_be_used():
    entry = Toolset.of([pay])["pay"]
    assert entry.completed({"amount_usd": "1"}) == {"amount_usd": "1", "purpose": "refund"}


def test_what_langchain_injects_is_hidden_from_models_and_from_checks():
    @langchain_tool
    def remember(note: str, user: Annotated[str, InjectedToolArg]) -> str:
        """Remember a note."""
        return note + user

    entry = Toolset.of([remember])["remember"]
    assert set(parameters(entry)["properties"]) == {"note"}
    entry.require_valid({"note": "x"})


def test_an_unknown_tool_is_answered_with_those_there_are():
    with pytest.raises(NotFound, match=r"no tool 'fly'; the tools here are: pay, add"):
        Toolset.of([pay, add]).require("fly")
    with pytest.raises(NotFound, match="are: none"):
        Toolset().require("fly")


def undocumented(x: int) -> int:
    return x


def unannotated(x) -> int:  # type: ignore[no-untyped-def]
    """Take anything."""


def variadic(*xs: int) -> int:
    """Take many."""


def unresolvable(x: "Nowhere") -> int:  # noqa: F821
    """Take the unknown."""


def unschematic(x: threading.Thread) -> int:
    """Take what JSON cannot say."""


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (undocumented, "no docstring"),
        (unannotated, "'x'"),
        (variadic, "'xs'"),
        (unresolvable, "Nowhere"),
        (unschematic, "no schema"),
    ],
)
def test_a_function_that_a_model_could_not_call_is_refused_at_once(function, complaint):
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        Toolset.of([function])
    assert function.__name__ in refused.value.message


@pytest.mark.parametrize("terms", [{"effect": "evil"}, {"timeout_seconds": 0}, {"max_result_bytes": -1}])
def test_terms_that_make_no_sense_are_refused_naming_the_tool(terms):
    with pytest.raises(ConfigurationError, match=rf"tool 'add'.*{next(iter(terms))}"):
        tool(**terms)(add)


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="two tools are named 'add'"):
        Toolset.of([add, tool(add)])
