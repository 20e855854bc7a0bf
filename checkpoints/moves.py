"""What a flush moves on budgets: what calls that are opened reserve, and what those that are closed release and use."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from holdfast.checkpoints.arrays import BIGINT, TEXT, UUIDS, Columns, Encoded, bigint_field, text_field, uuid_field
from holdfast.contracts.ids import BudgetId, TenantId

_AMOUNTS = ("model_calls", "tool_calls", "tokens", "cost")
_MOVED = Columns("moved", budget=UUIDS, tenant=TEXT, opens=BIGINT, unpriced=BIGINT, asked=BIGINT, held=BIGINT,
                 spent=BIGINT, width=dict.fromkeys(("asked", "held", "spent"), len(_AMOUNTS)))  # fmt: skip
Amounts = Sequence[int | None]
"""Of each of those. An unknown cost is None."""


@dataclass(frozen=True, slots=True)
class Move:
    """What one call moves on every budget of its path."""

    budgets: Sequence[BudgetId]
    reserved: Amounts
    used: Amounts | None = None
    """None for a call that is opened."""


def amounts(stored: Mapping[str, int | None]) -> Amounts:
    """The amounts of a usage as a column of the journal keeps it."""
    return [stored[name] for name in _AMOUNTS]


class _Sums:
    """What all calls of a flush move on one budget."""

    __slots__ = ("asked", "held", "opens", "spent", "unpriced")

    def __init__(self) -> None:
        self.opens = 0
        self.asked: list[int | None] = [0, 0, 0, 0]
        """What those that are opened reserve: there must be room for it. A cost is unknown when one of them is."""
        self.held = [0, 0, 0, 0]
        self.spent = [0, 0, 0, 0]
        self.unpriced = 0

    def add(self, move: Move) -> None:
        if move.used is None:
            self.opens += 1
            for number, amount in enumerate(move.reserved):
                there = self.asked[number]
                self.asked[number] = None if there is None or amount is None else there + amount
                self.held[number] += amount or 0
        else:
            for number, amount in enumerate(move.reserved):
                self.held[number] -= amount or 0
            for number, amount in enumerate(move.used):
                self.spent[number] += amount or 0
            self.unpriced += move.used[-1] is None

    def row(self, *budget: bytes) -> Sequence[bytes]:
        amounts = (b"".join(map(bigint_field, each)) for each in (self.asked, self.held, self.spent))
        return *budget, bigint_field(self.opens), bigint_field(self.unpriced), *amounts


def move_columns(
    moves: Iterable[tuple[TenantId, Move]], stepping: Iterable[tuple[TenantId, BudgetId]]
) -> Mapping[str, Encoded]:
    """The moves of a flush as parameters of the statement that writes it, one row for each budget that calls are paid
    from. On those of `stepping`, steps are counted, by the statement itself."""
    sums: dict[tuple[TenantId, BudgetId], _Sums] = {}
    for tenant_id, move in moves:
        for budget_id in move.budgets:
            place = tenant_id, budget_id
            if place not in sums:
                sums[place] = _Sums()
            sums[place].add(move)
    for place in stepping:
        sums.setdefault(place, _Sums())
    return _MOVED.of(
        [each.row(uuid_field(budget_id), text_field(tenant_id)) for (tenant_id, budget_id), each in sums.items()]
    )
