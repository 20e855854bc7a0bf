"""The one door for model calls: policy, journal, reservation, send, settlement, validation."""

import asyncio
from contextlib import suppress

from opentelemetry.trace import Span

from holdfast.contracts.calls import CallOutcome, CallRecord, Fresh, Recorded, Unknown
from holdfast.contracts.classification import recalled
from holdfast.contracts.deadline import Clock
from holdfast.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    HoldfastError,
    InvalidModelOutput,
    InvalidRequest,
    LeaseLost,
    NotGoverned,
    PolicyDenied,
    TransientDependency,
)
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import CallId
from holdfast.contracts.limits import Usage
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.models import ModelProvider, ModelRequest, ModelResponse
from holdfast.contracts.ports import Events, Ids, Journal, Ledger
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import Effect
from holdfast.contracts.verdicts import Decision, Policy, PolicyRequest, Verdict
from holdfast.gateway.closing import written
from holdfast.gateway.estimate import input_tokens
from holdfast.gateway.model_call import (
    ModelCall,
    canonical_request,
    drafted,
    failed,
    recorded_response,
    response_facts,
    returned,
    used,
)
from holdfast.gateway.prices import Prices
from holdfast.gateway.providers import Providers
from holdfast.gateway.recalling import earlier
from holdfast.gateway.sending import WHAT, Sender, Sending, may_be_paid
from holdfast.gateway.validation import Complaint, read_answer, repair_request, require_schema
from holdfast.gateway.within import noted
from holdfast.policies.budget import exceeded, reservation
from holdfast.policies.deadline import timeout_seconds
from holdfast.telemetry.spans import model_span, record_model


