"""Hold the tracer of this process: a global that is None while nothing is traced, so that asking costs one comparison.

Nothing here imports OpenTelemetry; ``openviper.otel`` does, and sets ``tracer``.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

__all__ = ["Kind", "Span", "Tracer", "Value"]

Kind = Literal["internal", "client", "producer", "consumer"]
Value = str | int | bool | Sequence[str]


class Span(Protocol):
    """A span that has begun. As a context manager it is the current one for a block, and ends with it.

    An exception that leaves the block marks it as failed, by the name of its class, unless ``fail`` was called.
    """

    def set(self, name: str, value: Value) -> None:
        """Set an attribute."""

    def fail(self, error_type: str, description: str = "") -> None:
        """Mark it as failed, with ``error.type``; ``description`` must not show an address."""

    def context(self) -> dict[str, str]:
        """Return its context as W3C headers; empty if it is not recorded anywhere."""

    def end(self) -> None:
        """End it, where it was no block's."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """Begins spans. Contexts are W3C headers (``traceparent``, ``tracestate``), as they travel with a message."""

    def context(self) -> dict[str, str]:
        """Return the current span's context; empty without one."""

    def start(
        self,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Value],
        *,
        parent: Mapping[str, str] | None = None,
        links: Iterable[Mapping[str, str]] = (),
        root: bool = False,
    ) -> Span:
        """Begin a span below ``parent``, or without one below the current span; ``root`` begins a trace of its own."""

    def flush(self, timeout: float) -> None:
        """Export the spans that have ended, within ``timeout`` seconds; blocks."""


tracer: Tracer | None = None
"""The tracer; None: tracing is off."""
