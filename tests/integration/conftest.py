"""Fixtures of the tests on a real Postgres."""

from fix_house import house

__all__ = ["house"]
