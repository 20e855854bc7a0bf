"""Calls that a tool's body makes: what was asked inside of a call is not asked again where that call is answered."""

from collections.abc import Mapping
from typing import Any

from holdfast.contracts.calls import CallRecord
from holdfast.gateway.toolset import called_within

_WITHIN = "within"


def noted(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request for the record, with the key of the call that it is made inside of, if it is."""
    outer = called_within()
    return dict(request) if outer is None else {**request, _WITHIN: outer}


def calls_around(record: CallRecord, known: Mapping[str, CallRecord]) -> list[CallRecord]:
    """The calls that a recorded one was made inside of, the innermost first, as far as they are among those known by
    their keys."""
    around: list[CallRecord] = []
    key = record.request.get(_WITHIN)
    while key is not None and key in known:
        around.append(known[key])
        key = around[-1].request.get(_WITHIN)
    return around
