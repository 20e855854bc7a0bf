"""One model call as the journal sees it: its intent, its events, its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from holdfast.contracts.calls import CallIdentity, CallIntent, CallOutcome, CallRecord, OutcomeStatus
from holdfast.contracts.canonical import canonical, digest
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import HoldfastError
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import CallId
from holdfast.contracts.limits import Usage
from holdfast.contracts.models import ModelProvider, ModelRequest, ModelResponse, ProviderReply
from holdfast.contracts.money import to_dollars, to_microusd
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import Effect
from holdfast.gateway.prices import Prices
from holdfast.telemetry.spans import traced_event

_NOT_OF_THE_REQUEST = {"run_id", "deadline"}
"""Fields that do not make a request another: made again, by a later run too, it is the same call."""

_NOT_OF_THE_RECORD = {"replayed", "parsed", "raw_response_ref"}
"""Fields of a response that are made anew from the rest when the journal answers."""

_MOST_TOKENS = 10**9
"""More than any call can use. What a provider counts beyond it is a mistake, and the ledger could not hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """A request on its way to one model, with what it may use."""

    request: ModelRequest
    provider: ModelProvider
    scope: Scope
    deadline: Deadline
    identity: CallIdentity
    canonical_request: Mapping[str, Any]
    estimate: int
    """Input tokens, at most."""
    reservation: Usage
    policy_version: str

    @property
    def name(self) -> str:
        """The model as `provider:model`."""
        return f"{self.provider.provider}:{self.provider.model}"

    def intent(self, call_id: CallId, *, timeout_seconds: float) -> CallIntent:
        """The journal's row before the call. A model call changes nothing, so it may be sent again."""
        return CallIntent(
            call_id=call_id,
            identity=self.identity,
            agent_name=self.request.agent_name,
            request=self.canonical_request,
            effect=Effect.READ,
            idempotent=True,
            reservation=self.reservation,
            budgets=self.scope.budgets,
            timeout_seconds=timeout_seconds,
            policy_version=self.policy_version,
            prompt_version=self.request.prompt_version,
            model=self.name,
        )

    def event(self, kind: EventKind, *, call_id: CallId | None = None, **facts: Any) -> EventDraft:
        """An event about this call."""
        about = {"policy_version": self.policy_version, **facts}
        return drafted(kind, scope=self.scope, request=self.request, name=self.name, call_id=call_id, facts=about)

    def response(self, call_id: CallId, reply: ProviderReply, prices: Prices) -> ModelResponse:
        """The provider's reply, counted and priced. What the provider does not count is taken as it was reserved."""
        tokens_in = _counted(reply.input_tokens, otherwise=self.estimate)
        tokens_out = _counted(reply.output_tokens, otherwise=self.request.max_tokens)
        return ModelResponse(
            provider=self.provider.provider,
            model=reply.model or self.provider.model,
            content=reply.content,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cost_usd=self._cost(reply, tokens_in, tokens_out, prices),
            raw_response_ref=reference(call_id),
            tool_calls=reply.tool_calls,
            finish_reason=reply.finish_reason,
            raw=reply.raw,
        )

    def _cost(self, reply: ProviderReply, tokens_in: int, tokens_out: int, prices: Prices) -> Decimal | None:
        """In whole micro-dollars, rounded up, as the ledger counts it. The answering model's price goes first; one
        that is too new for the list costs what was asked for."""
        cost, provider = reply.cost_usd, self.provider.provider
        for model in filter(None, (reply.model, self.provider.model)):
            if cost is None:
                cost = prices.quote(provider, model, tokens_in, tokens_out).cost_usd
        return to_dollars(to_microusd(cost))


def drafted(
    kind: EventKind,
    *,
    scope: Scope,
    request: ModelRequest,
    name: str,
    call_id: CallId | None = None,
    facts: Mapping[str, Any],
) -> EventDraft:
    """An event about a model call: facts, and no content."""
    provider, _, model = name.partition(":")
    about = {
        "provider": provider,
        "model": model,
        "agent_name": request.agent_name,
        "prompt_version": request.prompt_version,
        **facts,
    }
    return traced_event(kind, about, node=scope.node, task_id=scope.locate().task_id, call_id=call_id)


def canonical_request(request: ModelRequest) -> tuple[dict[str, Any], str]:
    """The request as it is recorded, and its digest. Raises `InvalidRequest` for what is not JSON."""
    recorded = request.model_dump(exclude=_NOT_OF_THE_REQUEST)
    return recorded, digest(recorded)


def used(response: ModelResponse) -> Usage:
    """What an answered call counts."""
    return Usage(model_calls=1, tokens_used=response.input_tokens + response.output_tokens, cost_usd=response.cost_usd)


def returned(call_id: CallId, response: ModelResponse, *, latency_ms: int) -> CallOutcome:
    """The outcome of an answered call. Raises `InvalidRequest` when the answer cannot be recorded as JSON."""
    recorded = response.model_dump(exclude=_NOT_OF_THE_RECORD)
    canonical(recorded)
    return CallOutcome(
        call_id=call_id,
        status=OutcomeStatus.RETURNED,
        usage=used(response),
        response=recorded,
        latency_ms=latency_ms,
    )


def failed(call_id: CallId, error: HoldfastError, usage: Usage, *, latency_ms: int) -> CallOutcome:
    """The outcome of a call that brought no answer."""
    return CallOutcome(
        call_id=call_id,
        status=OutcomeStatus.FAILED,
        usage=usage,
        error_type=error.error_type,
        error_message=error.message,
        error_facts=error.facts,
        latency_ms=latency_ms,
    )


def recorded_response(record: CallRecord) -> ModelResponse:
    """The response as the journal has it."""
    return ModelResponse.model_validate(
        {**(record.response or {}), "replayed": True, "raw_response_ref": reference(record.call_id)}
    )


def response_facts(response: ModelResponse) -> dict[str, Any]:
    """What an event says of a response."""
    return {
        "answered_by": response.model,
        "input_tokens": response.input_tokens,
        "output_tokens": response.output_tokens,
        "cost_usd": None if response.cost_usd is None else str(response.cost_usd),
        "finish_reason": response.finish_reason,
    }


def reference(call_id: CallId) -> str:
    """Where the journal keeps a call."""
    return f"call:{call_id}"


def _counted(tokens: int | None, *, otherwise: int) -> int:
    return otherwise if tokens is None or tokens < 0 else min(tokens, _MOST_TOKENS)
