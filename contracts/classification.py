"""One total table: every exception, ours or not, has one of the ten error types and its retry rule."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite, nan
from typing import Any

from holdfast.contracts.errors import (
    AuthError,
    BudgetExceeded,
    ErrorType,
    HoldfastError,
    HumanRequired,
    InvalidRequest,
    PermanentDependency,
    PolicyDenied,
    RateLimited,
    RunCancelled,
    TimedOut,
    TransientDependency,
    UnclassifiedFailure,
)

_CLASS_OF_TYPE: Mapping[ErrorType, type[HoldfastError]] = {
    ErrorType.VALIDATION_ERROR: InvalidRequest,
    ErrorType.POLICY_DENIED: PolicyDenied,
    ErrorType.AUTH_ERROR: AuthError,
    ErrorType.RATE_LIMITED: RateLimited,
    ErrorType.TIMEOUT: TimedOut,
    ErrorType.TRANSIENT_DEPENDENCY: TransientDependency,
    ErrorType.PERMANENT_DEPENDENCY: PermanentDependency,
    ErrorType.BUDGET_EXCEEDED: BudgetExceeded,
    ErrorType.HUMAN_REQUIRED: HumanRequired,
    ErrorType.CANCELLATION: RunCancelled,
}

# By qualified name, so that this room imports no provider. The first class of the MRO that is named here decides.
FOREIGN: Mapping[str, ErrorType] = {
    "asyncio.exceptions.CancelledError": ErrorType.CANCELLATION,
    "langgraph.errors.NodeCancelledError": ErrorType.CANCELLATION,
    "builtins.TimeoutError": ErrorType.TIMEOUT,
    "langgraph.errors.NodeTimeoutError": ErrorType.TIMEOUT,
    "langgraph.errors.GraphRecursionError": ErrorType.BUDGET_EXCEEDED,
    "langgraph.errors.InvalidUpdateError": ErrorType.VALIDATION_ERROR,
    "builtins.ConnectionError": ErrorType.TRANSIENT_DEPENDENCY,
    "builtins.PermissionError": ErrorType.PERMANENT_DEPENDENCY,
    "pydantic_core._pydantic_core.ValidationError": ErrorType.VALIDATION_ERROR,
    "json.decoder.JSONDecodeError": ErrorType.VALIDATION_ERROR,
    "jsonschema.exceptions.ValidationError": ErrorType.VALIDATION_ERROR,
    "langchain_core.exceptions.OutputParserException": ErrorType.VALIDATION_ERROR,
    "langchain_core.tools.base.ToolException": ErrorType.VALIDATION_ERROR,
    "langchain_core.exceptions.ModelAuthenticationError": ErrorType.AUTH_ERROR,
    "langchain_core.exceptions.ModelPermissionDeniedError": ErrorType.AUTH_ERROR,
    "langchain_core.exceptions.ModelInvalidRequestError": ErrorType.PERMANENT_DEPENDENCY,
    "langchain_core.exceptions.ModelNotFoundError": ErrorType.PERMANENT_DEPENDENCY,
    "langchain_core.exceptions.ModelRateLimitError": ErrorType.RATE_LIMITED,
    "langchain_core.exceptions.ModelAPIError": ErrorType.TRANSIENT_DEPENDENCY,
    "langchain_core.exceptions.ModelConnectionError": ErrorType.TRANSIENT_DEPENDENCY,
    "langchain_core.exceptions.ModelTimeoutError": ErrorType.TIMEOUT,
    "langchain_core.exceptions.ContextOverflowError": ErrorType.PERMANENT_DEPENDENCY,
    "httpx.TimeoutException": ErrorType.TIMEOUT,
    "httpx.TransportError": ErrorType.TRANSIENT_DEPENDENCY,
    "httpcore.TimeoutException": ErrorType.TIMEOUT,
    "httpcore.NetworkError": ErrorType.TRANSIENT_DEPENDENCY,
    "openai.APITimeoutError": ErrorType.TIMEOUT,
    "openai.APIConnectionError": ErrorType.TRANSIENT_DEPENDENCY,
    "openai.APIResponseValidationError": ErrorType.VALIDATION_ERROR,
    "openai.LengthFinishReasonError": ErrorType.VALIDATION_ERROR,
    "openai.ContentFilterFinishReasonError": ErrorType.PERMANENT_DEPENDENCY,
    "anthropic.APITimeoutError": ErrorType.TIMEOUT,
    "anthropic.APIConnectionError": ErrorType.TRANSIENT_DEPENDENCY,
    "psycopg.OperationalError": ErrorType.TRANSIENT_DEPENDENCY,
    "psycopg.InterfaceError": ErrorType.TRANSIENT_DEPENDENCY,
    "psycopg_pool.PoolTimeout": ErrorType.TRANSIENT_DEPENDENCY,
    "psycopg.Error": ErrorType.PERMANENT_DEPENDENCY,
}

_SIGNAL = "langgraph.errors.GraphBubbleUp"
"""The base of LangGraph's signals, by name too."""


