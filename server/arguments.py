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
    source, content = "--input", text
    if text == "-":
        source, content = "standard input", sys.stdin.read()
    elif not text.lstrip().startswith(("{", "[", '"')):
        source, content = f"--input {text}", _file(text)
    return json_given(source, content)


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


def _file(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"--input {name}: there is no such file (and JSON begins with {{, [ or a quote)"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"--input {name}: cannot be read: {error}") from error
