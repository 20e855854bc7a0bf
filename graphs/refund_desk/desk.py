"""The refund desk: an e-mail comes in; a decision, perhaps a refund, and a reply come out.

A supervisor reads the e-mail, sends three specialists to look at it side by side, and has a decision drafted. The
draft is checked against what they found before money moves: a model advises, the code decides. Whether a person is
asked before a refund is policy's affair (`policy.cedar`); the graph only calls the tool.
"""

from importlib.resources import files
from typing import Any, Literal, TypeVar

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from holdfast.contracts.tools import ToolResult
from holdfast.graphs.govern import govern
from holdfast.graphs.refund_desk import prompts
from holdfast.graphs.refund_desk.state import (
    Claim,
    DeskInput,
    DeskOutput,
    DeskState,
    Draft,
    Form,
    FraudFinding,
    HistoryFinding,
    PolicyFinding,
    Refund,
    Reply,
)
from holdfast.graphs.refund_desk.tools import TOOLS
from holdfast.nodes.assembly import Prompt
from holdfast.nodes.context import RunContext
from holdfast.nodes.fanout import Specialist

Desk = Runtime[RunContext]
Answer = dict[str, Any]
AnyForm = TypeVar("AnyForm", bound=Form)


async def read_email(state: DeskState, runtime: Desk) -> DeskState:
    """Note what the customer asks for."""
    claim = await _ask("intake", prompts.intake(state), Claim, runtime)
    return {"claim": claim.model_dump()}


async def investigate(state: DeskState, runtime: Desk) -> DeskState:
    """Send the specialists. All three must come back: nothing is decided on half of the checks."""
    claim, email = Claim.model_validate(state["claim"]), state["email"]

    async def order_history() -> Answer:
        order = await _order(claim, runtime)
        prompt = prompts.order_history(claim, order)
        return (await _ask("order_history", prompt, HistoryFinding, runtime)).model_dump()

    async def refund_policy() -> Answer:
        order, policy = await _order(claim, runtime), await _look("read_refund_policy", {}, runtime)
        prompt = prompts.refund_policy(claim, order, policy)
        return (await _ask("refund_policy", prompt, PolicyFinding, runtime)).model_dump()

    async def fraud_signals() -> Answer:
        order = await _order(claim, runtime)
        customer = await _look("look_up_customer", {"customer": claim.customer}, runtime)
        prompt = prompts.fraud_signals(claim, email, order, customer)
        return (await _ask("fraud_signals", prompt, FraudFinding, runtime)).model_dump()

    specialists: list[Specialist[Answer]] = [
        Specialist("order_history", order_history, budget_share=0.3, deadline_seconds=60),
        Specialist("refund_policy", refund_policy, budget_share=0.3, deadline_seconds=60),
        Specialist("fraud_signals", fraud_signals, budget_share=0.3, deadline_seconds=60),
    ]
    outcomes = await runtime.context.fan_out(specialists, limit=3)
    return {"findings": {outcome.name: outcome.value for outcome in outcomes}}


async def decide(state: DeskState, runtime: Desk) -> DeskState:
    """Have the decision drafted, and hold the draft against the findings."""
    draft = await _ask("decision", prompts.decision(state), Draft, runtime)
    return {"decision": checked(draft, state["findings"]).model_dump(), "refund": None}


def checked(draft: Draft, findings: dict[str, Any]) -> Draft:
    """The draft, or a denial where it would refund what the findings rule out: a text may talk a model into that."""
    if draft.action != "refund" or _refundable(findings):
        return draft
    return Draft(action="deny", amount_usd="0.00", reason="The request did not pass our checks.")


async def issue_refund(state: DeskState, runtime: Desk) -> DeskState:
    """Pay. A person may be asked first, and may decline, change the amount or answer in the tool's place."""
    claim, draft = state["claim"], state["decision"]
    args = {
        "order_id": claim["order_id"],
        "customer": claim["customer"],
        "amount_usd": draft["amount_usd"],
        "reason": draft["reason"],
    }
    result = await runtime.context.tools.call("issue_refund", args)
    return {"refund": _refund(result, order_id=claim["order_id"])}


async def write_reply(state: DeskState, runtime: Desk) -> DeskState:
    """Write to the customer what has really happened."""
    reply = await _ask("reply", prompts.reply(state), Reply, runtime)
    return {"reply": reply.model_dump()}


def after_decision(state: DeskState) -> Literal["issue_refund", "write_reply"]:
    """Pay first where the decision is a refund."""
    return "issue_refund" if state["decision"]["action"] == "refund" else "write_reply"


async def _ask(agent: str, prompt: Prompt, form: type[AnyForm], runtime: Desk) -> AnyForm:
    reply = await runtime.context.models.call(
        prompt.messages,
        agent=agent,
        model=runtime.context.model,
        response_schema=form,
        prompt_version=prompt.prompt_version,
    )
    answer: AnyForm = reply.parsed
    return answer


async def _order(claim: Claim, runtime: Desk) -> Any:
    if claim.order_id is None:
        return {"found": False, "order_id": None}
    return await _look("look_up_order", {"customer": claim.customer, "order_id": claim.order_id}, runtime)


async def _look(tool: str, args: dict[str, Any], runtime: Desk) -> Any:
    result = await runtime.context.tools.call(tool, args)
    return result.output if result.status == "ok" else {"found": False, "problem": result.text}


def _refundable(findings: dict[str, Any]) -> bool:
    return bool(
        findings["order_history"]["order_found"]
        and findings["refund_policy"]["covered"]
        and findings["fraud_signals"]["risk"] != "high"
    )


def _refund(result: ToolResult, *, order_id: str) -> Refund:
    status, paid = _became(result), result.output or {} if result.status == "ok" else {}
    return Refund(
        status=status,
        refund_id=paid.get("refund_id"),
        order_id=order_id,
        amount_usd=paid.get("amount_usd", "0.00"),
        note=None if status == "paid" else result.text,
    )


def _became(result: ToolResult) -> Literal["paid", "declined", "answered", "failed"]:
    if result.status == "ok":
        return "paid"
    if result.status == "error":
        return "failed"
    return "declined" if result.output is None else "answered"


def _build() -> StateGraph[DeskState, RunContext, DeskInput, DeskOutput]:
    builder = StateGraph(DeskState, context_schema=RunContext, input_schema=DeskInput, output_schema=DeskOutput)
    for node in (read_email, investigate, decide, issue_refund, write_reply):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "read_email")
    builder.add_edge("read_email", "investigate")
    builder.add_edge("investigate", "decide")
    builder.add_conditional_edges("decide", after_decision)
    builder.add_edge("issue_refund", "write_reply")
    builder.add_edge("write_reply", END)
    return builder


POLICY = (files(__package__) / "policy.cedar").read_text(encoding="utf-8")

graph = govern(
    _build().compile(),
    name="refund_desk",
    version="1.0",  # named, since its ledger stands in another file for every process that says so
    tools=TOOLS,
    policies=[POLICY],
    default_model="scripted:holdfast.graphs.refund_desk.script:answer",
)
