"""What the refund desk knows of a case, and the forms its agents answer in.

The forms are strict JSON Schemas (every property required, nothing besides), as providers want them. Money is text
with two decimals, so that no amount ever passes through a float.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

Dollars = Annotated[str, Field(pattern=r"^[0-9]{1,7}\.[0-9]{2}$", description="US dollars, as in 34.90")]
Summary = Annotated[str, Field(description="One or two sentences for a colleague")]


class Form(BaseModel):
    """An agent's answer: exactly these properties, all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(Form):
    """What the customer's e-mail asks for."""

    customer: Annotated[str, Field(description="The sender's e-mail address, in lower case; empty if there is none")]
    order_id: Annotated[str | None, Field(description="The order it is about, as in A-1042; null if it names none")]
    amount_usd: Annotated[Dollars | None, Field(description="What they say they paid; null if they name no amount")]
    reason: Literal["damaged", "wrong_item", "not_received", "changed_mind", "other"]
    sent_on: Annotated[str | None, Field(description="The date of the e-mail as YYYY-MM-DD; null if it has none")]
    summary: Summary


class HistoryFinding(Form):
    """What the order history says."""

    order_found: Annotated[bool, Field(description="Whether this customer has this order")]
    refundable_usd: Annotated[Dollars, Field(description="Paid for the order and not yet refunded; 0.00 if not found")]
    summary: Summary


class PolicyFinding(Form):
    """What the shop's refund policy says."""

    covered: Annotated[bool, Field(description="Whether the policy grants a refund in this case")]
    rule: Annotated[str, Field(description="The number and gist of the rule that decides")]
    summary: Summary


class FraudFinding(Form):
    """What the fraud check says."""

    risk: Literal["low", "medium", "high"]
    signals: Annotated[list[str], Field(description="What speaks for fraud, one short phrase each; empty if nothing")]
    summary: Summary


class Draft(Form):
    """The decision as an agent drafts it."""

    action: Literal["refund", "deny", "ask_customer"]
    amount_usd: Annotated[Dollars, Field(description="What to refund; 0.00 unless the action is refund")]
    reason: Annotated[str, Field(description="Why, in one or two sentences that the customer may read")]


class Reply(Form):
    """The answer to the customer."""

    subject: str
    body: str


class Refund(TypedDict):
    """What became of the refund that was drafted."""

    status: Literal["paid", "declined", "answered", "failed"]
    """`declined`: a person said no. `answered`: a person answered in its place. `failed`: it could not be paid."""
    refund_id: str | None
    order_id: str
    amount_usd: str
    """What was paid; `0.00` when nothing was."""
    note: str | None
    """What the person or the system said about it."""


class DeskInput(TypedDict):
    """What comes in: one e-mail, headers and all."""

    email: str


class DeskState(TypedDict, total=False):
    """A case, from e-mail to reply."""

    email: str
    claim: dict[str, Any]
    findings: dict[str, Any]
    """The specialists' answers, by their names."""
    decision: dict[str, Any]
    refund: Refund | None
    reply: dict[str, Any]


class DeskOutput(TypedDict):
    """What goes out."""

    decision: dict[str, Any]
    refund: Refund | None
    reply: dict[str, Any]
