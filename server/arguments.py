"""What is typed after a command, as values: the input, the limits. Every complaint names the option."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.limits import Limits


def input_given(text: str) -> Any:
    """The input of `--input`: JSON, a file of JSON, or `-` for standard input. Raises `InvalidRequest`."""
    return _read("--input", text)


def values_given(text: str | None) -> Mapping[str, Any] | None:
    """The fields of the state that `--values` changes, given as an input is. Raises `InvalidRequest`."""
    if text is None:
        return None
    given = _read("--values", text)
    if not isinstance(given, dict):
        raise InvalidRequest("--values must be a JSON object: the fields of the state by name")
    return given


def json_given(source: str, content: str) -> Any:
    """`content` as JSON; `source` names it in the complaint. Raises `InvalidRequest`."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise InvalidRequest(f"{source} is not JSON: {error}") from error


def args_given(text: str | None) -> Mapping[str, Any] | None:
    """The tool arguments of `--args`. Raises `InvalidRequest` when they are not a JSON object."""
    if text is None:
        return None
    given = json_given("--args", text)
    if not isinstance(given, dict):
        raise InvalidRequest("--args must be a JSON object: the tool's arguments by name")
    return given


def limits_given(options: Mapping[str, str | None]) -> Limits | None:
    """The limits that were named; `none` is unlimited. None when no option was given. Raises `InvalidRequest`."""
    named = {name: None if text == "none" else text for name, text in options.items() if text is not None}
    if not named:
        return None
    try:
        return Limits.model_validate(named)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        said = problem["msg"][0].lower() + problem["msg"][1:]
        raise InvalidRequest(f"{option}: {said}, not {problem['input']!r}") from None


def _read(option: str, text: str) -> Any:
    source, content = option, text
    if text == "-":
        source, content = "standard input", sys.stdin.read()
    elif not text.lstrip().startswith(("{", "[", '"')):
        source, content = f"{option} {text}", _file(option, text)
    return json_given(source, content)


def _file(option: str, name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"{option} {name}: there is no such file (and JSON begins with {{, [ or a quote)"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{option} {name}: cannot be read: {error}") from error
