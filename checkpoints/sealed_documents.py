"""What runs, calls and approvals hold of people's words: sealed in its column as it is written, opened as it is read.

A sealed value is a text: the word `sealed`, the id of the key, and the rest in base64. It stands in a column of any
type, bound to its tenant, table, row and column. What is null stays null.
"""

import binascii
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from holdfast.checkpoints.sealed_rows import SEALED, never_sealed
from holdfast.checkpoints.vault import Vault

_FORM = re.compile(rf"{SEALED}:([A-Za-z0-9._-]{{1,64}}):([A-Za-z0-9+/]*={{0,2}})")


@dataclass(frozen=True, slots=True)
class Table:
    """A table with columns that are sealed."""

    name: str
    key: str
    """The column that says which row it is."""
    documents: tuple[str, ...] = ()
    """Columns of JSON."""
    texts: tuple[str, ...] = ()
    """Columns of text or of bytes."""
    never_null: tuple[str, ...] = ()
    """Of the documents those in which None is a value, not the lack of one, until the row's contents are pruned."""

    def has(self, column: str, value: Any) -> bool:
        """Whether the column is one of those, and holds something that is to be written."""
        return column in self.never_null or (value is not None and column in (*self.documents, *self.texts))

    def held_by(self, row: Mapping[str, Any]) -> Sequence[str]:
        """The columns of those that a row which was read holds something in."""
        pruned = row.get("contents_pruned_at") is not None
        return [
            column
            for column in (*self.documents, *self.texts)
            if column in row and self.has(column, row[column]) and not (pruned and row[column] is None)
        ]


RUNS = Table("runs", "run_id", documents=("context", "output", "cause"), texts=("input",))
CALLS = Table("calls", "call_id", documents=("error_facts",), texts=("request", "response", "error_message"))
APPROVALS = Table("approvals", "approval_id", documents=("payload", "args", "decision"), never_null=("payload",))


class ClearDocuments:
    """Columns as they are."""

    def sealed(self, table: Table, tenant_id: str, row_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(values)

    def opened(self, table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return row


class SealedDocuments:
    """Seals and opens the columns of a table's rows."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def sealed(self, table: Table, tenant_id: str, row_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` by column, with those sealed that the table says."""
        return {
            column: self._sealed((table.name, row_id, column), tenant_id, value, is_text=column in table.texts)
            if table.has(column, value)
            else value
            for column, value in values.items()
        }

    def opened(self, table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row as it would have been read without encryption. Raises `SealBroken` and `KeyMissing`."""
        return {**row, **self.opened_columns(table, row)}

    def opened_columns(self, table: Table, row: Mapping[str, Any], *, clear_too: bool = False) -> dict[str, Any]:
        """The columns of the row that are sealed, as they were before."""
        tenant_id, row_id = row["tenant_id"], str(row[table.key])
        return {
            column: self._opened((table.name, row_id, column), tenant_id, row[column], column in table.texts, clear_too)
            for column in table.held_by(row)
        }

    def is_current(self, table: Table, row: Mapping[str, Any]) -> bool:
        """Whether everything in the row is sealed with the key in force."""
        found = [_form(row[column]) for column in table.held_by(row)]
        return all(each is not None and each[1] == self._vault.seals_with for each in found)

    def _sealed(self, place: tuple[str, ...], tenant_id: str, value: Any, *, is_text: bool) -> str | bytes:
        plain = value if isinstance(value, bytes) else (value if is_text else json.dumps(value)).encode()
        sealed = b64encode(self._vault.seal(tenant_id, place, plain)).decode()
        text = f"{SEALED}:{self._vault.seals_with}:{sealed}"
        return text.encode() if isinstance(value, bytes) else text

    def _opened(self, place: tuple[str, ...], tenant_id: str, value: Any, is_text: bool, clear_too: bool) -> Any:
        found = _form(value)
        if found is None and clear_too:
            return value
        if found is None:
            raise never_sealed(place)
        plain = self._vault.open(tenant_id, place, _decoded(found[2]), key_id=found[1])
        if not is_text:
            return json.loads(plain)
        return plain if isinstance(value, bytes) else plain.decode()


Documents = ClearDocuments | SealedDocuments


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text)
    except binascii.Error:
        return b""  # which no seal is


def with_json(table: Table, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns, those that are documents as a statement takes JSON."""
    return {
        column: Jsonb(value) if column in table.documents and table.has(column, value) else value
        for column, value in columns.items()
    }


def _form(value: Any) -> re.Match[str] | None:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return _FORM.fullmatch(text) if isinstance(text, str) else None
