"""The way of spans out of the process: a bounded queue and one thread, so that no exporter can delay a run.

OpenTelemetry's BatchSpanProcessor flushes in the caller's thread without a bound and does not say what it dropped.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from holdfast.contracts.classification import translated
from holdfast.contracts.errors import HoldfastError, TransientDependency
from holdfast.telemetry.drops import contained, drops

BATCH_SPANS = 512
LINGER_SECONDS = 1.0
"""How long the first span of a batch waits for others."""


class Pipe(SpanProcessor):
    """Hands ended spans to an exporter on a thread of its own. What does not fit is dropped and counted."""

    def __init__(self, exporter: SpanExporter, *, max_queued: int, linger_seconds: float = LINGER_SECONDS) -> None:
        self._exporter = exporter
        self._max_queued = max_queued
        self._linger_seconds = linger_seconds
        self._changed = threading.Condition()
        self._queue: deque[ReadableSpan] = deque()
        self._in_flight = 0
        self._flushing = False
        self._closed = False
        threading.Thread(target=self._work, name="holdfast-spans", daemon=True).start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: only ended spans are exported."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, or count it as dropped; never waits for the exporter."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._changed:
            if fits := not self._closed and len(self._queue) < self._max_queued:
                self._queue.append(span)
                self._changed.notify_all()
        if not fits:
            drops.add("span queue full")

    def drain(self) -> None:
        """Hand over what is queued, then shut the exporter down: however long it takes, or until `close` gives up."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or not (self._queue or self._in_flight))
        self._exporter.shutdown()

    def close(self) -> None:
        """Take no more spans; what is left is dropped and counted."""
        with self._changed:
            left = len(self._queue) + self._in_flight
            self._queue.clear()
            self._closed = True
            self._changed.notify_all()
        if left:
            drops.add("span not exported before shutdown", left)

    def _work(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while (batch := self._next_batch()) is not None:
            failure = self._exported(batch)
            with self._changed:
                abandoned = self._closed  # then shutdown has counted this batch
                self._in_flight = 0
                self._changed.notify_all()
            if failure is not None and not abandoned:
                drops.add("span export failed", len(batch), error=failure)

    def _exported(self, batch: list[ReadableSpan]) -> HoldfastError | None:
        try:
            result = self._exporter.export(batch)
        except Exception as error:  # noqa: BLE001  # counted and logged by the caller
            return translated(error)
        return None if result is SpanExportResult.SUCCESS else TransientDependency("the exporter gave up")

    def _next_batch(self) -> list[ReadableSpan] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._changed.wait_for(
                lambda: self._flushing or self._closed or len(self._queue) >= BATCH_SPANS, self._linger_seconds
            )
            if self._closed:
                return None
            batch = [self._queue.popleft() for _ in range(min(BATCH_SPANS, len(self._queue)))]
            self._in_flight = len(batch)
            return batch


class Outlets(SpanProcessor):
    """The pipes that are open now. A provider can be installed only once per process; pipes come and go."""

    def __init__(self) -> None:
        self._pipes: tuple[Pipe, ...] = ()

    @contextmanager
    def feeding(self, pipes: Sequence[Pipe]) -> Iterator[None]:
        """Within the block `pipes` have every span that ends."""
        self._pipes = (*self._pipes, *pipes)
        try:
            yield
        finally:
            self._pipes = tuple(each for each in self._pipes if each not in pipes)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: only ended spans are exported."""

    def on_end(self, span: ReadableSpan) -> None:
        for pipe in self._pipes:
            pipe.on_end(span)


def within(seconds: float, *acts: Callable[[], object]) -> bool:
    """Do `acts` side by side on daemon threads and wait `seconds` for them all. Returns whether they ended in time."""

    def guarded(act: Callable[[], object], ended: Future[None]) -> None:
        with contained("telemetry shutdown"):
            act()
        ended.set_result(None)

    under_way = []
    for act in acts:
        ended: Future[None] = Future()
        threading.Thread(target=guarded, args=(act, ended), name="holdfast-telemetry-end", daemon=True).start()
        under_way.append(ended)
    return not wait(under_way, seconds).not_done