def type_of_status(status: int) -> ErrorType:
    """The error type of an HTTP answer that is not a success (RFC 9110 section 15; 429 from RFC 6585)."""
    match status:
        case 401 | 403:
            return ErrorType.AUTH_ERROR
        case 408 | 504:
            return ErrorType.TIMEOUT
        case 429:
            return ErrorType.RATE_LIMITED
        case 409 | 425 | 500 | 502 | 503 | 529:
            return ErrorType.TRANSIENT_DEPENDENCY
        case _:
            return ErrorType.TRANSIENT_DEPENDENCY if status >= 500 else ErrorType.PERMANENT_DEPENDENCY


def type_of(error: BaseException) -> ErrorType:
    """The error type of any exception. What nobody knows is `permanent_dependency`, which is never retried."""
    if isinstance(error, HoldfastError):
        return error.error_type
    if isinstance(error, BaseExceptionGroup):
        return _type_of_group(error)
    if (status := _http_status(error)) is not None:
        return type_of_status(status)
    return next((FOREIGN[name] for name in _names(error) if name in FOREIGN), ErrorType.PERMANENT_DEPENDENCY)


def translated(error: BaseException) -> HoldfastError:
    """`error` as one of ours, with the original's class in the facts and the original as its cause."""
    if isinstance(error, HoldfastError):
        return error
    if isinstance(error, BaseExceptionGroup) and (inner := first_of_ours(error)) is not None:
        return inner
    kind = type_of(error)
    known = kind is not ErrorType.PERMANENT_DEPENDENCY or any(name in FOREIGN for name in _names(error))
    ours = _CLASS_OF_TYPE[kind] if known else UnclassifiedFailure
    facts: dict[str, object] = {"exception": next(_names(error))}
    if (place := _raised_at(error)) is not None:
        facts["raised_at"] = place
    if (status := _http_status(error)) is not None:
        facts["status"] = status
    if (wait := retry_after_seconds(error)) is not None:
        facts["retry_after_seconds"] = wait
    said = _said(error)
    if not known and said != type(error).__name__:
        said = f"{type(error).__name__}: {said}"  # a KeyError says no more than its key
    result = ours(said, **facts)
    result.__cause__ = error
    return result


@contextmanager
def contained() -> Iterator[None]:
    """In this block others' code cannot end the process: what is neither an `Exception` nor a wish of the process
    itself to stop (`sys.exit()` in a tool, a panic of an extension) is the failure of who raised it."""
    try:
        yield
    except BaseException as error:
        of_the_process = isinstance(error, Exception | KeyboardInterrupt | GeneratorExit)
        if of_the_process or type_of(error) is ErrorType.CANCELLATION:
            raise
        name = next(_names(error))
        raise UnclassifiedFailure(f"{name} was raised, which would end the process: {error}", exception=name) from error


def recalled(error_type: ErrorType, message: str, facts: Mapping[str, Any]) -> HoldfastError:
    """The error that a record tells of, as one of ours: of the type's own class, with its facts."""
    error = _CLASS_OF_TYPE[error_type](message)
    error.facts = dict(facts)
    return error


def is_signal(error: BaseException) -> bool:
    """Whether this is LangGraph's control flow (a pause, a command to the parent, a drain), which is no failure."""
    return _SIGNAL in _names(error)


def first_of_ours(group: BaseExceptionGroup[BaseException]) -> HoldfastError | None:
    """The first error of ours in a group: what a TaskGroup's failure is about."""
    for inner in group.exceptions:
        if isinstance(inner, HoldfastError):
            return inner
        if isinstance(inner, BaseExceptionGroup) and (found := first_of_ours(inner)) is not None:
            return found
    return None


def retry_after_seconds(error: BaseException) -> float | None:
    """The Retry-After of a provider's answer in seconds (RFC 9110 section 10.2.3), where it is a number."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    try:
        seconds = float(headers["retry-after"]) if headers and "retry-after" in headers else nan
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if isfinite(seconds) else None


def _said(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001  # an exception that cannot even say what it is must not become another one
        return type(error).__name__


def _raised_at(error: BaseException) -> str | None:
    """Where to look: the innermost place of the traceback."""
    trace = error.__traceback__
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"


def _type_of_group(group: BaseExceptionGroup[BaseException]) -> ErrorType:
    ours = first_of_ours(group)
    return ours.error_type if ours is not None else type_of(group.exceptions[0])


def _http_status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and not isinstance(status, bool) and status >= 400 else None


def _names(error: BaseException) -> Iterator[str]:
    for kind in type(error).__mro__:
        yield f"{kind.__module__}.{kind.__qualname__}"
