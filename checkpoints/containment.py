"""Whether a document holds another, as `@>` of `jsonb` finds it: for what the database cannot read."""

import json
from collections.abc import Mapping
from typing import Any


def contains(document: Any, wanted: Any) -> bool:
    """Whether all of `wanted` is somewhere in `document`, at its place."""
    return _holds(json.loads(json.dumps(document)), json.loads(json.dumps(wanted)))


def _holds(there: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(
            name in there and _holds(there[name], value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(there, list) and all(any(_holds(each, value) for each in there) for value in wanted)
    if isinstance(wanted, bool) or isinstance(there, bool):
        return there is wanted
    return bool(there == wanted)
