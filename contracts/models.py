"""What is asked of a model, and what it answers."""

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from holdfast.contracts.deadline import Deadline

if TYPE_CHECKING:
    from holdfast.contracts.scope import Scope

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


class ModelProvider(Protocol):
    """Sends one request to one model. The gateway stands before it; nothing else may call it."""

    @property
    def provider(self) -> str:
        """The provider's name, as in `"provider:model"`."""
        ...

    @property
    def model(self) -> str:
        """The model's name at its provider."""
        ...

    async def send(self, request: ModelRequest, *, timeout_seconds: float) -> "ProviderReply":
        """The model's answer. May raise anything; the gateway translates it."""
        ...


class ProviderReply(BaseModel):
    """A provider's answer before the gateway has checked and priced it."""

    model_config = ConfigDict(frozen=True)

    content: str
    tool_calls: tuple[ToolCallRequest, ...] = ()
    input_tokens: int | None = None
    """None where the provider does not say: then the reservation's estimate counts."""
    output_tokens: int | None = None
    model: str | None = None
    """The model that answered, where it says so; prices go by it."""
    cost_usd: Decimal | None = None
    """What the provider itself says that it cost; None: it goes by the price list."""
    finish_reason: str | None = None
    raw: dict[str, Any] = Field(default_factory=dict)


class ModelDoor(Protocol):
    """The one door for model calls."""

    async def call(
        self, request: ModelRequest, *, scope: "Scope", provider: ModelProvider | None = None
    ) -> ModelResponse:
        """Answer `request` for the node of `scope`, from the journal or from the model.

        `provider` is given when a LangChain model of the user's own is carried through the door; otherwise the
        request's `model_policy` is resolved. Raises the errors of `contracts.errors`.
        """
        ...


class PriceQuote(BaseModel):
    """What a call may cost and did cost, in dollars. None: the price of the model is not known."""

    model_config = ConfigDict(frozen=True)

    cost_usd: Decimal | None
    source: Literal["genai-prices", "configured", "free", "unknown"]
