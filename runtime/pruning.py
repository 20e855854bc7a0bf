"""Prunes for every tenant what its terms let go of. Any number of workers may: per tenant one does it at a time."""

import asyncio

from holdfast.contracts.classification import translated
from holdfast.contracts.ports import Retention, Tenants
from holdfast.contracts.tenancy import Principal
from holdfast.telemetry.logs import logger

log = logger(__name__)


class Pruner:
    """A worker's hand for retention."""

    def __init__(self, retention: Retention, tenants: Tenants, principal: Principal) -> None:
        self._retention = retention
        self._tenants = tenants
        self._principal = principal

    async def prune(self) -> None:
        """One round: every tenant, batch by batch, until nothing is left to prune. One tenant's trouble is its own."""
        for tenant_id in await self._tenants.names(principal=self._principal):
            try:
                while pruned := await self._retention.prune(tenant_id):
                    kinds = ("events", "checkpoints", "contents")
                    gone = {kind: sum(getattr(one, kind) for one in pruned) for kind in kinds}
                    log.info("pruned", tenant_id=tenant_id, **gone)
                    await asyncio.sleep(0)
            except Exception as error:  # noqa: BLE001  # the next round tries again
                log.warning("pruning_failed", tenant_id=tenant_id, reason=translated(error).message)
