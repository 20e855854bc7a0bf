"""The refund desk's tools: four that look, and one that pays."""

import asyncio
import json
from functools import cache
from importlib.resources import files
from typing import Any

from holdfast.contracts.errors import InvalidRequest
from holdfast.gateway.toolset import ToolCall, tool
from holdfast.graphs.refund_desk.state import Dollars
from holdfast.graphs.refund_desk.store import ledger

_FILES = files(__package__)


@tool(effect="read", idempotent=True)
async def look_up_order(customer: str, order_id: str, *, call: ToolCall) -> dict[str, Any]:
    """The customer's order, and what was refunded of it; says so when this customer has no such order."""
    order = _order(customer, order_id)
    if order is None:
        return {"found": False, "order_id": order_id}
    refunded = await asyncio.to_thread(ledger().refunded_usd, call.tenant, order_id)
    return {"found": True, **order, "refunded_usd": refunded}


@tool(effect="read", idempotent=True)
def look_up_customer(customer: str) -> dict[str, Any]:
    """What the shop knows of a customer: since when, refunds, chargebacks, changes of address."""
    known = [entry for entry in _order_book()["customers"] if entry["email"] == customer.lower()]
    return {"found": True, **known[0]} if known else {"found": False, "email": customer}


@tool(effect="read", idempotent=True)
def read_refund_policy() -> str:
    """The shop's refund policy, rule by rule."""
    return (_FILES / "policy.txt").read_text(encoding="utf-8")


@tool(effect="external", idempotent=True, timeout_seconds=20)
async def issue_refund(
    order_id: str, customer: str, amount_usd: Dollars, reason: str, *, call: ToolCall
) -> dict[str, Any]:
    """Pay an amount of a customer's order back to them. The same call pays once, however often it is sent."""
    order = _order(customer, order_id)
    if order is None:
        raise InvalidRequest(f"{customer} has no order {order_id!r}; nothing was refunded", order_id=order_id)
    paid = await asyncio.to_thread(
        ledger().pay,
        idempotency_key=call.idempotency_key,
        tenant_id=call.tenant,
        order_id=order_id,
        amount_usd=amount_usd,
        reason=reason,
        at_most_usd=order["paid_usd"],
    )
    return {"refund_id": paid.refund_id, "order_id": paid.order_id, "amount_usd": paid.amount_usd}


TOOLS = (look_up_order, look_up_customer, read_refund_policy, issue_refund)


def _order(customer: str, order_id: str) -> dict[str, Any] | None:
    mine = (order for order in _order_book()["orders"] if order["customer"] == customer.lower())
    return next((order for order in mine if order["order_id"] == order_id), None)


@cache
def _order_book() -> dict[str, Any]:
    book: dict[str, Any] = json.loads((_FILES / "order_book.json").read_text(encoding="utf-8"))
    return book
