"""The public face on a database of the test's own, which must obey the invariants when the test is over."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fix_database import DatabaseUrls
from offices import Office

from holdfast.checkpoints.database import Database
from holdfast.testing.invariants import assert_invariants


@pytest.fixture
async def office(
    database_urls: DatabaseUrls, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Office]:
    """An office in a folder without a project, so that no settings and no graphs but the test's are found."""
    monkeypatch.chdir(tmp_path)
    yield Office(database_urls, database)
    await assert_invariants(database)
