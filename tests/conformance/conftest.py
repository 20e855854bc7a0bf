"""Every test of this folder is asked of each store."""

import os
from itertools import count

import pytest
from fix_database import encrypting
from fix_house import house
from scenes import Scene
from stores import memory_store, postgres_store

__all__ = ["house"]

_numbers = count(1)


@pytest.fixture
def encryption(request):
    """Keys, where the store's name says that it has them."""
    return encrypting("k1") if "encrypted" in request.node.name else None


@pytest.fixture(params=["memory", "postgres", "encrypted postgres"])
def store(request):
    return memory_store() if request.param == "memory" else postgres_store(request.getfixturevalue("database"))


@pytest.fixture
def scene(store) -> Scene:
    return Scene(store)


@pytest.fixture
def make_database_url(postgres, template):
    """Makes one migrated database after another."""
    made = []

    def make() -> str:
        made.append(f"holdfast_made_{os.getpid()}_{next(_numbers)}")
        return postgres.create(made[-1], template=template).app

    yield make
    for name in made:
        postgres.drop(name)
