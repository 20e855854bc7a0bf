"""Fixtures of the tests on a real Postgres."""

import pytest
from fix_database import DatabaseUrls
from fix_house import house
from versions import leave_as_the_first_version_did

__all__ = ["house"]


@pytest.fixture
def first_database(empty_database: DatabaseUrls) -> DatabaseUrls:
    """A database as the first version left it."""
    leave_as_the_first_version_did(empty_database.owner)
    return empty_database
