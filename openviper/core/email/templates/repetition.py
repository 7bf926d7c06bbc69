"""Refuse what a template would repeat too often, before it is made."""

import re
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import wraps
from string import Formatter
from typing import Any

from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter

__all__ = ["BoundedEscapeFormatter", "BoundedFormatter", "bound_builtins", "bounded_arguments", "check_operator"]

_MOST = 1_000_000  # characters or items
_WORD = 8  # characters of a word of lipsum(), with its space
_REPEATABLE = (str, bytes, bytearray, list, tuple)
# printf-style: a key, flags, the width, the precision and the conversion.
_CONVERSION = re.compile(
    r"%(?:\([^()]*+(?:\([^()]*+\)[^()]*+)*+\))?+[#0\- +]*+(\*|\d++)?+(?:\.(\*|\d++))?+[hlL]?+(.)", re.DOTALL
)
_NUMBER = re.compile(r"\d+")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Check the operands of ``*`` and ``%``.

    Raises:
        SecurityError: the result has more than a million characters or items.
    """
    if operator == "%":
        if isinstance(left, str | bytes | bytearray):
            _check("%", _printf(left, right))
        return
    for repeated, count in ((left, right), (right, left)):
        if isinstance(repeated, _REPEATABLE) and isinstance(count, int):
            _check("*", _extent(repeated) * count)


def bounded_arguments(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Check the call of a method of str, bytes or int, and return its positional arguments.

    Raises:
        SecurityError: the result has more than a million characters or items.
    """
    owner = getattr(function, "__self__", None)
    if not isinstance(owner, str | bytes | bytearray | int):
        return args
    name = getattr(function, "__name__", "")
    cost = _METHODS.get(name)
    if cost is None:
        return args
    if name == "join" and args:
        args = (_as_sized(args[0]), *args[1:])
    _check(name, _cost(cost, (owner, *args), kwargs))
    return args


def bound_builtins(filters: dict[str, Any], global_values: dict[str, Any]) -> None:
    """Replace Jinja's own filters and functions that repeat something by ones that check first."""
    for name, cost in _FILTERS.items():
        if filters.get(name) is FILTERS[name]:
            filters[name] = _bounded(name, filters[name], cost)
    if global_values.get("lipsum") is DEFAULT_NAMESPACE["lipsum"]:
        global_values["lipsum"] = _bounded("lipsum", global_values["lipsum"], _of_lipsum)


class _Bounded(Formatter):
    """Adds up the widths and precisions of one ``str.format``."""

    _total = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._total += sum(map(_number, _NUMBER.findall(format_spec)))
        _check("format", self._total)
        return super().format_field(value, format_spec)


class BoundedFormatter(_Bounded, SandboxedFormatter):
    """The sandbox's formatter, which refuses huge widths."""


class BoundedEscapeFormatter(_Bounded, SandboxedEscapeFormatter):
    """The sandbox's formatter for Markup, which refuses huge widths."""


def _bounded(name: str, function: Callable[..., Any], cost: Callable[..., int]) -> Callable[..., Any]:
    takes_context = hasattr(function, "jinja_pass_arg")  # as its first argument; ``wraps`` keeps the mark

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        leading, given = args[:takes_context], args[takes_context:]
        if name == "join" and given:
            given = (_as_sized(given[0]), *given[1:])
        _check(name, _cost(cost, given, kwargs))
        return function(*leading, *given, **kwargs)

    return checked


def _check(name: str, count: int) -> None:
    if count > _MOST:
        raise SecurityError(f"{name}: a repetition makes more than {_MOST} characters or items")


