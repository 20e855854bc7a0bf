"""The outside ledger: what makes `issue_refund` safe to send twice."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.contracts.errors import Conflict
from holdfast.graphs.refund_desk.store import RefundLedger

PAYMENT = {
    "tenant_id": "acme",
    "order_id": "A-1042",
    "amount_usd": "20.00",
    "reason": "broken",
    "at_most_usd": "34.90",
}


@pytest.fixture
def ledger(tmp_path: Path) -> RefundLedger:
    return RefundLedger(tmp_path / "new folder" / "refunds.sqlite3")


def test_the_same_key_pays_once_and_is_told_the_same_refund(ledger: RefundLedger):
    first = ledger.pay(idempotency_key="k1", **PAYMENT)
    again = ledger.pay(idempotency_key="k1", **PAYMENT)

    assert again == first
    assert [refund.amount_usd for refund in ledger.refunds()] == ["20.00"]


def test_the_same_key_at_the_same_time_pays_once(ledger: RefundLedger):
    with ThreadPoolExecutor(8) as threads:
        paid = list(threads.map(lambda _: ledger.pay(idempotency_key="k1", **PAYMENT), range(8)))

    assert len({refund.refund_id for refund in paid}) == 1
    assert len(ledger.refunds()) == 1


def test_never_more_than_was_paid_is_refunded_in_all(ledger: RefundLedger):
    ledger.pay(idempotency_key="k1", **PAYMENT)

    with pytest.raises(Conflict, match=r"has \$14.90 left to refund, so \$20.00 was not paid"):
        ledger.pay(idempotency_key="k2", **PAYMENT)

    assert ledger.refunded_usd("acme", "A-1042") == "20.00"


def test_refunds_of_different_keys_at_the_same_time_share_what_is_left(ledger: RefundLedger):
    def pay(number: int) -> bool:
        try:
            ledger.pay(idempotency_key=f"k{number}", **PAYMENT)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(pay, range(8))) == 1


def test_another_tenants_refunds_do_not_count(ledger: RefundLedger):
    ledger.pay(idempotency_key="k1", **PAYMENT | {"amount_usd": "34.90"})

    other = ledger.pay(idempotency_key="k2", **PAYMENT | {"tenant_id": "globex", "amount_usd": "34.90"})

    assert other.tenant_id == "globex"
    assert ledger.refunded_usd("globex", "A-1042") == "34.90"


def test_a_refused_payment_leaves_no_row(ledger: RefundLedger):
    with pytest.raises(Conflict):
        ledger.pay(idempotency_key="k1", **PAYMENT | {"amount_usd": "34.91"})

    assert ledger.refunds() == []
