"""One model call on its way: in turn, in time, and sent again a bounded number of times when that may help."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import isinf

from holdfast.contracts.classification import contained, translated
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.errors import (
    ConfigurationError,
    DeadlineExceeded,
    ErrorType,
    HoldfastError,
    InvalidModelOutput,
    TimedOut,
)
from holdfast.contracts.marks import Mark, reach
from holdfast.contracts.models import ModelProvider, ModelRequest, ProviderReply
from holdfast.contracts.ports import Dice
from holdfast.contracts.scope import Scope
from holdfast.gateway.last_look import on_its_way
from holdfast.policies.deadline import timeout_seconds
from holdfast.policies.retry import RetryTerms, pause_seconds

WHAT = "the model call"


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTerms:
    """How model calls are sent."""

    timeout_seconds: float = 120.0
    """The most that one send may take; the run's deadline may leave less."""
    retries: RetryTerms = field(default_factory=RetryTerms)
    longest_wait_seconds: float = 60.0
    """A provider that wants to be left alone for longer than this is not waited for: the call fails."""
    max_concurrency: int = 64
    """Calls under way at one provider, of all that this sender sends."""
    bytes_per_token: float = 1.0
    """The fewest bytes of a request that make one token. With 1 the reservation is an upper bound for every text;
    more reserves less, and what is used beyond it stops the run."""

    def __post_init__(self) -> None:
        if self.bytes_per_token <= 0:
            raise ConfigurationError(f"bytes_per_token must be above 0, not {self.bytes_per_token}")
        if self.timeout_seconds <= 0 or self.longest_wait_seconds < 0 or self.max_concurrency < 1:
            raise ConfigurationError(
                "model calls need timeout_seconds > 0, longest_wait_seconds >= 0 and max_concurrency >= 1, not "
                f"{self.timeout_seconds}, {self.longest_wait_seconds} and {self.max_concurrency}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """What is sent, to whom, for whom, until when."""

    request: ModelRequest
    provider: ModelProvider
    scope: Scope
    deadline: Deadline


Retrying = Callable[[HoldfastError, float], Awaitable[None]]
"""Told of a send that failed, and of the seconds before the next one. What it raises ends the call."""


class Sender:
    """Sends model calls. A process has one, so that its terms hold for all gateways together."""

    def __init__(self, *, dice: Dice, terms: SendTerms) -> None:
        self._dice = dice
        self.terms = terms
        self._lanes: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(terms.max_concurrency))

    async def answer(self, sending: Sending, *, retrying: Retrying) -> ProviderReply:
        """The provider's answer, perhaps at the second or third try. Raises errors of ours only."""
        attempt = 1
        while True:
            try:
                return await self._in_turn(sending)
            except HoldfastError as error:
                pause = self._pause(error, attempt, sending.deadline)
                if pause is None:
                    raise
                await retrying(error, pause)
            await asyncio.sleep(pause)
            attempt += 1

    def _pause(self, error: HoldfastError, attempt: int, deadline: Deadline) -> float | None:
        """Seconds until the next send; None when there is to be none. A timeout is not tried again: it took what
        there was to take."""
        if not error.retryable or attempt >= self.terms.retries.attempts:
            return None
        asked = error.facts.get("retry_after_seconds")
        pause = pause_seconds(attempt, self.terms.retries, self._dice.fraction(), asked)
        too_long = pause > self.terms.longest_wait_seconds or pause >= deadline.remaining_seconds()
        return None if too_long else pause

    async def _in_turn(self, sending: Sending) -> ProviderReply:
        async with self._turn(sending):
            await reach(Mark.MODEL_SENDING)
            sending.scope.require_open("a model")
            sending.scope.require_ours()  # and a LangChain model's own code looks once more
            return await self._in_time(sending)

    @asynccontextmanager
    async def _turn(self, sending: Sending) -> AsyncIterator[None]:
        """A place among the calls under way at the provider; waiting for one ends with the deadline."""
        lane = self._lanes[sending.provider.provider]
        try:
            left = sending.deadline.require(WHAT)
            async with asyncio.timeout(None if isinf(left) else left):
                await lane.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the run's deadline passed while {WHAT} waited for one of {self.terms.max_concurrency} places "
                f"at {sending.provider.provider}",
                needed_for=WHAT,
            ) from None
        try:
            yield
        finally:
            lane.release()

    async def _in_time(self, sending: Sending) -> ProviderReply:
        seconds = timeout_seconds(sending.deadline, self.terms.timeout_seconds, what=WHAT)
        try:
            async with asyncio.timeout(seconds) as timer:
                with on_its_way(sending.scope), contained():
                    reply = await sending.provider.send(sending.request, timeout_seconds=seconds)
                    await reach(Mark.MODEL_SENT)
                    return reply
        except TimeoutError as error:
            if not timer.expired():
                raise _of_provider(error, sending.provider) from error
            raise _late(sending.provider, seconds, by_deadline=seconds < self.terms.timeout_seconds) from error
        except Exception as error:
            raise _of_provider(error, sending.provider) from error


def may_be_paid(error: HoldfastError) -> bool:
    """Whether a call that ended in `error` may have to be paid for: it was sent, and no refusal came back."""
    if isinstance(error, TimedOut):
        return "exception" in error.facts or "sent" in error.facts
    if error.error_type in {ErrorType.RATE_LIMITED, ErrorType.AUTH_ERROR}:
        return False
    return "exception" in error.facts and "status" not in error.facts


def _of_provider(error: Exception, provider: ModelProvider) -> HoldfastError:
    """A provider's exception as one of ours. What could not be read is the model's fault, not the request's."""
    ours = translated(error)
    if ours is error or ours.error_type is not ErrorType.VALIDATION_ERROR:
        return ours
    name = f"{provider.provider}:{provider.model}"
    return InvalidModelOutput(f"the answer of {name} could not be read: {ours.message}", **ours.facts)


def _late(provider: ModelProvider, seconds: float, *, by_deadline: bool) -> TimedOut:
    name = f"{provider.provider}:{provider.model}"
    if by_deadline:
        return DeadlineExceeded(
            f"the run's deadline passed before {name} answered", timeout_seconds=seconds, needed_for=WHAT, sent=True
        )
    return TimedOut(f"{name} did not answer within {seconds:g} s", timeout_seconds=seconds, sent=True)
