"""A graph's output as plain JSON, so that it reads the same in every process."""

from typing import Any

from pydantic_core import to_jsonable_python


def plain_output(value: Any) -> Any:
    """`value` with models, messages, dates and decimals as JSON; what JSON cannot say becomes its text."""
    return _without_nul(to_jsonable_python(value, fallback=repr, inf_nan_mode="strings", serialize_unknown=True))


def _without_nul(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\x00", "\ufffd")  # Postgres stores no NUL in jsonb
        case list():
            return [_without_nul(item) for item in value]
        case dict():
            return {_without_nul(key): _without_nul(item) for key, item in value.items()}
        case _:
            return value
