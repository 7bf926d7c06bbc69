"""Every public error survives pickle, copy and a process pool."""

import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from support.messages import outgoing
from support.raising import raise_chained

import openviper
from openviper.conf.checked import Conflict
from openviper.core.email import DeliveryError, Refusal, parse_address
from openviper.core.email.message import OutgoingMessage
from openviper.exceptions import OpenViperError

# Arguments by the annotation of a parameter, so that a new error is tested without a line here.
SAMPLES: dict[Any, Any] = {
    str: "orders.csv",
    bool: True,
    int: 452,
    float: 1_796_000_000.0,
    Conflict: Conflict("use_ssl", "both are True; keep one", excludes="use_tls"),
    OutgoingMessage: outgoing(),
    DeliveryError: DeliveryError("10.0.0.1: RCPT TO: 452 full", temporary=True, code=452),
}
CONTAINERS: dict[Any, Any] = {
    Mapping: {"b@example.com": Refusal(452, "cut", uncertain=True), "c@example.com": Refusal(550, "gone")},
    tuple: (),
}


def public_errors() -> list[type[Exception]]:
    """Every exception that a public module of the package lists in ``__all__``."""
    found: set[type[Exception]] = set()
    for module in pkgutil.walk_packages(openviper.__path__, "openviper."):
        loaded = importlib.import_module(module.name)
        values = [getattr(loaded, name) for name in getattr(loaded, "__all__", ())]
        found.update(
            value
            for value in values
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__.startswith("openviper.")
        )
    return sorted(found, key=lambda error: error.__qualname__)


def sample(annotation: Any) -> Any:
    """A value for a parameter of that type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) is Sequence:
        return (sample(get_args(annotation)[0]),)
    if get_origin(annotation) in CONTAINERS:
        return CONTAINERS[get_origin(annotation)]
    kinds = [kind for kind in (annotation, *get_args(annotation)) if kind in SAMPLES]
    assert kinds, f"give SAMPLES a value for {annotation}"
    return SAMPLES[kinds[0]]


def build(cls: type[Exception]) -> Exception:
    """One of ``cls``, with a value for every parameter of its ``__init__`` and a note."""
    init: Callable[..., None] = cls.__init__
    own = next(base for base in cls.__mro__ if "__init__" in vars(base))
    if own.__module__ == "builtins":
        error = cls("what happened", name="redis") if issubclass(cls, ImportError) else cls("what happened")
    else:
        hints = get_type_hints(init)
        positional, named = [], {}
        for parameter in list(inspect.signature(init).parameters.values())[1:]:
            value = sample(hints[parameter.name])
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            else:
                positional.append(value)
        error = cls(*positional, **named)
    if isinstance(error, DeliveryError):
        error.refused = dict(CONTAINERS[Mapping])  # set after __init__ where the recipients differ
    error.add_note("seen by the test")
    return error


def same(one: BaseException, other: BaseException) -> bool:
    """True when type, text, arguments and attributes are equal; errors among them are compared alike."""
    fields, others = attributes(one), attributes(other)
    if type(one) is not type(other) or fields.keys() != others.keys():
        return False
    return all(
        same(value, others[name]) if isinstance(value, BaseException) else value == others[name]
        for name, value in fields.items()
    )


def attributes(error: BaseException) -> dict[str, Any]:
    builtin = {name: getattr(error, name) for name in ("name", "path", "msg", "errno") if hasattr(error, name)}
    return {"text": str(error), "repr": repr(error), "args": error.args, **builtin, **vars(error)}


def test_the_walk_finds_the_errors_of_every_part() -> None:
    """A walk that found nothing would pass everything."""
    names = {error.__name__ for error in public_errors()}
    assert {"DeliveryError", "DatabaseMisuse", "MissingDependency", "DamagedPayload", "WireFailure"} <= names
    assert {error for error in public_errors() if issubclass(error, OpenViperError)} > {DeliveryError, OpenViperError}


@pytest.mark.parametrize("cls", public_errors(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "passed_on",
    [
        *(lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, 6)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle-2", "pickle-3", "pickle-4", "pickle-5", "copy", "deepcopy"],
)
def test_every_error_is_passed_on_whole(cls: type[Exception], passed_on: Callable[[Exception], Exception]) -> None:
    error = build(cls)
    try:
        raise_chained(error)
    except cls as caught:
        received = passed_on(caught)
    assert received is not error
    assert same(received, error), (attributes(received), attributes(error))
    assert same(passed_on(received), error), "passed on a second time"


def test_every_error_leaves_a_process_pool() -> None:
    """The pool is usable afterwards; an error that cannot be rebuilt breaks it for all."""
    errors = [build(cls) for cls in public_errors()]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for error in errors:
            received = pool.submit(raise_chained, error).exception()
            assert received is not None
            assert same(received, error), (attributes(received), attributes(error))
        refused = pool.submit(parse_address, "nobody", field="to").exception()
    assert str(refused) == "to: 'nobody' has no '@'"


def test_an_error_of_a_subclass_outside_the_package_survives() -> None:
    """A backend of an application may define its own."""
    received = pickle.loads(pickle.dumps(OutOfCredit("no credit left", balance=-3)))
    assert (str(received), received.balance, received.temporary) == ("no credit left", -3, True)


class OutOfCredit(DeliveryError):
    """As an application defines it."""

    def __init__(self, message: str, *, balance: int) -> None:
        super().__init__(message, temporary=True)
        self.balance = balance