def _cost(cost: Callable[..., int], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    try:
        return cost(*args, **kwargs)
    except TypeError:
        return 0  # wrong arguments, which the function itself describes better


def _extent(value: Any, depth: int = 4) -> int:
    """Return the characters of a text, or the items and their characters of a list, as deep as ``depth`` lists."""
    if isinstance(value, list | tuple) and depth:
        return sum(max(1, _extent(item, depth - 1)) for item in value)
    return len(value) if isinstance(value, _REPEATABLE) else 1


def _as_sized(items: Any) -> Any:
    return list(items) if isinstance(items, Iterable) and not isinstance(items, Sized) else items


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 12 else _MOST + 1


def _printf(text: str | bytes | bytearray, values: Any) -> int:
    if isinstance(text, bytes | bytearray):
        text = text.decode("latin-1")
    total = 0
    remaining = iter(values if isinstance(values, tuple) else (values,))
    for width, precision, conversion in _CONVERSION.findall(text):
        for number in (width, precision):
            if number == "*":
                given = next(remaining, 0)
                total += abs(given) if isinstance(given, int) else 0
            elif number:
                total += _number(number)
        if conversion == "(":
            return _MOST + 1  # a key with more parentheses than are read here
        if conversion != "%":
            next(remaining, None)
    return total


def _to_width(_text: Any, width: Any = 80, _fill: Any = None) -> int:
    return width if isinstance(width, int) else 0


def _expandtabs(text: Any, tabsize: Any = 8) -> int:
    return int(text.count("\t" if isinstance(text, str) else b"\t") * tabsize)


def _replace(text: Any, old: Any, new: Any, count: Any = None) -> int:
    if not isinstance(text, str | bytes | bytearray):
        text, old, new = str(text), str(old), str(new)
    found = text.count(old)
    return int(found if count is None or count < 0 else min(found, count)) * len(new)


def _join(separator: Any, items: Any) -> int:
    return len(separator) * len(items)


def _translate(text: Any, table: Any, **_options: Any) -> int:
    if not isinstance(text, str) or not isinstance(table, Mapping):
        return 0
    return len(text) * max((len(new) for new in table.values() if isinstance(new, str)), default=0)


def _to_bytes(_integer: Any, length: Any = 1, *_byteorder: Any, **_options: Any) -> int:
    return int(length)


def _indent(text: Any, width: Any = 4, _first: Any = False, _blank: Any = False, **_options: Any) -> int:
    return (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(width))


def _pieces(_items: Any, linecount: Any = 0, _fill: Any = None, *, slices: Any = 0, **_options: Any) -> int:
    return int(linecount or slices)


def _format_filter(text: Any, *args: Any, **kwargs: Any) -> int:
    return _printf(str(text), kwargs or args)


def _replace_filter(s: Any, old: Any, new: Any, count: Any = None) -> int:
    return _replace(str(s), str(old), str(new), count)


def _join_filter(value: Any, d: Any = "", _attribute: Any = None, **_options: Any) -> int:
    return len(value) * len(str(d))


def _wordwrap(s: Any, width: Any = 79, _break: Any = True, wrapstring: Any = None, *_more: Any, **_options: Any) -> int:
    text = str(s)
    lines = text.count("\n") + 1 + 2 * len(text) // max(1, int(width))
    return lines * len(str(wrapstring or "\n"))


def _tojson(value: Any, indent: Any = None) -> int:
    width = indent if isinstance(indent, int) else len(indent or "")
    return int(width) * _depths(value, 1) if width else 0


def _depths(value: Any, depth: int) -> int:
    """Return how often an indentation is written for ``value`` in JSON."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return depth + sum(depth + _depths(item, depth + 1) for item in value)


def _of_lipsum(n: Any = 5, _html: Any = True, _min: Any = 20, max: Any = 100, **_options: Any) -> int:  # noqa: A002
    return int(n * max * _WORD)


_METHODS: dict[str, Callable[..., int]] = {
    "ljust": _to_width,
    "rjust": _to_width,
    "center": _to_width,
    "zfill": _to_width,
    "expandtabs": _expandtabs,
    "replace": _replace,
    "join": _join,
    "translate": _translate,
    "to_bytes": _to_bytes,
}
_FILTERS: dict[str, Callable[..., int]] = {
    "batch": _pieces,
    "center": _to_width,
    "format": _format_filter,
    "indent": _indent,
    "join": _join_filter,
    "replace": _replace_filter,
    "slice": _pieces,
    "tojson": _tojson,
    "wordwrap": _wordwrap,
}
