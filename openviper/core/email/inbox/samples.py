"""Make sample values for the variables that a template uses."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from openviper.core.email.inbox.template_usage import VariableUse

__all__ = ["MADE_UP", "Sample", "Variable", "build_context", "make_example"]

MADE_UP = "Sample "
"""The beginning of a made-up text for which no name gives a better one."""

_MOMENT = datetime(2026, 1, 15, 9, 30, tzinfo=UTC)
_MAPPING_METHODS = frozenset({"items", "keys", "values", "get"})
_ITEMS = 2
_DEEPEST = 12


class Sample(dict[str, Any]):
    """An object with sample values, which templates read as attributes or as items."""

    def __getattribute__(self, name: str) -> Any:
        # Values hide the methods of dict: ``order.items`` are the ordered items.
        if not name.startswith("__") and name in self:
            return self[name]
        return super().__getattribute__(name)

    def __str__(self) -> str:
        return str(self["name"]) if "name" in self else "a sample"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that a template uses: its path, such as ``order.total``, and whether the sample file has it."""

    path: str
    given: bool


def build_context(uses: Mapping[str, VariableUse], given: Mapping[str, Any]) -> tuple[Sample, list[Variable]]:
    """Return a context from the sample file's values (``given``) and made-up ones, and the list of its variables."""
    variables: list[Variable] = []
    context = Sample({name: _value(use, given.get(name, _MISSING), name, variables) for name, use in uses.items()})
    for name, value in given.items():
        if name not in context:
            context[name] = _from_file(value)
    return context, variables


def make_example(uses: Mapping[str, VariableUse], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return content for a sample file that has every variable."""
    return {name: given[name] if name in given else _plain(use) for name, use in uses.items()}


_MISSING: Any = object()


def _value(use: VariableUse, given: Any, path: str, variables: list[Variable], depth: int = 0) -> Any:
    if use.result is not None and given is _MISSING:
        result = _value(use.result, given, f"{path}()", variables, depth + 1)
        return lambda *_args, **_kwargs: result
    if use.attributes and not _is_text_or_moment(use) and (given is _MISSING or isinstance(given, Mapping)):
        return _object(use, {} if given is _MISSING else given, path, variables, depth)
    if use.element is not None and (given is _MISSING or isinstance(given, list)):
        items = [_MISSING] * _ITEMS if given is _MISSING else given
        seen: list[Variable] = []
        values = [_value(use.element, item, f"{path}[]", seen, depth + 1) for item in items]
        variables.extend(dict.fromkeys(seen) or [Variable(path, given is not _MISSING)])
        return values
    variables.append(Variable(path, given is not _MISSING))
    return _guess(use) if given is _MISSING else _from_file(given)


def _object(use: VariableUse, given: Mapping[str, Any], path: str, variables: list[Variable], depth: int) -> Any:
    if depth > _DEEPEST:
        return "..."
    called = {name for name, part in use.attributes.items() if part.result is not None}
    if called and called <= _MAPPING_METHODS and not given:
        variables.append(Variable(path, given=False))
        return {"first": "Sample", "second": "Sample"}
    made = Sample()
    for name, part in use.attributes.items():
        if name in called and name in _MAPPING_METHODS:
            continue
        made[name] = _value(part, given.get(name, _MISSING), f"{path}.{name}", variables, depth + 1)
    made.update({name: _from_file(value) for name, value in given.items() if name not in made})
    return made


def _from_file(value: Any) -> Any:
    if isinstance(value, dict):
        return Sample({name: _from_file(part) for name, part in value.items()})
    return [_from_file(part) for part in value] if isinstance(value, list) else value


def _plain(use: VariableUse, depth: int = 0) -> Any:
    """Return a made-up value that JSON can express."""
    if use.attributes and not _is_text_or_moment(use) and depth < _DEEPEST:
        parts = {name: part for name, part in use.attributes.items() if part.result is None}
        return {name: _plain(part, depth + 1) for name, part in parts.items()}
    if use.element is not None:
        return [_plain(use.element, depth + 1)]
    value = _guess(use)
    return value.isoformat() if isinstance(value, datetime) else value


def _is_text_or_moment(use: VariableUse) -> bool:
    return _is_a(str, use) or _is_a(datetime, use)


def _is_a(kind: type, use: VariableUse) -> bool:
    """True if ``kind`` has all attributes that are read, and its methods are called."""
    return all(
        hasattr(kind, name) and callable(getattr(kind, name)) == (part.result is not None)
        for name, part in use.attributes.items()
    )


def _guess(use: VariableUse) -> Any:
    """Return a value that suits the variable's use, or else its name."""
    name = use.name.lower()
    if use.equal_to is not None:
        return use.equal_to
    if use.attributes and not _is_a(str, use):
        return _MOMENT
    if name in _FEW or name.endswith("_count"):
        return 2
    if use.number:
        return 42
    if name in ("id", "number") or name.endswith(("_id", "_number")):
        return 1042
    if name == "name" and use.item_of:
        return f"Sample {use.item_of.replace('_', ' ')}"
    if name.startswith(("is_", "has_", "can_", "show_")):
        return True
    for endings, value in _BY_NAME:
        if name.endswith(endings):
            return value
    return f"{MADE_UP}{name.replace('_', ' ')}"


_FEW = frozenset({"count", "quantity", "qty", "days", "hours", "minutes"})
_BY_NAME: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("email", "mail"), "ana@example.com"),
    (("url", "link", "href", "uri"), "https://example.com/sample"),
    (("first_name", "firstname"), "Ana"),
    (("last_name", "surname"), "Costa"),
    (("site_name", "company", "shop_name"), "Example Shop"),
    (("customer", "user", "name", "recipient"), "Ana Costa"),
    (("date", "_at", "_on", "deadline", "expires"), "15 January 2026"),
    (("address",), "Rua Augusta 12, Lisboa"),
    (("phone", "tel"), "+351 21 000 00 00"),
    (("code", "token", "pin"), "493817"),
    (("price", "amount", "total", "sum", "cost"), "42.00"),
)
