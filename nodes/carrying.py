"""How ways of LangChain, LangGraph and Python are made to go through us: each is replaced once for the process, by one
that does as the original did wherever there is no run."""

import functools
from collections.abc import Callable
from typing import Any

_MARK = "__holdfast_original__"


def carry(owner: Any, name: str, watch: Callable[[Any], Any]) -> None:
    """Put `watch(original)` in the place of what a class or a module calls `name`. Doing it twice changes nothing."""
    original = getattr(owner, name)
    if hasattr(original, _MARK):
        return
    watched = functools.wraps(original)(watch(original))
    setattr(watched, _MARK, original)
    setattr(owner, name, watched)
