"""LangGraph's checkpoints of a run, written through the process's one writer and fenced by the run's lease.

Tables, serialization and the reading of histories are those of langgraph-checkpoint-postgres, whose saver reads what
this one writes and the other way round.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import PRUNE_STRATEGIES
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from holdfast.checkpoints.arrays import NULL, bytes_field, integer_field, json_field, text_field
from holdfast.checkpoints.containment import contains
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.pruning import delete_threads, keep_latest, refuse_delta_threads
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.resealing import seal_thread
from holdfast.checkpoints.rows import Row, Rows
from holdfast.checkpoints.sealed_rows import ClearRows, SealedRows
from holdfast.checkpoints.serialization import strict_serializer
from holdfast.checkpoints.succession import follow
from holdfast.contracts.credentials import masked
from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.runs import Owner

_SQL = load_queries(__name__, "saver.sql")
_PENDING_SENDS_MOVED = 4
"""The version of LangGraph's checkpoints from which on they hold what an older one's parent did."""

T = TypeVar("T")


def saver_for(database: Database, owner: Owner) -> "FencedSaver":
    """The saver of a run, to be called in the loop that runs it. Give it the graph's own types by
    `.with_allowlist(declared_types(graph))`.
    """
    return FencedSaver(database, owner)


class FencedSaver(AsyncPostgresSaver):
    """The checkpoints of one owner.

    Whatever writes counts only while the owner holds its run, which is checked in the writing transaction itself;
    otherwise it raises `LeaseLost` and leaves nothing. Reading needs no lease, and sees the owner's tenant alone.
    Raises our errors, never psycopg's; after one failed write, every later one fails too.
    """

    def __init__(self, database: Database, owner: Owner) -> None:
        # The base class uses its connection in `_cursor` alone, which is ours.
        super().__init__(conn=None, serde=strict_serializer())  # type: ignore[arg-type]
        self._database = database
        self._owner = owner
        self._pen = database.writer.pen(owner)
        vault = database.vault
        self._form = ClearRows() if vault is None else SealedRows(vault, owner.tenant_id)
        self._reading = ("", "")
        """The thread and the namespace whose delta channels are read."""

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        place = config["configurable"]
        thread, namespace = str(place["thread_id"]), place["checkpoint_ns"]
        await self._database.writer.admit()
        values, apart = _inline_and_apart(checkpoint["channel_values"])
        where = (text_field(thread), text_field(namespace))
        parent = get_checkpoint_id(config)
        document, told = self._form.documents(
            (thread, namespace, checkpoint["id"]),
            {**checkpoint, "channel_values": values},
            get_serializable_checkpoint_metadata(config, metadata),
            apart=apart,
        )
        row = (
            *where,
            text_field(checkpoint["id"]),
            NULL if parent is None else text_field(parent),
            json_field(document),
            json_field(told),
        )
        blobs: list[Row] = []
        for channel, version in new_versions.items():
            if channel in apart:
                typed = self.serde.dumps_typed(apart[channel])
                name, kind, blob = self._form.blob((thread, namespace), channel, str(version), typed)
                blobs.append((*where, text_field(name), text_field(str(version)), text_field(kind), bytes_field(blob)))
        await reach(Mark.CHECKPOINT_COMMITTING)
        await self._database.writer.write(self._pen, Rows(blobs=blobs, checkpoints=[row]))
        await reach(Mark.CHECKPOINT_COMMITTED)
        return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint["id"]}}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        place = config["configurable"]
        await self._database.writer.admit()
        where = (str(place["thread_id"]), place["checkpoint_ns"], place["checkpoint_id"])
        fixed, path = (*map(text_field, where), text_field(task_id)), text_field(task_path)
        rows: list[Row] = []
        for n, (channel, value) in enumerate(writes):
            idx = WRITES_IDX_MAP.get(channel, n)
            typed = self.serde.dumps_typed(_told(value))
            name, kind, blob = self._form.write(where, (task_id, idx, task_path), channel, typed)
            rows.append((*fixed, integer_field(idx), path, text_field(name), text_field(kind), bytes_field(blob)))
        # LangGraph's special channels are written anew when a task is run again; what it returned is kept as it was.
        special = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        staged = self._pen.staged(task_id)
        await reach(Mark.WRITES_COMMITTING)
        await self._database.writer.write(self._pen, Rows(writes=rows, replacing=special), staged)
        await reach(Mark.WRITES_COMMITTED)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        if get_checkpoint_id(config):
            return await super().aget_tuple(config)
        place = config["configurable"]
        thread, namespace = str(place["thread_id"]), place.get("checkpoint_ns", "")
        row = await self._database.reader.latest(self._owner.tenant_id, thread, namespace)
        if row is None:
            return None
        if row["checkpoint"]["v"] < _PENDING_SENDS_MOVED and row["parent_checkpoint_id"]:
            # Its pending sends stand with its parent; the base class knows how to bring them along.
            place = {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": row["checkpoint_id"]}
            return await super().aget_tuple({"configurable": place})
        return await self._load_checkpoint_tuple(row)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        # The base class yields inside its cursor, and would keep our transaction open at the reader's leisure.
        hidden = bool(filter) and isinstance(self._form, SealedRows)
        asked = {"before": before} if hidden else {"filter": filter, "before": before, "limit": limit}
        found = [each async for each in super().alist(config, **asked)]
        if hidden:
            found = [each for each in found if contains(each.metadata, filter)][:limit]
        for each in found:
            yield each

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        form = self._form
        if not isinstance(form, SealedRows):
            return await super().aget_delta_channel_history(config=config, channels=channels)
        place = config["configurable"]
        there = copy(self)
        thread, namespace = str(place["thread_id"]), place.get("checkpoint_ns", "")
        there._reading = (thread, namespace)  # noqa: SLF001  # its own
        names = {form.channel(thread, channel): channel for channel in channels}
        found = await super(FencedSaver, there).aget_delta_channel_history(config=config, channels=list(names))
        told: dict[str, DeltaChannelHistory] = {}
        for shown, history in found.items():
            channel = names[shown]
            told[channel] = {"writes": [(task_id, channel, value) for task_id, _, value in history["writes"]]}
            seed = history.get("seed")
            if isinstance(seed, _InBody):
                where = {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": seed.checkpoint_id}
                base = await self.aget_tuple({"configurable": where})
                told[channel]["seed"] = None if base is None else base.checkpoint["channel_values"].get(channel)
            elif "seed" in history:
                told[channel]["seed"] = seed
        return told

    def _build_delta_channels_writes_history(
        self,
        *,
        channels: Sequence[str],
        chain_by_ch: Mapping[str, list[str]],
        seed_ver_by_ch: Mapping[str, str | None],
        seed_inline_by_ch: Mapping[str, Any],
        stage2_rows: Sequence[Any],
    ) -> dict[str, DeltaChannelHistory]:
        if isinstance(self._form, SealedRows):
            stage2_rows = [self._form.opened_delta(self._reading, row) for row in stage2_rows]
            # The walk along the parents ends where a value was found.
            seed_inline_by_ch = {channel: _InBody(chain_by_ch[channel][-1]) for channel in seed_inline_by_ch}
        return super()._build_delta_channels_writes_history(
            channels=channels,
            chain_by_ch=chain_by_ch,
            seed_ver_by_ch=seed_ver_by_ch,
            seed_inline_by_ch=seed_inline_by_ch,
            stage2_rows=stage2_rows,
        )

    async def adelete_thread(self, thread_id: str) -> None:
        await self._delete([str(thread_id)])

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        async with self._fenced(snapshot=True) as cursor:
            marks = [self._form.run(str(each)) for each in run_ids]
            await cursor.execute(_SQL["delete_checkpoints_of_runs"], {"run_ids": marks})

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy everything a thread has, its whole history included, to a thread that has nothing yet.

        Raises `Conflict` when the target has some of it already.
        """
        source, target = str(source_thread_id), str(target_thread_id)
        async with self._fenced(snapshot=True) as cursor:
            for table in ("copy_checkpoints", "copy_blobs", "copy_writes"):
                await cursor.execute(_SQL[table], {"source": source, "target": target})
            if isinstance(self._form, SealedRows):
                await seal_thread(cursor, self._form, target, sealed_for=source)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        if isinstance(thread_ids, str) or strategy not in PRUNE_STRATEGIES:
            raise InvalidRequest(
                f"prune takes a list of thread ids and one of the strategies {', '.join(PRUNE_STRATEGIES)}; "
                f"got {thread_ids!r} and {strategy!r}"
            )
        threads = [str(each) for each in thread_ids]
        if strategy == "delete":
            await self._delete(threads)
            return
        async with self._cursor() as cursor:
            await refuse_delta_threads(cursor, threads)
        for thread in threads:
            async with self._fenced(snapshot=True) as cursor:
                await keep_latest(cursor, thread)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._blocking(self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._blocking(self.aput_writes(config, writes, task_id, task_path))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._blocking(self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._blocking(self.acopy_thread(source_thread_id, target_thread_id))

    async def _delete(self, threads: Sequence[str]) -> None:
        async with self._fenced() as cursor:
            await delete_threads(cursor, threads)

    async def _load_checkpoint_tuple(self, value: DictRow) -> CheckpointTuple:
        # The base class does it in a thread for the writes alone, which costs more than it frees.
        value = self._form.opened(value)
        follow(value["checkpoint_id"])
        place = {"thread_id": value["thread_id"], "checkpoint_ns": value["checkpoint_ns"]}
        parent, checkpoint = value["parent_checkpoint_id"], value["checkpoint"]
        values = {**(checkpoint.get("channel_values") or {}), **self._load_blobs(value["channel_values"])}
        return CheckpointTuple(
            {"configurable": {**place, "checkpoint_id": value["checkpoint_id"]}},
            cast("Checkpoint", {**checkpoint, "channel_values": values}),
            value["metadata"],
            {"configurable": {**place, "checkpoint_id": parent}} if parent else None,
            self._load_writes(value["pending_writes"]),
        )

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """For the base class, which only reads through it here: one state of the database, whatever is written."""
        async with (
            self._database.tenant(self._owner.tenant_id, snapshot=True) as conn,
            conn.cursor(binary=True, row_factory=dict_row) as cursor,
        ):
            yield cursor

    @asynccontextmanager
    async def _fenced(self, *, snapshot: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """A transaction that holds the owner's lease until it is committed."""
        self._pen.require()
        async with (
            self._database.owned(self._owner, snapshot=snapshot) as conn,
            conn.cursor(row_factory=dict_row) as cursor,
        ):
            yield cursor

    def _blocking(self, work: Coroutine[Any, Any, T]) -> T:
        """For a thread beside the loop, as the base class's synchronous methods. In the loop itself it would wait for
        ever: for what only this loop can do."""
        if _runs(self.loop):
            work.close()
            raise asyncio.InvalidStateError(
                "a synchronous method of the saver would wait for the loop that it was called in: await the "
                "asynchronous one, whose name begins with an `a`"
            )
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


def _runs(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is called in the loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


@dataclass(frozen=True, slots=True)
class _InBody:
    """The base of a delta channel that stands in a sealed checkpoint itself."""

    checkpoint_id: str


def _inline_and_apart(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values that stand in the checkpoint itself, and those that are blobs of their own."""
    inline: dict[str, Any] = {}
    apart: dict[str, Any] = {}
    for channel, value in values.items():
        if isinstance(value, _DeltaSnapshot):
            inline[channel], apart[channel] = True, value  # the mark by which a delta channel's base is found
        elif _fits_json(value):
            inline[channel] = value
        else:
            apart[channel] = value
    return inline, apart


def _fits_json(value: Any) -> bool:
    """Whether `jsonb` can hold it as it is. LangGraph's saver tries with any text and float, and fails."""
    if isinstance(value, str):
        return "\x00" not in value
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, int)


def _told(value: Any) -> Any:
    """What is kept of a node's exception is its text, as LangGraph does, without the keys that it may quote."""
    return masked(repr(value)) if isinstance(value, BaseException) else value
