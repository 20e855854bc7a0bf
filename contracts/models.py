"""What is asked of a model, and what it answers."""

from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from holdfast.contracts.deadline import Deadline

Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant" | "tool", "content": …}`, with `tool_calls` and `tool_call_id`
as in OpenAI's chat messages. https://platform.openai.com/docs/api-reference/chat"""


class ToolCallRequest(BaseModel):
    """A model's wish to call a tool."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    args: dict[str, Any]


class ModelRequest(BaseModel):
    """One request to a model: the specification's model request, and what a tool-calling agent needs besides."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    run_id: str
    agent_name: str
    model_policy: str
    """The name of a configured route, or `"provider:model"`."""
    messages: list[Message]
    temperature: float = 0.0
    max_tokens: int = Field(default=1024, gt=0)
    """The most output tokens; they are reserved before the call."""
    response_schema: dict[str, Any] | None = None
    """A JSON Schema that the answer must fit."""
    deadline: SkipValidation[Deadline] = Field(exclude=True, repr=False)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    """Tools the model may ask for, in OpenAI's function form."""
    tool_choice: str | None = None
    prompt_version: str | None = None


class ModelResponse(BaseModel):
    """A model's answer, validated and paid for: the specification's model response."""

    model_config = ConfigDict(frozen=True)

    provider: str
    model: str
    content: str
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    """None where the price is unknown."""
    raw_response_ref: str | None = None
    """`call:<id>`: where the journal keeps the call."""
    tool_calls: tuple[ToolCallRequest, ...] = ()
    parsed: Any = None
    """The answer as JSON, where a `response_schema` was given."""
    finish_reason: str | None = None
    raw: dict[str, Any] = Field(default_factory=dict, repr=False)
    """The provider's message as LangChain serialises it (`message_to_dict`), for code that wants it back whole."""
    replayed: bool = False
    """Whether the journal answered, rather than the model."""


class PriceQuote(BaseModel):
    """What a call may cost and did cost, in dollars. None: the price of the model is not known."""

    model_config = ConfigDict(frozen=True)

    cost_usd: Decimal | None
    source: Literal["genai-prices", "configured", "free", "unknown"]
