"""The refund desk's offline model: plain rules that read the prompt they are given and answer as the agent would.

It stands in for a real model wherever there is no network: same prompts, same forms, answers that depend on the input
alone. It reads only what the fences of the prompt enclose, so what it knows is what a real model would know.
"""

import json
import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from email.utils import parseaddr, parsedate_to_datetime
from typing import Any

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.models import ModelRequest
from holdfast.graphs.refund_desk.state import (
    Claim,
    Draft,
    Form,
    FraudFinding,
    HistoryFinding,
    PolicyFinding,
    Reply,
)

Sources = dict[str, Any]
_FENCED = re.compile(r"^<<<(\w+) (\w+)\n(.*?)\n\2 \1>>>$", re.DOTALL | re.MULTILINE)
_ORDER = re.compile(r"\b[A-Z]{1,3}-\d{3,6}\b")
_NUMBER = r"(\d[\d,]*(?:\.\d{1,2})?)"
_AMOUNT = re.compile(rf"(?:\$\s?|USD\s?){_NUMBER}|{_NUMBER}\s?(?:USD\b|US dollars|dollars|\$)")
_ORDERS_GIVEN = re.compile(
    r"ignore (?:all|any|your|the|earlier|previous)|skip the .{0,30}check|system (?:note|prompt|message)", re.IGNORECASE
)
_REASONS: dict[str, tuple[str, ...]] = {
    "not_received": (
        "never arrived",
        "not arrived",
        "never received",
        "not received",
        "didn't arrive",
        "did not arrive",
    ),
    "wrong_item": ("wrong item", "wrong size", "wrong colour", "wrong color", "not what i ordered"),
    "damaged": (
        "broken",
        "damaged",
        "leak",
        "defect",
        "faulty",
        "crushed",
        "does not work",
        "doesn't work",
        "scratched",
    ),
    "changed_mind": ("changed my mind", "don't need", "do not need", "don't like", "do not like", "no longer want"),
}


def answer(request: ModelRequest) -> str:
    """The answer of the agent that the request names, as JSON. Raises `InvalidRequest` for an agent unknown here."""
    play = _PARTS.get(request.agent_name)
    if play is None:
        raise InvalidRequest(f"the refund desk's script has no part for agent {request.agent_name!r}")
    return play(_sources(request)).model_dump_json()


def _sources(request: ModelRequest) -> Sources:
    text = "\n".join(str(message["content"]) for message in request.messages if message["role"] == "user")
    return {name: _read(content) for name, _, content in _FENCED.findall(text)}


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _intake(sources: Sources) -> Form:
    email = str(sources["email"])
    orders, amounts = _ORDER.findall(email), _amounts(email)
    reason = _reason(email)
    tried = " The e-mail also tries to give us orders." if _ORDERS_GIVEN.search(email) else ""
    about = f"order {orders[0]}" if orders else "an order they do not name"
    return Claim.model_validate(
        {
            "customer": parseaddr(_header(email, "From"))[1].lower(),
            "order_id": orders[0] if orders else None,
            "amount_usd": amounts[0] if amounts else None,
            "reason": reason,
            "sent_on": _sent_on(email),
            "summary": f"The customer wants a refund for {about} ({reason.replace('_', ' ')}).{tried}",
        }
    )


def _order_history(sources: Sources) -> Form:
    order = sources["order"]
    if not order.get("found"):
        return HistoryFinding(order_found=False, refundable_usd="0.00", summary="This customer has no such order.")
    left = _refundable(order)
    return HistoryFinding(
        order_found=True,
        refundable_usd=f"{left:.2f}",
        summary=f"{order['item']}, delivered on {order['delivered_on']}: ${order['paid_usd']} paid, "
        f"${order['refunded_usd']} refunded so far.",
    )


def _refund_policy(sources: Sources) -> Form:
    covered, rule, why = _rule(sources["claim"], sources["order"])
    return PolicyFinding(covered=covered, rule=rule, summary=why)


def _fraud_signals(sources: Sources) -> Form:
    signals = list(_signals(sources))
    risk = "high" if len(signals) > 1 else "medium" if signals else "low"
    said = "; ".join(signals) if signals else "nothing stands out"
    return FraudFinding.model_validate({"risk": risk, "signals": signals, "summary": f"Risk {risk}: {said}."})


