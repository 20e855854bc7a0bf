"""Structured logs. They go to the standard library's logging; what they look like is the server's choice."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import EventDict, WrappedLogger

from holdfast.contracts.runs import RunIdentity
from holdfast.telemetry.spans import trace_ids


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module (`logger(__name__)`); what is said carries the ids that `run_logs` has bound."""
    wrapped = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            merge_contextvars,
            _add_trace_ids,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return cast("structlog.stdlib.BoundLogger", wrapped)


@contextmanager
def run_logs(run: RunIdentity, **facts: str | int) -> Iterator[None]:
    """Within the block every line of this task and its children says which run, thread and tenant it is about."""
    with bound_contextvars(run_id=run.run_id, thread_id=run.thread_id, tenant_id=run.tenant_id, **facts):
        yield


def _add_trace_ids(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    trace_id, span_id = trace_ids()
    return event if trace_id is None else {**event, "trace_id": trace_id, "span_id": span_id}
