"""Hundreds may wait for runs in one process: they look together, and the database is asked once for all of them."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from holdfast.contracts.errors import HoldfastError
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.patience import unhurried
from holdfast.contracts.ports import Runs
from holdfast.contracts.runs import RunStatus


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    tenant_id: TenantId
    run_id: RunId
    answer: asyncio.Future[RunStatus | None]


class Lookout:
    """How runs stand now. Whoever asks while a query is under way shares the next one with all the others."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._turn = asyncio.Lock()
        self._asked: set[_Question] = set()

    async def status(self, tenant_id: TenantId, run_id: RunId) -> RunStatus | None:
        """The run's status, as of no earlier than this call; None when the tenant has no such run. Raises
        `StoreUnavailable`."""
        question = _Question(tenant_id, run_id, asyncio.get_running_loop().create_future())
        self._asked.add(question)
        try:
            async with self._turn:
                if not question.answer.done():
                    with unhurried():
                        await self._look()
            return question.answer.result()
        finally:
            self._asked.discard(question)

    async def _look(self) -> None:
        """Answer all that has been asked so far. When this is cancelled, the next in turn looks for the rest."""
        for tenant_id, questions in _by_tenant(self._asked).items():
            try:
                found = await self._runs.statuses(tenant_id, sorted({question.run_id for question in questions}))
            except HoldfastError as error:
                for question in questions:
                    question.answer.set_exception(error)
                    question.answer.exception()  # seen: who asked may be gone
            else:
                for question in questions:
                    question.answer.set_result(found.get(question.run_id))
            self._asked.difference_update(questions)


def _by_tenant(asked: Iterable[_Question]) -> Mapping[TenantId, Sequence[_Question]]:
    groups: dict[TenantId, list[_Question]] = {}
    for question in asked:
        groups.setdefault(question.tenant_id, []).append(question)
    return groups
