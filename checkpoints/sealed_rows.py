"""What LangGraph's rows look like when they are sealed, and what they were.

In the clear stands what the statements compare: ids, versions, the order of writes, checkpoint namespaces and task
paths (which hold names of nodes and ids of tasks). Names of channels are pseudonyms. Everything else, and all of it a
second time, is sealed: a row that does not open as a whole is not read at all.
"""

import json
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Any, TypedDict

from holdfast.checkpoints.vault import Vault, described
from holdfast.contracts.errors import InvalidRequest, KeyMissing, SealBroken

Row = Mapping[str, Any]
Typed = tuple[str, bytes]
"""A value as LangGraph's serializer makes it: the kind, and its bytes."""

SEALED = "sealed"
"""In a checkpoint's document: the name of its sealed body. In a value's type: what stands before the id of its key."""
_KEY_ID = "key"
_HEAD = Struct("!II")

# What LangGraph's own statements look for in metadata: who may be pruned with whom, and which threads may not be.
_PARENTS, _ROOT = "parents", ""
_DELTA_MARKS = ("counters_since_delta_snapshot", "delta_writes_versioned")
_RUN = "run_id"


class Body(TypedDict):
    """What is sealed of a checkpoint: all of it but the values that are blobs, of which it names the channels."""

    checkpoint: dict[str, Any]
    metadata: dict[str, Any]
    apart: Sequence[str]


def sealed_type(key_id: str) -> str:
    """The type of a value that is sealed with a key."""
    return f"{SEALED}:{key_id}"


