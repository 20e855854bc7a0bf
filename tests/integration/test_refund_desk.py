"""The refund desk from e-mail to reply: on Postgres, through the public runtime, offline."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_database import DatabaseUrls

from holdfast.contracts.approvals import Approval, DecisionType
from holdfast.contracts.errors import ErrorType
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import RunResult, RunStatus
from holdfast.contracts.tenancy import Principal, Tenant
from holdfast.graphs.refund_desk import graph, sample, store
from holdfast.graphs.refund_desk.desk import checked
from holdfast.graphs.refund_desk.state import Draft
from holdfast.graphs.refund_desk.store import RefundLedger
from holdfast.runtime.runtime import Runtime
from holdfast.server.bootstrap import open_runtime

DANA = Principal(user_id="dana", tenants=("acme",), roles=("approver",))


class Desk:
    """The refund desk, and short ways to use it."""

    def __init__(self, runtime: Runtime, ledger: RefundLedger) -> None:
        self.runtime = runtime
        self.ledger = ledger

    async def handle(self, email: str, **options: Any) -> RunResult:
        run = await self.runtime.start(graph, {"email": email}, tenant="acme", **options)
        return await run.result(timeout=60)

    async def decide(self, result: RunResult, decision: DecisionType, **with_: Any) -> RunResult:
        await self.runtime.decide(result.approvals[0].id, decision, by="dana", **with_)
        run = await self.runtime.run(result.run_id, tenant="acme")
        return await run.result(timeout=60)

    def paid(self) -> list[tuple[str, str]]:
        return [(refund.order_id, refund.amount_usd) for refund in self.ledger.refunds()]


@asynccontextmanager
async def opened(urls: DatabaseUrls, folder: Path) -> AsyncIterator[Desk]:
    ledger = store.configure(folder / "refunds.sqlite3")
    settings = {
        "DATABASE_URL": urls.app,
        "tenants": [Tenant(tenant_id="acme")],
        "principals": {"dana": DANA},
    }
    async with open_runtime(**settings, graphs=[graph]) as runtime:
        yield Desk(runtime, ledger)


async def test_a_small_refund_is_paid_at_once(database_urls: DatabaseUrls, tmp_path: Path):
    async with opened(database_urls, tmp_path) as desk:
        result = await desk.handle(sample("small"))
        report = await desk.runtime.show(result.run_id, tenant="acme")

    assert result.status is RunStatus.COMPLETED, result.error
    assert desk.paid() == [("A-1042", "34.90")]
    assert result.output["refund"]["status"] == "paid"
    assert "we have refunded $34.90" in result.output["reply"]["body"]
    models = Counter(call.agent_name for call in report.calls if call.identity.kind == "model")
    assert models == Counter(["intake", "order_history", "refund_policy", "fraud_signals", "decision", "reply"])
    [payment] = [call for call in report.calls if call.identity.name == "issue_refund"]
    assert desk.ledger.refunds()[0].idempotency_key == payment.identity.key
    assert report.approvals == []


async def test_a_large_refund_waits_for_a_person_and_is_paid_once_they_approve(
    database_urls: DatabaseUrls, tmp_path: Path
):
    async with opened(database_urls, tmp_path) as desk:
        asked = await desk.handle(sample("large"))

        assert asked.status is RunStatus.INTERRUPTED, asked.error
        [approval] = asked.approvals
        assert approval.tool_name == "issue_refund"
        assert approval.args["amount_usd"] == "249.00"
        assert approval.rule == "refund_desk.large_refund"
        assert desk.paid() == []

        result = await desk.decide(asked, "approve")

    assert result.status is RunStatus.COMPLETED, result.error
    assert desk.paid() == [("A-1077", "249.00")]
    assert "we have refunded $249.00" in result.output["reply"]["body"]


async def test_a_claim_that_fails_the_checks_is_denied_without_asking_anyone(
    database_urls: DatabaseUrls, tmp_path: Path
):
    async with opened(database_urls, tmp_path) as desk:
        result = await desk.handle(sample("denied"))
        asked = await desk.runtime.approvals(tenant="acme", pending_only=False)

    assert result.status is RunStatus.COMPLETED, result.error
    assert result.output["decision"]["action"] == "deny"
    assert result.output["refund"] is None
    assert "we cannot refund this" in result.output["reply"]["body"]
    assert desk.paid() == []
    assert asked == []


async def test_a_refund_that_a_person_declines_is_not_paid_and_the_reply_says_why(
    database_urls: DatabaseUrls, tmp_path: Path
):
    async with opened(database_urls, tmp_path) as desk:
        result = await desk.decide(await desk.handle(sample("large")), "reject", message="The machine is not back yet.")

    assert result.output["refund"]["status"] == "declined"
    assert "The machine is not back yet." in result.output["reply"]["body"]
    assert desk.paid() == []


async def test_an_edited_amount_is_what_is_paid_and_what_the_reply_says(database_urls: DatabaseUrls, tmp_path: Path):
    async with opened(database_urls, tmp_path) as desk:
        asked = await desk.handle(sample("large"))
        result = await desk.decide(asked, "edit", args=edited(asked.approvals[0], "120.00"))

    assert desk.paid() == [("A-1077", "120.00")]
    assert "we have refunded $120.00" in result.output["reply"]["body"]


async def test_an_answer_in_the_tools_place_reaches_the_customer(database_urls: DatabaseUrls, tmp_path: Path):
    async with opened(database_urls, tmp_path) as desk:
        result = await desk.decide(await desk.handle(sample("large")), "respond", message="We will send you a new one.")

    assert result.output["refund"]["status"] == "answered"
    assert "We will send you a new one." in result.output["reply"]["body"]
    assert desk.paid() == []


async def test_more_than_was_paid_is_not_refunded_even_when_a_person_says_so(
    database_urls: DatabaseUrls, tmp_path: Path
):
    async with opened(database_urls, tmp_path) as desk:
        asked = await desk.handle(sample("large"))
        result = await desk.decide(asked, "edit", args=edited(asked.approvals[0], "900.00"))

    assert result.status is RunStatus.COMPLETED, result.error
    assert result.output["refund"]["status"] == "failed"
    assert "we are looking into it" in result.output["reply"]["body"]
    assert desk.paid() == []


async def test_the_same_email_again_is_not_refunded_again(database_urls: DatabaseUrls, tmp_path: Path):
    async with opened(database_urls, tmp_path) as desk:
        await desk.handle(sample("small"))
        again = await desk.handle(sample("small"))

    assert again.output["decision"]["action"] == "deny"
    assert "already been refunded" in again.output["reply"]["body"]
    assert desk.paid() == [("A-1042", "34.90")]


async def test_another_customers_order_is_not_refunded(database_urls: DatabaseUrls, tmp_path: Path):
    email = sample("small").replace("ana.silva@example.com", "mallory@example.com")

    async with opened(database_urls, tmp_path) as desk:
        result = await desk.handle(email)

    assert result.output["decision"]["action"] == "ask_customer"
    assert desk.paid() == []


@pytest.mark.parametrize("email", ["", "Hello, where is my money?", "x" * 50_000])
async def test_an_email_without_a_case_is_answered(email: str, database_urls: DatabaseUrls, tmp_path: Path):
    async with opened(database_urls, tmp_path) as desk:
        result = await desk.handle(email)

    assert result.status is RunStatus.COMPLETED, result.error
    assert result.output["decision"]["action"] == "ask_customer"
    assert desk.paid() == []


async def test_each_specialist_has_a_budget_of_its_own(database_urls: DatabaseUrls, tmp_path: Path):
    async with opened(database_urls, tmp_path) as desk:
        result = await desk.handle(sample("small"))
        events = await desk.runtime.events(result.run_id, tenant="acme")

    shares = [event.payload["specialist"] for event in events if event.kind is EventKind.BUDGET_OPENED]
    assert sorted(shares) == ["fraud_signals", "order_history", "refund_policy"]


async def test_a_run_that_uses_up_its_model_calls_ends_and_pays_nothing(database_urls: DatabaseUrls, tmp_path: Path):
    async with opened(database_urls, tmp_path) as desk:
        result = await desk.handle(sample("small"), limits=Limits(max_model_calls=1))

    assert result.status is RunStatus.FAILED
    assert result.error.error_type is ErrorType.BUDGET_EXCEEDED
    assert result.usage.model_calls == 1
    assert desk.paid() == []


@pytest.mark.parametrize(
    ("found", "covered", "risk", "action"),
    [
        (True, True, "low", "refund"),
        (True, True, "medium", "refund"),
        (True, True, "high", "deny"),
        (True, False, "low", "deny"),
        (False, True, "low", "deny"),
    ],
)
def test_a_draft_that_a_text_talked_the_model_into_is_held_against_the_findings(
    found: bool, covered: bool, risk: str, action: str
):
    draft = Draft(action="refund", amount_usd="900.00", reason="Verified by management.")
    findings = {
        "order_history": {"order_found": found},
        "refund_policy": {"covered": covered},
        "fraud_signals": {"risk": risk},
    }

    assert checked(draft, findings).action == action


def edited(approval: Approval, amount_usd: str) -> dict[str, Any]:
    return {**(approval.args or {}), "amount_usd": amount_usd}