class ModelGateway:
    """`contracts.models.ModelDoor`: every model call of every node goes through here."""

    def __init__(
        self,
        *,
        journal: Journal,
        ledger: Ledger,
        events: Events,
        policy: Policy,
        providers: Providers,
        prices: Prices,
        clock: Clock,
        ids: Ids,
        sender: Sender,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._events = events
        self._policy = policy
        self._providers = providers
        self._prices = prices
        self._clock = clock
        self._ids = ids
        self._sender = sender

    async def call(
        self, request: ModelRequest, *, scope: Scope, provider: ModelProvider | None = None
    ) -> ModelResponse:
        """Answer `request`, from the journal or from the model; an answer that does not fit its schema is asked for
        once more. See `ModelDoor.call`."""
        _require_governed(request, scope)
        if request.response_schema is not None:
            require_schema(request.response_schema)
        name = _name_of(provider) if provider else self._providers.named(request.model_policy, scope)
        verdict = await self._allowed(request, scope, name)
        provider = provider or await self._providers.open(name)
        response = await self._journalled(self._call(request, scope, provider, verdict))
        return await self._fitting(request, scope, provider, verdict, response)

    async def _allowed(self, request: ModelRequest, scope: Scope, name: str) -> Verdict:
        verdict = self._policy.decide(
            PolicyRequest(
                tenant=scope.tenant,
                action="call_model",
                resource=name,
                agent_name=request.agent_name,
                graph_name=scope.graph_name,
                effect=Effect.READ,
                idempotent=True,
                autonomy=scope.autonomy,
            )
        )
        if verdict.decision is Decision.ALLOW:
            return verdict
        await self._refused(request, scope, name, rule=verdict.rule, policy_version=verdict.policy_version)
        raise _denial(name, verdict)

    async def _refused(self, request: ModelRequest, scope: Scope, name: str, **facts: str) -> None:
        event = drafted(EventKind.MODEL_REFUSED, scope=scope, request=request, name=name, facts=facts)
        await self._events.append(scope.owner, [event])

    def _call(self, request: ModelRequest, scope: Scope, provider: ModelProvider, verdict: Verdict) -> ModelCall:
        recorded, request_digest = canonical_request(request)
        estimate = input_tokens(request, bytes_per_token=self._sender.terms.bytes_per_token)
        quote = self._prices.quote(provider.provider, provider.model, estimate, request.max_tokens)
        return ModelCall(
            request=request,
            provider=provider,
            scope=scope,
            deadline=min(request.deadline, scope.deadline, key=lambda deadline: deadline.expires_at_monotonic),
            identity=scope.identify("model", _name_of(provider), request_digest),
            canonical_request=noted(recorded),
            estimate=estimate,
            reservation=reservation(estimate, request.max_tokens, quote),
            policy_version=verdict.policy_version,
        )

    async def _journalled(self, call: ModelCall) -> ModelResponse:
        """The answer to one call, recorded and paid for once."""
        with model_span(
            call.scope,
            provider=call.provider.provider,
            model=call.provider.model,
            prompt_version=call.request.prompt_version,
            agent_name=call.request.agent_name,
            messages=call.request.messages,
        ) as span:
            match await self._recalled(call) or await self._opened(call):
                case Recorded(record):
                    return await self._replayed(call, record, span)
                case Unknown(record):
                    await self._reconciled(call, record)
                case Fresh(record):
                    pass
            return await self._performed(call, record.call_id, span)

    async def _recalled(self, call: ModelCall) -> Recorded | Unknown | None:
        record = await earlier(self._journal, call.scope, call.identity)
        if record is None:
            return None
        return Recorded(record) if record.status in {"returned", "failed"} else Unknown(record)

    async def _opened(self, call: ModelCall) -> Fresh | Recorded | Unknown:
        try:
            seconds = timeout_seconds(call.deadline, self._sender.terms.timeout_seconds, what=WHAT)
            intent = call.intent(CallId(self._ids.new()), timeout_seconds=seconds)
            event = call.event(EventKind.MODEL_INTENDED, reserved_tokens=call.reservation.tokens_used)
            await reach(Mark.INTENT_RECORDING)
            opened = await self._journal.open(call.scope.owner, intent, event=event)
        except DeadlineExceeded:
            await self._events.append(call.scope.owner, [call.event(EventKind.MODEL_REFUSED, rule="deadline")])
            raise
        except BudgetExceeded as error:
            await self._events.append(call.scope.owner, [call.event(EventKind.BUDGET_REFUSED, **error.facts)])
            raise
        await reach(Mark.INTENT_RECORDED)
        return opened

    async def _resent(self, call: ModelCall, call_id: CallId, kind: EventKind, **facts: object) -> None:
        """Before the call is sent again after its answer was lost: the earlier send counts as spent in full."""
        event = call.event(kind, call_id=call_id, **facts)
        await self._journal.resend(call.scope.owner, call_id, reservation=call.reservation, event=event)
        await reach(Mark.RESEND_RECORDED)

    async def _reconciled(self, call: ModelCall, record: CallRecord) -> None:
        """A model call whose answer was lost is asked again, if there is budget for both; if not, it has failed."""
        try:
            await self._resent(call, record.call_id, EventKind.CALL_RECONCILED, how="sent again")
        except BudgetExceeded as error:
            lost = TransientDependency(f"the answer of {call.name} was lost, and there is no budget to ask again")
            await self._failed(call, failed(record.call_id, lost, record.reservation, latency_ms=0))
            await self._events.append(call.scope.owner, [call.event(EventKind.BUDGET_REFUSED, **error.facts)])
            raise

    async def _replayed(self, call: ModelCall, record: CallRecord, span: Span) -> ModelResponse:
        event = call.event(EventKind.MODEL_REPLAYED, call_id=record.call_id, status=record.status)
        await self._events.later(call.scope.owner, [event])
        if record.error_type is not None:
            raise recalled(record.error_type, record.error_message or "", record.error_facts)
        response = recorded_response(record)
        record_model(span, response, record.latency_ms or 0)
        await self._require_within_limits(call, record)
        return response

    async def _performed(self, call: ModelCall, call_id: CallId, span: Span) -> ModelResponse:
        """Send the call and write down what came of it, whatever that is."""
        started, uncounted = self._clock.monotonic(), list[HoldfastError]()
        try:
            response = await self._answer(call, call_id, uncounted)
        except LeaseLost:
            raise  # another worker's call now: it finds the intent, and what became of it is for it to say
        except HoldfastError as error:
            usage = call.reservation if uncounted or may_be_paid(error) else Usage(model_calls=1)
            await self._failed(call, failed(call_id, _as_outcome(error), usage, latency_ms=self._since(started)))
            raise
        except asyncio.CancelledError:
            await self._given_up(call, call_id, self._since(started))
            raise
        return await self._returned(call, call_id, response, self._since(started), span)

    async def _answer(self, call: ModelCall, call_id: CallId, uncounted: list[HoldfastError]) -> ModelResponse:
        """The answer of the first send that has one. A send that may be paid is in `uncounted` until it is written that
        it counts as spent: where that cannot be written, whoever writes the outcome counts it."""

        async def retrying(error: HoldfastError, pause: float) -> None:
            facts = {"error_type": error.error_type, "pause_ms": round(pause * 1000)}
            if may_be_paid(error):
                uncounted.append(error)
                await self._resent_or(error, call, call_id, **facts)
                uncounted.clear()
            else:
                event = call.event(EventKind.MODEL_RETRIED, call_id=call_id, **facts)
                await self._events.append(call.scope.owner, [event])

        sending = Sending(request=call.request, provider=call.provider, scope=call.scope, deadline=call.deadline)
        reply = await self._sender.answer(sending, retrying=retrying)
        await reach(Mark.MODEL_ANSWERED)
        return call.response(call_id, reply, self._prices)

    async def _resent_or(self, error: HoldfastError, call: ModelCall, call_id: CallId, **facts: object) -> None:
        """Count the failed send as spent before the next; where the budget has no room for that, `error` is the end."""
        try:
            await self._resent(call, call_id, EventKind.MODEL_RETRIED, **facts)
        except BudgetExceeded as refused:
            await self._events.append(call.scope.owner, [call.event(EventKind.BUDGET_REFUSED, **refused.facts)])
            raise error from refused

    async def _returned(
        self, call: ModelCall, call_id: CallId, response: ModelResponse, latency_ms: int, span: Span
    ) -> ModelResponse:
        try:
            outcome = returned(call_id, response, latency_ms=latency_ms)
        except InvalidRequest as error:
            unusable = InvalidModelOutput(f"the answer of {call.name} cannot be recorded: {error.message}")
            await self._failed(call, failed(call_id, unusable, used(response), latency_ms=latency_ms))
            raise unusable from error
        facts = response_facts(response)
        event = call.event(EventKind.MODEL_RETURNED, call_id=call_id, latency_ms=latency_ms, **facts)
        record = await self._closed(call, outcome, event)
        record_model(span, response, latency_ms)
        await self._require_within_limits(call, record)
        return response

    async def _failed(self, call: ModelCall, outcome: CallOutcome) -> None:
        event = call.event(
            EventKind.MODEL_FAILED,
            call_id=outcome.call_id,
            error_type=outcome.error_type,
            latency_ms=outcome.latency_ms,
        )
        await self._closed(call, outcome, event)

    async def _closed(self, call: ModelCall, outcome: CallOutcome, event: EventDraft) -> CallRecord:
        """The record with its outcome. The write is finished before a cancellation goes on."""
        await reach(Mark.OUTCOME_RECORDING)
        record = await written(self._journal.close(call.scope.owner, outcome, event=event))
        await reach(Mark.OUTCOME_RECORDED)
        return record

    async def _given_up(self, call: ModelCall, call_id: CallId, latency_ms: int) -> None:
        """Count a call whose answer nobody waits for any more as spent in full: the run may end here, and then no one
        would settle it. When even that fails the intent stays open, and whoever runs the node again settles it."""
        error = TransientDependency(f"{call.name} was cancelled before it had answered")
        with suppress(HoldfastError):
            await self._failed(call, failed(call_id, error, call.reservation, latency_ms=latency_ms))

    async def _require_within_limits(self, call: ModelCall, record: CallRecord) -> None:
        """Stop a run whose call used more than it had reserved, when that took a budget past a limit."""
        if _within(record.usage, record.reservation):
            return
        for budget_id in call.scope.budgets:
            state = await self._ledger.state(call.scope.owner.tenant_id, budget_id)
            if (limit_name := exceeded(state)) is not None:
                raise BudgetExceeded(
                    f"{call.name} used more than the call had reserved ({record.usage.tokens_used} tokens, "
                    f"${record.usage.cost_usd}), and the limit {limit_name} is passed",
                    budget=budget_id,
                    limit_name=limit_name,
                    limit=getattr(state.limits, limit_name),
                )

    async def _fitting(
        self, request: ModelRequest, scope: Scope, provider: ModelProvider, verdict: Verdict, response: ModelResponse
    ) -> ModelResponse:
        """The response with its answer read by the request's schema, after one repair if need be."""
        if request.response_schema is None or response.tool_calls:
            return response  # a wish to call tools is not the answer yet
        value, complaint = read_answer(response.content, request.response_schema)
        if complaint is not None:
            again = self._call(repair_request(request, response.content, complaint), scope, provider, verdict)
            event = again.event(EventKind.MODEL_RETRIED, error_type="validation_error", broken=complaint.rule)
            await self._events.append(scope.owner, [event])
            response = await self._journalled(again)
            value, complaint = read_answer(response.content, request.response_schema)
        if complaint is not None:
            raise _unfit(_name_of(provider), response, complaint)
        return response.model_copy(update={"parsed": value})

    def _since(self, started: float) -> int:
        return round((self._clock.monotonic() - started) * 1000)


def _require_governed(request: ModelRequest, scope: Scope) -> None:
    scope.require_open("a model")
    if request.run_id != scope.run.run_id:
        raise NotGoverned(
            f"a model request names run {request.run_id!r}, but the node belongs to {scope.run.run_id!r}; "
            "make requests from the scope they run in",
            action="call_model",
            rule="scope.foreign",
        )


def _name_of(provider: ModelProvider) -> str:
    return f"{provider.provider}:{provider.model}"


def _denial(name: str, verdict: Verdict) -> PolicyDenied:
    why = f"policy {verdict.rule!r} does not let this agent call {name}: {verdict.reason}"
    if verdict.decision is not Decision.DENY:
        why = (
            f"policy {verdict.rule!r} wants a person asked before {name} is called, and a model call cannot be asked "
            "for; permit or forbid it, and ask for the tools that act on its answer"
        )
    return PolicyDenied(why, rule=verdict.rule, action="call_model", resource=name)


def _as_outcome(error: HoldfastError) -> HoldfastError:
    """The error as it is recorded. That a node had ended says nothing of the call: run again, it asks again."""
    return TransientDependency(error.message) if isinstance(error, NotGoverned) else error


def _unfit(name: str, response: ModelResponse, complaint: Complaint) -> InvalidModelOutput:
    return InvalidModelOutput(
        f"the answer of {name} does not fit its response_schema, after one repair: {complaint.text}",
        complaint=complaint.text,
        call=response.raw_response_ref,
    )


def _within(usage: Usage, reserved: Usage) -> bool:
    cost, held = usage.cost_microusd, reserved.cost_microusd
    dearer = cost is not None and held is not None and cost > held
    return usage.tokens_used <= reserved.tokens_used and not dearer
