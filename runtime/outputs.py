"""A graph's output as plain JSON, so that it reads the same in every process."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from pydantic_core import to_jsonable_python

from holdfast.contracts.classification import translated


def plain_output(value: Any) -> Any:
    """`value` with models, messages, dates and decimals as JSON; what JSON cannot say becomes its text.

    Never raises: what a graph has come to must not be what keeps its run from ending.
    """
    if isinstance(value, Mapping):
        return {_text(str(name)): _field(item) for name, item in value.items()}
    return _field(value)


def _field(value: Any) -> Any:
    try:
        return _storable(
            to_jsonable_python(
                value, fallback=repr, bytes_mode="base64", inf_nan_mode="strings", serialize_unknown=True
            )
        )
    except Exception as error:  # noqa: BLE001  # somebody's own serializer or repr, or a value that holds itself
        return f"<{type(value).__name__}, which cannot be shown as JSON: {translated(error).message}>"


def _storable(value: Any) -> Any:
    """Without what Postgres keeps in no jsonb: NUL, lone surrogates, NaN and the infinities."""
    match value:
        case str():
            return _text(value)
        case float():
            return value if isfinite(value) else str(value)
        case list():
            return [_storable(item) for item in value]
        case dict():
            return {_text(key): _storable(item) for key, item in value.items()}
        case _:
            return value


def _text(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()
