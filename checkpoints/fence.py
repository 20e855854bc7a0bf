"""The fence: a write for a run counts only while its owner holds it, checked in the writing transaction itself.

The lease row is locked FOR KEY SHARE. A claim changes its epoch, which is part of a key, so the two exclude each other
until one has committed; a heartbeat changes no key and waits for nobody.

Locks are taken in one order everywhere, so that no two transactions wait for each other:
tenant, lease, run, call, approvals, budgets (by id), run head. A transaction that ends an attempt takes the lease
alone.
"""

from holdfast.checkpoints.line import Connection
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.errors import LeaseLost
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "fence.sql")


async def hold(conn: Connection, owner: Owner) -> None:
    """Keep `owner`'s hold on its run until the transaction ends, beside other writers of the same owner.

    Raises `LeaseLost` when the run has another epoch by now, or ended.
    """
    if not await _locked(conn, owner, "hold_attached" if owner.attached else "hold_lease"):
        raise lost(owner)
    await reach(Mark.FENCE_HELD)


async def hold_alone(conn: Connection, owner: Owner) -> bool:
    """The same for a transaction that ends the attempt: waits for the owner's other writers and keeps later ones out.

    Returns whether the run is held, for a caller that must tell a repeated ending from a lost lease.
    """
    return await _locked(conn, owner, "hold_attached" if owner.attached else "hold_lease_alone")


def lost(owner: Owner) -> LeaseLost:
    """The error for an owner that holds its run no more."""
    return LeaseLost(
        f"run {owner.run_id} is not held under epoch {owner.epoch} any more; stop, and write nothing for it",
        run_id=owner.run_id,
        epoch=owner.epoch,
    )


async def _locked(conn: Connection, owner: Owner, query: str) -> bool:
    found = await conn.execute(
        _SQL[query], {"run_id": owner.run_id, "tenant_id": owner.tenant_id, "epoch": owner.epoch}
    )
    return await found.fetchone() is not None
