"""A copy of a thread's history up to one checkpoint, for a fork to go on from.

What comes after the checkpoint stays behind, and so does what its own tasks wrote: in the fork they have not run yet.
"""

from holdfast.checkpoints.database import Connection
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.resealing import seal_thread
from holdfast.checkpoints.sealed_rows import SealedRows
from holdfast.checkpoints.vault import Vault
from holdfast.contracts.errors import NotFound
from holdfast.contracts.ids import TenantId

_SQL = load_queries(__name__, "copying.sql")


async def copy_history(
    conn: Connection, vault: Vault | None, *, tenant_id: TenantId, source: str, target: str, at: str
) -> None:
    """Copy to the new thread `target`, in the caller's transaction, what led thread `source` to its checkpoint `at`.
    Where there are keys the copy is sealed to its new place.

    Raises `NotFound` when `source` has no checkpoint of that id, or it is one of a subgraph.
    """
    rows = {"tenant_id": tenant_id, "source": source, "target": target, "at": at}
    copied = await conn.execute(_SQL["copy_line"], rows)
    if not copied.rowcount:
        raise NotFound(f"the thread has no checkpoint {at!r}", checkpoint_id=at)
    await conn.execute(_SQL["copy_values"], rows)
    await conn.execute(_SQL["copy_earlier_writes"], rows)
    if vault is not None:
        async with conn.cursor() as cursor:
            await seal_thread(cursor, SealedRows(vault, tenant_id), target, sealed_for=source)
