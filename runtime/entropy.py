"""Ids and randomness, the real ones."""

import os
import random

from uuid_utils import uuid7


class SystemIds:
    """UUIDv7 (RFC 9562): ordered by time, so that indexes grow at one end."""

    def new(self) -> str:
        return str(uuid7())


class SystemDice:
    """Jitter needs no secrets."""

    def fraction(self) -> float:
        return random.random()  # noqa: S311  # jitter, not cryptography


def unguessable(size: int) -> bytes:
    """So many random bytes, from the system's own source: for keys and nonces."""
    return os.urandom(size)
