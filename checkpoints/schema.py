"""The schema, as the migrations that this code ships, and how a database compares with them.

A migration is a numbered file that is applied once and never edited after a release. Its phase says when:

- `NNNN_what.pre.sql` only adds. It is applied before this version is rolled out, and the previous one runs on with it.
- `NNNN_what.post.sql` takes away what the previous version still used. It is applied once none of it runs; until then
  this version works without.

All pre ones can come before any post one, so neither may depend on an earlier post one. The two files of the first
version have no phase in their names, and are pre.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, LiteralString

from holdfast.contracts.errors import ConfigurationError

_FILE = re.compile(r"(\d{4})_(\w+?)(?:\.(pre|post))?\.sql")
_LAST_WITHOUT_PHASE = 2


class Phase(StrEnum):
    """When a migration is applied: before the code that needs it is rolled out, or after."""

    PRE = "pre"
    POST = "post"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    phase: Phase
    name: str
    sql: LiteralString
    checksum: str
    """SHA-256 of the file: what was applied must be what the code ships."""

    def __str__(self) -> str:
        return f"{self.number:04} {self.name} ({self.phase})"


def migrations(folder: Traversable | None = None) -> Sequence[Migration]:
    """The migrations that this version of the code ships, in the order in which a new database gets them; or those of
    another folder.

    Raises `ConfigurationError` for a name that does not say number and phase, for a gap, and for a number used twice.
    """
    place = folder or files("holdfast.checkpoints").joinpath("migrations")
    found = [_read(file) for file in place.iterdir() if file.name.endswith(".sql")]
    for phase in Phase:
        numbers = [migration.number for migration in found if migration.phase is phase]
        if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
            raise ConfigurationError(f"there are several {phase} migrations of the same number: {twice}")
    if (numbers := sorted({migration.number for migration in found})) != list(range(1, len(numbers) + 1)):
        raise ConfigurationError(f"the migrations are not numbered 1, 2, 3 …: {numbers}")
    return sorted(found, key=lambda migration: (migration.phase is Phase.POST, migration.number))


def newest() -> int:
    """The number of the newest migration that this code knows: what it tells the database about its age."""
    return max(migration.number for migration in migrations())


def compare(applied: Sequence[Mapping[str, Any]]) -> Sequence[Migration]:
    """What the code has and the database lacks, in the order in which it is to be applied.

    A pre migration of newer code is no obstacle. Raises `ConfigurationError` for a post one, for one that was applied
    with other contents, and for one that is missing though a later one of its phase was applied.
    """
    missing = {(migration.phase, migration.number): migration for migration in migrations()}
    for row in applied:
        known = missing.pop((Phase(row["phase"]), row["number"]), None)
        if known is None and row["phase"] == Phase.POST:
            raise ConfigurationError(
                f"the database has the post migration {row['number']:04} {row['name']}, which this version of holdfast "
                "does not know: a newer one has taken away what this one needs; install that version or a later one"
            )
        if known is not None and known.checksum != row["checksum"]:
            raise ConfigurationError(
                f"migration {known} was applied to this database with other contents than this version of holdfast "
                "ships; use the version that made the database, or restore a backup"
            )
    pending = list(missing.values())
    for migration in pending:
        later = [row for row in applied if row["phase"] == migration.phase and row["number"] > migration.number]
        if later:
            raise ConfigurationError(
                f"the database lacks the migration {migration}, though {later[0]['number']:04} {later[0]['name']} "
                f"({later[0]['phase']}) was applied; its list was changed by hand, or by code that is no released "
                "version of holdfast: restore a backup"
            )
    return pending


def _read(file: Traversable) -> Migration:
    match = _FILE.fullmatch(file.name)
    if match is None or (match[3] is None) != (int(match[1]) <= _LAST_WITHOUT_PHASE):
        raise ConfigurationError(f"{file.name} is not called NNNN_what.pre.sql or NNNN_what.post.sql")
    text = file.read_text(encoding="utf-8")
    phase = Phase(match[3] or Phase.PRE)
    return Migration(int(match[1]), phase, match[2], text, hashlib.sha256(text.encode()).hexdigest())
