"""Classes that a graph of `test_stored_types` reaches by a dot, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from somewhere import Nowhere


class Inside(BaseModel):
    size: int


@dataclass
class Box:
    inside: Inside | None
    lid: list[Lid]
    nowhere: Nowhere | None = None


@dataclass
class Lid:
    width: int


@dataclass
class Unreached:
    width: int
