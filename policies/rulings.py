"""What a person's ruling means: as LangChain's decision, as the digest it grants, as the answer to its interrupt."""

from collections.abc import Mapping
from typing import Any

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus, DecisionType, Ruling, grant_digest
from holdfast.contracts.errors import InvalidRequest

SAID_NO = "A person said no."
"""What a model is told of a rejection that gives no reason."""


def ruling_of(decision: DecisionType, *, args: Mapping[str, Any] | None, message: str | None, value: Any) -> Ruling:
    """The ruling, once its parts fit its type. Raises `InvalidRequest` saying what is missing or out of place."""
    if decision not in ("approve", "edit", "reject", "respond"):
        raise InvalidRequest(f"{decision!r} is not a decision; use approve, edit, reject or respond")
    if (decision == "edit") != (args is not None):
        raise InvalidRequest("`args` goes with the decision 'edit', and 'edit' needs it")
    if decision != "respond" and value is not None:
        raise InvalidRequest("`value` goes with the decision 'respond' alone")
    if decision == "respond" and value is None and message is None:
        raise InvalidRequest("'respond' needs a `message` or a `value`: what should the answer be?")
    return Ruling(type=decision, message=message, args=None if args is None else dict(args), value=value)


def recorded_decision(approval: Approval, ruling: Ruling) -> dict[str, Any]:
    """The ruling in the form of LangChain's human-in-the-loop decisions, as the inbox keeps it."""
    if ruling.type not in approval.allowed:
        raise InvalidRequest(
            f"approval {approval.id} does not admit {ruling.type!r}; it admits {', '.join(approval.allowed)}"
        )
    if ruling.type in ("edit", "respond") and len(_actions(approval.payload)) > 1:
        raise InvalidRequest(
            f"approval {approval.id} asks for {len(_actions(approval.payload))} calls at once, and the same "
            f"{ruling.type!r} would stand for each of them; approve or reject them together"
        )
    match ruling.type:
        case "approve":
            return {"type": "approve"}
        case "edit":
            return {"type": "edit", "edited_action": {"name": _action_name(approval), "args": ruling.args}}
        case "reject":
            return {"type": "reject", "message": ruling.message or SAID_NO}
        case "respond":
            answer = ruling.value if ruling.value is not None else ruling.message
            return {"type": "respond", "message": ruling.message or str(answer), "value": answer}


def granted_digest(approval: Approval, ruling: Ruling) -> str | None:
    """What is granted: the asked arguments for `approve`, the edited ones for `edit`, nothing otherwise."""
    if approval.kind is not ApprovalKind.TOOL or approval.tool_name is None or approval.policy_version is None:
        return None
    match ruling.type:
        case "approve":
            return approval.args_digest
        case "edit":
            return grant_digest(approval.tool_name, ruling.args or {}, approval.policy_version)
        case _:
            return None


def decision_of(approval: Approval) -> dict[str, Any]:
    """The recorded decision. What expired is a no."""
    if approval.status is ApprovalStatus.EXPIRED:
        return {"type": "reject", "message": "Nobody decided in time; the request has expired."}
    return dict(approval.decision or {})


def answer(approval: Approval) -> Any:
    """The value that the approval's interrupt is resumed with, and only by its id."""
    decision = decision_of(approval)
    actions = _actions(approval.payload)
    if actions:
        return {"decisions": [decision] * len(actions)}
    if decision.get("type") == "respond":
        return decision.get("value")
    return {"approve": True, "reject": False}.get(str(decision.get("type")), decision)


def _actions(payload: Any) -> list[Mapping[str, Any]]:
    requests = payload.get("action_requests") if isinstance(payload, Mapping) else None
    return list(requests) if isinstance(requests, list) else []


def _action_name(approval: Approval) -> str:
    actions = _actions(approval.payload)
    return approval.tool_name or (str(actions[0].get("name")) if actions else "")
