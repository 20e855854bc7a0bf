"""Whether a model's answer is the JSON that was asked for, and how to ask for it once more."""

import json
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.models import Message, ModelRequest

_SHOWN = 500
"""Characters of a complaint: it quotes the answer, and is shown to the model and kept in the error."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why an answer does not fit its schema."""

    text: str
    """In words, for the model; may quote the answer."""
    rule: str
    """What was broken and where, without the answer: fit for an event."""


def require_schema(schema: dict[str, Any]) -> None:
    """Raise `InvalidRequest` when `schema` is no JSON Schema (draft 2020-12)."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequest(f"the response_schema is no JSON Schema: {error.message} at {error.json_path}") from error


def read_answer(content: str, schema: dict[str, Any]) -> tuple[Any, Complaint | None]:
    """The JSON value of `content` and None, or None and the complaint. A fenced block around it is allowed."""
    try:
        value = json.loads(_unfenced(content), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return None, Complaint(f"it is not JSON: {error}"[:_SHOWN], "json")
    problem = best_match(Draft202012Validator(schema).iter_errors(value))
    if problem is None:
        return value, None
    where = f"{problem.validator} at {problem.json_path}"
    return None, Complaint(f"{problem.message[:_SHOWN]} ({where})", where)


def repair_request(request: ModelRequest, content: str, complaint: Complaint) -> ModelRequest:
    """`request` with the answer that did not fit and the complaint about it."""
    told: list[Message] = [
        {"role": "assistant", "content": content},
        {
            "role": "user",
            "content": f"Your answer does not fit the required JSON schema: {complaint.text}. "
            "Answer again with the corrected JSON alone.",
        },
    ]
    return request.model_copy(update={"messages": [*request.messages, *told]})


def _unfenced(content: str) -> str:
    text = content.strip()
    if not (text.startswith("```") and text.endswith("```") and "\n" in text):
        return text
    return text[text.index("\n") : -3]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