def _decision(sources: Sources) -> Form:
    claim, findings = sources["claim"], sources["findings"]
    history, policy, fraud = findings["order_history"], findings["refund_policy"], findings["fraud_signals"]
    if not history["order_found"]:
        return _draft("ask_customer", "We could not find this order under your e-mail address; please send its number.")
    left = Decimal(history["refundable_usd"])
    if left <= 0:
        return _draft("deny", "This order has already been refunded in full.")
    if fraud["risk"] == "high":
        return _draft("deny", "The request did not pass our checks.")
    if not policy["covered"]:
        return _draft("deny", f"Our refund policy does not cover this: {policy['summary']}")
    amount = min(left, Decimal(claim["amount_usd"] or left))
    return _draft("refund", f"Our refund policy covers this: {policy['summary']}", amount)


def _reply(sources: Sources) -> Form:
    draft, refund = sources["decision"], sources["refund"]
    name = parseaddr(_header(str(sources["email"]), "From"))[0].split(" ")[0] or "customer"
    subject = "Re: " + (_header(str(sources["email"]), "Subject") or "your request")
    body = f"Dear {name},\n\n{_news(draft, refund)}\n\nKind regards\nThe Fernwell team"
    return Reply(subject=subject, body=body)


_PARTS: dict[str, Callable[[Sources], Form]] = {
    "intake": _intake,
    "order_history": _order_history,
    "refund_policy": _refund_policy,
    "fraud_signals": _fraud_signals,
    "decision": _decision,
    "reply": _reply,
}


def _draft(action: str, reason: str, amount: Decimal = Decimal(0)) -> Draft:
    return Draft.model_validate({"action": action, "amount_usd": f"{amount:.2f}", "reason": reason})


def _news(draft: dict[str, Any], refund: dict[str, Any] | None) -> str:
    if refund is None:
        opening = "we need a little more from you." if draft["action"] == "ask_customer" else "we cannot refund this."
        return f"{opening} {draft['reason']}"
    note = f" {refund['note']}" if refund["note"] else ""
    return {
        "paid": f"we have refunded ${refund['amount_usd']} for order {refund['order_id']} (our reference "
        f"{refund['refund_id']}).{note}",
        "declined": f"a colleague has looked at your request and declined the refund.{note}",
        "answered": f"a colleague has looked at your request.{note}",
        "failed": "your refund is not through yet; we are looking into it.",
    }[refund["status"]]


def _header(email: str, name: str) -> str:
    found = re.search(rf"^{name}:[ \t]*(.+)$", email, re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else ""


def _amounts(email: str) -> list[str]:
    texts = [(before or after).replace(",", "") for before, after in _AMOUNT.findall(email)]
    return [f"{Decimal(text):.2f}" for text in texts if Decimal(text) < 10_000_000]


def _reason(email: str) -> str:
    text = " ".join(email.lower().split())
    return next((reason for reason, words in _REASONS.items() if any(word in text for word in words)), "other")


def _sent_on(email: str) -> str | None:
    try:
        return parsedate_to_datetime(_header(email, "Date")).date().isoformat()
    except ValueError:
        return None


def _refundable(order: dict[str, Any]) -> Decimal:
    return max(Decimal(0), Decimal(order["paid_usd"]) - Decimal(order["refunded_usd"]))


def _rule(claim: dict[str, Any], order: dict[str, Any]) -> tuple[bool, str, str]:
    if not order.get("found"):
        return False, "none", "the order is not known."
    sent_on = claim["sent_on"] or order["delivered_on"]
    days = (date.fromisoformat(sent_on) - date.fromisoformat(order["delivered_on"])).days
    if days > 30:
        return False, "4: nothing after 30 days", f"the goods were delivered {days} days before the request."
    if claim["reason"] in {"damaged", "wrong_item"}:
        return True, "1: damaged, faulty or wrong goods", "damaged or wrong goods are refunded within 30 days."
    if claim["reason"] == "not_received":
        if order["signed_for"]:
            return False, "3: goods that never arrived", "the carrier has a signature for the delivery."
        return True, "3: goods that never arrived", "goods that never arrived are refunded."
    if claim["reason"] == "changed_mind" and days <= 14 and order["returned"]:
        return True, "2: goods no longer wanted", "returned goods are refunded within 14 days."
    return False, "2: goods no longer wanted", "goods are taken back within 14 days, once they have been returned."


def _signals(sources: Sources) -> list[str]:
    customer, order, claim = sources["customer"], sources["order"], sources["claim"]
    checks = {
        f"{customer.get('refunds_last_90_days')} refunds in 90 days": customer.get("refunds_last_90_days", 0) >= 3,
        f"{customer.get('chargebacks')} chargebacks": customer.get("chargebacks", 0) > 0,
        "address changed after the order": customer.get("address_changed_after_order", False),
        "signed for, but said not to have arrived": bool(order.get("signed_for") and claim["reason"] == "not_received"),
        "the e-mail gives orders to our systems": bool(_ORDERS_GIVEN.search(str(sources["email"]))),
    }
    return [signal for signal, seen in checks.items() if seen]
