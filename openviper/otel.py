"""Trace sent mail with OpenTelemetry (extra ``otel``); the spans and attributes are in the documentation."""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from openviper import tracing
from openviper.conf.imports import require

require("opentelemetry", extra="otel", purpose="openviper.otel")

from opentelemetry import context as contexts  # noqa: E402 - the line above says which extra is missing
from opentelemetry import trace  # noqa: E402
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: E402

if TYPE_CHECKING:
    from contextvars import Token

__all__ = ["EmailInstrumentor", "instrument", "uninstrument"]

_KINDS: dict[tracing.Kind, trace.SpanKind] = {
    "internal": trace.SpanKind.INTERNAL,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}
try:  # at import: it reads files
    _VERSION: str | None = version("openviper-email")
except PackageNotFoundError:  # run from a source tree
    _VERSION = None
# Not the process's propagators: baggage may hold what must not be stored with a message.
_propagator = TraceContextTextMapPropagator()


def instrument(tracer_provider: trace.TracerProvider | None = None) -> None:
    """Trace the mail of this process from now on; if called again, the last provider given is used.

    Call it in every process that sends or delivers mail: in a module that all import, such as the settings module.

    Args:
        tracer_provider: Provider that gets the spans; None is OpenTelemetry's global provider, which may also be set
            later.
    """
    tracing.tracer = _Tracer(tracer_provider)


def uninstrument() -> None:
    """Stop tracing mail in this process; spans that have begun still end."""
    tracing.tracer = None


class EmailInstrumentor:
    """The entry point by which ``opentelemetry-instrument`` switches tracing on."""

    def instrument(self, *, tracer_provider: trace.TracerProvider | None = None, **_options: Any) -> None:
        """Do as :func:`instrument`; other options are ignored."""
        instrument(tracer_provider)

    def uninstrument(self, **_options: Any) -> None:
        """Do as :func:`uninstrument`."""
        uninstrument()


class _Tracer:
    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("openviper.email", _VERSION, provider)

    def context(self) -> dict[str, str]:
        return _headers(None)

    def start(
        self,
        name: str,
        kind: tracing.Kind,
        attributes: Mapping[str, tracing.Value],
        *,
        parent: Mapping[str, str] | None = None,
        links: Iterable[Mapping[str, str]] = (),
        root: bool = False,
    ) -> "_Span":
        context = None
        if parent or root:
            context = _propagator.extract(parent or {}, contexts.Context())
        linked = [trace.Link(_span_context(link)) for link in links]
        return _Span(self._tracer.start_span(name, context, _KINDS[kind], attributes, linked))

    def flush(self, timeout: float) -> None:
        provider = self._provider or trace.get_tracer_provider()
        force_flush = getattr(provider, "force_flush", None)  # the SDK's, of which the API knows nothing
        if force_flush is not None:
            force_flush(int(timeout * 1000))


class _Span:
    __slots__ = ("_failed", "_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._failed = False
        self._token: Token[contexts.Context] | None = None

    def set(self, name: str, value: tracing.Value) -> None:
        self._span.set_attribute(name, value)

    def fail(self, error_type: str, description: str = "") -> None:
        self._failed = True
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(trace.Status(trace.StatusCode.ERROR, description or None))

    def context(self) -> dict[str, str]:
        return _headers(trace.set_span_in_context(self._span, contexts.Context()))

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> Self:
        self._token = contexts.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None and not self._failed:  # without its text, which may show an address
            self.fail(exc_type.__name__)
        if self._token is not None:
            contexts.detach(self._token)
        self._span.end()


def _headers(context: contexts.Context | None) -> dict[str, str]:
    headers: dict[str, str] = {}
    _propagator.inject(headers, context)
    return headers


def _span_context(headers: Mapping[str, str]) -> trace.SpanContext:
    return trace.get_current_span(_propagator.extract(headers, contexts.Context())).get_span_context()
