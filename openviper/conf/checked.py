"""Validate a setting as one frozen pydantic model; one error lists every fault and where its value was given."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic.functional_validators import ModelWrapValidatorHandler

from openviper.conf.sources import Given, Source, kinds
from openviper.exceptions import ImproperlyConfigured, PicklableError

__all__ = ["CheckedSettings", "Conflict", "Conflicts", "collect", "load_settings", "report_faults"]


class CheckedSettings(BaseModel):
    """Base of a setting's model: frozen, strict, and ``repr`` shows only what differs from the defaults.

    Each field has a :class:`~openviper.conf.kinds.SettingKind` in its ``Annotated`` type. The model's last validator
    (``mode="wrap"``) calls :func:`report_faults`, ``load()`` calls :func:`load_settings`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    setting_name: ClassVar[str]
    names_elsewhere: ClassVar[Mapping[str, str]] = {}
    """What other libraries call a field, in lower case, for suggestions."""

    @classmethod
    def add_implied(cls, given: Given, source: Source) -> None:
        """Add what values of ``source`` imply, such as the parts of a URL; the source's own values replace them."""

    @classmethod
    def read_nested(cls, given: Given) -> None:
        """Replace values that are settings themselves by their models; the faults found are added to ``given``."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        fields = type(self).model_fields
        return ((name, value) for name, value in super().__repr_args__() if value != fields[name or ""].default)


Settings = TypeVar("Settings", bound=CheckedSettings)


class Conflict(NamedTuple):
    """Values that are valid each by itself, but not together.

    The fault is reported at ``field``. ``excludes`` is the other field of two that exclude each other; ``text`` ends
    the line. A conflict is left out if ``field``, ``excludes`` or a field of ``depends_on`` is itself faulty.
    """

    field: str
    text: str
    excludes: str | None = None
    depends_on: frozenset[str] = frozenset()

    def line(self, given: Given) -> str:
        """Return the line of the error."""
        excludes = "" if self.excludes is None else f"excludes {given.path(self.excludes)}, and "
        return f"{given.path(self.field)}: {excludes}{self.text}"

    def concerns(self, names: frozenset[str]) -> bool:
        """Return True if the conflict depends on one of these fields."""
        return not names.isdisjoint({self.field, self.excludes, *self.depends_on})


class Conflicts(PicklableError, ValueError):
    """Conflicts of one model; raised by its validator (``mode="after"``)."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        super().__init__("; ".join(f"{conflict.field}: {conflict.text}" for conflict in conflicts))
        self.conflicts = conflicts


def collect(model: type[CheckedSettings], *sources: Source) -> Given:
    """Merge the sources, given in order of precedence."""
    given = Given(model, model.setting_name)
    for source in reversed(sources):
        model.add_implied(given, source)
        given.add(source)
    return given


def load_settings(model: type[Settings], *sources: Source, misplaced: Iterable[str] = ()) -> Settings:
    """Validate the values of all sources, given in order of precedence.

    ``misplaced`` are faults found before: values that were given where no source reads them.

    Raises:
        ImproperlyConfigured: lists every fault on a separate line, which begins with the place where the value was
            given.
    """
    given = collect(model, *sources)
    given.faults.extend(misplaced)
    try:
        return model.model_validate(given.values, context=given)
    except ImproperlyConfigured as error:
        # Leave out pydantic's frames, which say nothing about the settings.
        raise error.with_traceback(None) from None


def report_faults(
    model: type[Settings], values: Any, handler: ModelWrapValidatorHandler[Settings], info: ValidationInfo
) -> Settings:
    """Validate ``values`` and translate pydantic's errors; the last validator of a model (``mode="wrap"``) calls it.

    Values that do not come from :func:`load_settings` are named as keyword arguments of the model.

    Raises:
        ImproperlyConfigured: lists every fault on a line of its own.
    """
    if isinstance(values, model):
        return values
    given = info.context
    if not isinstance(given, Given):
        given = collect(model, Source.keywords(model.__name__, values))
    model.read_nested(given)
    settings, faults = _validate(handler, given.values)
    if settings is not None and not given.faults:
        return settings
    if faulty := frozenset(fault["loc"][0] for fault in faults if fault["loc"]):
        # pydantic checks combinations only if every field is valid: check those of the valid fields as well.
        rest = {name: value for name, value in given.values.items() if name not in faulty}
        faults += [fault for fault in _validate(handler, rest)[1] if not fault["loc"]]
    lines = [*given.faults, *(line for fault in faults for line in _lines(fault, given, faulty))]
    raise ImproperlyConfigured("\n".join(dict.fromkeys(lines)))  # each branch of a union has a fault of its own


def _validate(
    handler: ModelWrapValidatorHandler[Settings], values: Mapping[str, Any]
) -> tuple[Settings | None, list[Any]]:
    try:
        return handler(values), []
    except ValidationError as error:
        return None, error.errors(include_input=False, include_url=False)


def _lines(fault: Mapping[str, Any], given: Given, faulty: frozenset[Any]) -> Iterator[str]:
    """Yield the lines of our error for one of pydantic's errors."""
    reason = fault["ctx"]["error"] if fault["type"] == "value_error" else None
    if fault["loc"]:
        name = fault["loc"][0]
        kind = kinds(given.model)[name]
        if fault["type"] == "missing":
            yield f"{given.path(name)}: is missing; give {kind.allowed}"
        else:
            value = kind.show(given.values[name])
            yield f"{given.path(name)}: {value} {reason or 'is not allowed'}; give {kind.allowed}"
    elif isinstance(reason, Conflicts):
        yield from (conflict.line(given) for conflict in reason.conflicts if not conflict.concerns(faulty))
    else:
        yield f"{given.setting}: {reason or fault['msg']}"