class ClearRows:
    """Rows as LangGraph writes them: anyone who reads the database reads them."""

    def documents(
        self,
        where: tuple[str, str, str],
        checkpoint: Mapping[str, Any],
        metadata: Mapping[str, Any],
        *,
        apart: Iterable[str],
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return checkpoint, metadata

    def blob(self, where: tuple[str, str], channel: str, version: str, typed: Typed) -> tuple[str, str, bytes]:
        return channel, *typed

    def write(
        self, where: tuple[str, str, str], task: tuple[str, int, str], channel: str, typed: Typed
    ) -> tuple[str, str, bytes]:
        return channel, *typed

    def run(self, run_id: str) -> str:
        return run_id

    def opened(self, row: dict[str, Any]) -> dict[str, Any]:
        if SEALED in row["checkpoint"]:
            raise KeyMissing(f"thread {row['thread_id']} was encrypted since this process has started; start it again")
        return row


class SealedRows:
    """Seals and opens the checkpoint rows of one tenant."""

    def __init__(self, vault: Vault, tenant_id: str) -> None:
        self._vault = vault
        self._tenant_id = tenant_id
        self._names: dict[tuple[str, str], str] = {}

    def channel(self, thread_id: str, name: str) -> str:
        """The pseudonym of a channel of a thread."""
        known = self._names.get((thread_id, name))
        if known is None:
            known = self._names[thread_id, name] = self._vault.pseudonym(self._tenant_id, "channel", thread_id, name)
        return known

    def run(self, run_id: str) -> str:
        """The pseudonym of a run that checkpoints are found by."""
        return self._vault.pseudonym(self._tenant_id, "run", run_id)

    def documents(
        self,
        where: tuple[str, str, str],
        checkpoint: Mapping[str, Any],
        metadata: Mapping[str, Any],
        *,
        apart: Iterable[str],
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The documents for the two columns. `where` is thread, namespace and id; the values of the channels `apart`
        are blobs of their own."""
        thread_id, away = where[0], frozenset(apart)
        shown = {
            "v": checkpoint["v"],
            _KEY_ID: self._vault.seals_with,
            "channel_versions": {
                self.channel(thread_id, name): str(version) for name, version in checkpoint["channel_versions"].items()
            },
            # By these a delta channel's base is found: a snapshot among the blobs, or a value in the body.
            "channel_values": {
                self.channel(thread_id, name): name in away
                for name, value in checkpoint["channel_values"].items()
                if value is not None
            },
        }
        marks = self._marks(metadata)
        body = json.dumps({"checkpoint": checkpoint, "metadata": metadata, "apart": sorted(away)}).encode()
        sealed = self._vault.seal(self._tenant_id, _checkpoint_place(where, shown, marks), body)
        return {**shown, SEALED: b64encode(sealed).decode()}, marks

    def blob(self, where: tuple[str, str], channel: str, version: str, typed: Typed) -> tuple[str, str, bytes]:
        """The fields channel, type and blob of a channel's value; `where` is thread and namespace."""
        return self._value(("checkpoint_blobs", *where, version), where[0], channel, typed)

    def write(
        self, where: tuple[str, str, str], task: tuple[str, int, str], channel: str, typed: Typed
    ) -> tuple[str, str, bytes]:
        """The fields channel, type and blob of a write; `where` is thread, namespace and checkpoint, `task` its id,
        the number of the write and its path."""
        task_id, idx, path = task
        place = ("checkpoint_writes", *where, task_id, str(idx), path)
        return self._value(place, where[0], channel, typed)

    def opened(self, row: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint's row as it would have been read without encryption.

        Raises `SealBroken` where any part of it is not what was sealed there or is missing, and `KeyMissing`.
        """
        where = (row["thread_id"], row["checkpoint_ns"], row["checkpoint_id"])
        body, versions = (
            self.opened_body(where, row["checkpoint"], row["metadata"]),
            row["checkpoint"]["channel_versions"],
        )
        values = [
            self.opened_blob(where[:2], versions.get(channel.decode(), ""), channel.decode(), (kind.decode(), blob))
            for channel, kind, blob in row["channel_values"] or ()
        ]
        there = {name for name, _ in values}
        if missing := [name for name in body["apart"] if name not in there]:
            raise SealBroken(
                f"the values of {len(missing)} channel(s) of checkpoint {where[2]} of thread {where[0]} are gone, or "
                "stand under another name; nothing was changed",
                place=["checkpoint_blobs", *where],
            )
        writes = []
        for task_id, channel, kind, blob, path, idx in row["pending_writes"] or ():
            task = (task_id.decode(), int(idx), path.decode())
            opened = self.opened_write(where, task, channel.decode(), (kind.decode(), blob))
            writes.append((task_id, *_encoded(opened), path, idx))
        return {
            **row,
            "checkpoint": body["checkpoint"],
            "metadata": body["metadata"],
            "channel_values": [_encoded(value) for value in values],
            "pending_writes": writes,
        }

    def opened_body(self, where: tuple[str, str, str], checkpoint: Any, marks: Any) -> Body:
        """What was sealed of a checkpoint, from its two documents."""
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(SEALED), str):
            raise never_sealed(("checkpoints", *where))
        shown = {name: value for name, value in checkpoint.items() if name != SEALED}
        place, key_id = _checkpoint_place(where, shown, marks), str(shown.get(_KEY_ID))
        try:
            sealed = b64decode(checkpoint[SEALED], validate=True)
        except NotBase64:
            sealed = b""
        opened = json.loads(self._vault.open(self._tenant_id, place, sealed, key_id=key_id))
        return Body(checkpoint=opened["checkpoint"], metadata=opened["metadata"], apart=opened["apart"])

    def opened_blob(self, where: tuple[str, str], version: str, channel: str, typed: Typed) -> tuple[str, Typed]:
        """The name of a channel and its value, from the fields of a blob."""
        return self._opened_value(("checkpoint_blobs", *where, version), channel, typed)

    def opened_write(
        self, where: tuple[str, str, str], task: tuple[str, int, str], channel: str, typed: Typed
    ) -> tuple[str, Typed]:
        """The name of a channel and what was written to it, from the fields of a write."""
        task_id, idx, path = task
        return self._opened_value(("checkpoint_writes", *where, task_id, str(idx), path), channel, typed)

    def opened_delta(self, where: tuple[str, str], row: Row) -> dict[str, Any]:
        """A row of a delta channel's history (a write, or the blob of a snapshot), with its value as it was."""
        channel, typed = row["channel"], (row["type"], row["blob"])
        if row["_kind"] == "b":
            _, (kind, blob) = self.opened_blob(where, row["version"], channel, typed)
        else:
            task = (row["task_id"], row["idx"], row["task_path"])
            _, (kind, blob) = self.opened_write((*where, row["checkpoint_id"]), task, channel, typed)
        return {**row, "type": kind, "blob": blob}

    def _value(self, place: tuple[str, ...], thread_id: str, channel: str, typed: Typed) -> tuple[str, str, bytes]:
        kind, name, shown = typed[0].encode(), _name(channel), self.channel(thread_id, channel)
        plain = b"".join((_HEAD.pack(len(name), len(kind)), name, kind, typed[1]))
        sealed = self._vault.seal(self._tenant_id, (*place, shown), plain)
        return shown, sealed_type(self._vault.seals_with), sealed

    def _opened_value(self, place: tuple[str, ...], channel: str, typed: Typed) -> tuple[str, Typed]:
        kind, sealed = typed
        mark, _, key_id = kind.partition(":")
        if mark != SEALED:
            raise never_sealed(place)
        plain = self._vault.open(self._tenant_id, (*place, channel), sealed, key_id=key_id)
        name, rest = _HEAD.unpack_from(plain)
        start = _HEAD.size + name
        said = plain[_HEAD.size : start].decode()
        return said, (plain[start : start + rest].decode(), plain[start + rest :])

    def _marks(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        marks: dict[str, Any] = {name: {} for name in _DELTA_MARKS if name in metadata}
        parents = metadata.get(_PARENTS)
        if isinstance(parents, Mapping) and isinstance(parents.get(_ROOT), str):
            marks[_PARENTS] = {_ROOT: parents[_ROOT]}
        if metadata.get(_RUN) is not None:
            marks[_RUN] = self.run(str(metadata[_RUN]))
        return marks


def _checkpoint_place(
    where: tuple[str, str, str], shown: Mapping[str, Any], marks: Mapping[str, Any]
) -> tuple[str, ...]:
    return ("checkpoints", *where, _canonical(shown), _canonical(marks))


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def _encoded(value: tuple[str, Typed]) -> tuple[bytes, bytes, bytes]:
    name, (kind, data) = value
    return name.encode(), kind.encode(), data


def _name(channel: str) -> bytes:
    try:
        return channel.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{channel[:80]!r} cannot be the name of a channel: {error.reason}") from error


def never_sealed(place: Sequence[str]) -> SealBroken:
    """The error for what stands in the clear where encryption is on."""
    return SealBroken(
        f"{described(place)} is not encrypted, and encryption is on: it was written without, or by somebody else. "
        "`holdfast db encrypt` encrypts what was there before",
        place=list(place),
    )
