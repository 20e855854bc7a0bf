"""Who is there to work, and what the open runs need. No tenant's data is in it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedGraph:
    """A graph that a worker serves."""

    name: str
    version: str
    compatible: tuple[str, ...] = ()
    """The ranges and versions whose runs it goes on with besides its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorker:
    """A worker that has said lately that it is there."""

    worker_id: str
    serves: tuple[ServedGraph, ...]
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedVersion:
    """A version of a graph that open runs are pinned to; attached runs, which nobody claims, are not among them."""

    name: str
    version: str
    queued: int
    running: int
    interrupted: int
    oldest_at: datetime
    """When the oldest of these runs was admitted."""
