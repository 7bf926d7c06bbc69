"""Previews in code: functions that return the arguments of a send, for the inbox page and for lint."""

import asyncio
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from openviper.core.email.delivery import Mailer
from openviper.core.email.delivery.rollback import rolled_back
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import PreparedMessage, SendCancelled
from openviper.core.email.sending.compose import compose
from openviper.core.email.sending.single import submit_email
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown, suggestion

__all__ = ["CodePreview", "PreviewedMail", "load_previews", "preview", "render_preview"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__openviper_preview__"
_SETTING = 'EMAIL["mails"]'
# Arguments that say how and when a message is delivered, not what it is.
_DELIVERY = frozenset({"fail_silently", "background", "send_at", "delay", "expires_at", "timeout", "key"})
_KNOWN = tuple(inspect.signature(submit_email).parameters)


@dataclass(frozen=True, slots=True)
class CodePreview:
    """A function marked with ``preview``.

    ``name`` is dotted: its module and its own. ``values`` are its parameters with their defaults; ``variants`` are
    names with the values that differ from these; ``about`` is the first line of its docstring, or empty.
    """

    name: str
    about: str
    function: Callable[..., Any]
    values: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class PreviewedMail:
    """A preview's message as it would be sent; ``template`` is the template's name or None.

    ``cancelled`` is the reason for which ``before_send`` would cancel it, or None.
    """

    message: PreparedMessage
    template: str | None
    cancelled: str | None


@overload
def preview(function: F, /) -> F: ...


@overload
def preview(*, variants: Mapping[str, Mapping[str, Any]]) -> Callable[[F], F]: ...


def preview(
    function: Callable[..., Any] | None = None, /, *, variants: Mapping[str, Mapping[str, Any]] | None = None
) -> Any:
    """Mark a function that returns the arguments of :func:`send_email` as a dict; the inbox page shows the message.

    The function is async or plain, is in a module that ``EMAIL["mails"]`` names, and has a default for each parameter.
    Parameters that are texts, numbers or bools can be edited on the page. ``variants`` maps names to values for some of
    the parameters, such as ``{"long name": {"name": "..."}}``. The function is returned unchanged. It is called, and
    the message is rendered, in a transaction that is then rolled back.

    Raises:
        TypeError: ``function`` is not a function.
    """

    def mark(marked: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.isfunction(marked):
            raise TypeError(f"preview: must mark a function, not {shown(marked)}")
        setattr(marked, _MARK, {} if variants is None else variants)
        return marked

    return mark if function is None else mark(function)


def load_previews(modules: Iterable[str]) -> list[CodePreview]:
    """Import ``modules`` and return their previews in the order of definition. Reads files: use a thread.

    Raises:
        ImproperlyConfigured: there is no such module, or a preview's parameters or variants are wrong. Errors of a
            module's own code propagate unchanged.
    """
    found: dict[str, CodePreview] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ImproperlyConfigured(f"{_SETTING}: there is no module {shown(name)}; correct the path") from None
        for value in tuple(vars(module).values()):
            if inspect.isfunction(value) and hasattr(value, _MARK):
                one = _describe(value)
                found[one.name] = one
    return list(found.values())


def _describe(function: Callable[..., Any]) -> CodePreview:
    name = f"{function.__module__}.{function.__qualname__}"
    parameters = inspect.signature(function).parameters
    variants: Any = getattr(function, _MARK)
    for parameter in parameters.values():
        if parameter.default is parameter.empty:
            raise ImproperlyConfigured(f"preview {name}: parameter {shown(parameter.name)} needs a default")
    if not isinstance(variants, Mapping) or not all(isinstance(changes, Mapping) for changes in variants.values()):
        raise ImproperlyConfigured(
            f'preview {name}: variants must be dicts of values by name, such as {{"long name": {{"name": "..."}}}}'
        )
    for variant, changes in variants.items():
        for unknown in changes.keys() - parameters.keys():
            near = suggestion(unknown, parameters, otherwise="add the parameter")
            raise ImproperlyConfigured(f"preview {name}: variant {shown(variant)} has {shown(unknown)}{near}")
    about = (inspect.getdoc(function) or "").partition("\n")[0]
    values = {each.name: each.default for each in parameters.values()}
    return CodePreview(name, about, function, values, variants)


async def render_preview(mailer: Mailer, shown_preview: CodePreview, values: Mapping[str, Any]) -> PreviewedMail:
    """Call a preview's function with ``values``, and prepare its message as a send would; nothing is sent.

    Raises:
        InvalidMessage: the function does not return the arguments of a send, or they cannot be sent as given.
        ImproperlyConfigured: a setting is missing or wrong.
        Exception: whatever the function raises.
    """
    function = shown_preview.function
    async with rolled_back():
        if inspect.iscoroutinefunction(function):
            given = await function(**values)
        else:
            given = await asyncio.to_thread(function, **values)
        arguments = _check(shown_preview.name, given)
        cancelled = None
        try:
            outgoing = await compose(mailer, **arguments, recipients_required=False)
        except SendCancelled as error:
            outgoing, cancelled = error.message, error.reason
    return PreviewedMail(outgoing.prepared, arguments.get("template"), cancelled)


def _check(name: str, given: object) -> dict[str, Any]:
    """Return the arguments that make the message."""
    if not isinstance(given, Mapping):
        raise InvalidMessage(
            f"preview {name}: must return the arguments of send_email() as a dict, not {type(given).__name__}"
        )
    for argument in given:
        if argument not in _KNOWN:
            near = suggestion(argument, _KNOWN, otherwise="return what send_email() takes")
            raise InvalidMessage(f"preview {name}: send_email() has no argument {shown(argument)}{near}")
    return {"recipients": (), **{key: value for key, value in given.items() if key not in _DELIVERY}}
