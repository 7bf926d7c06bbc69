"""Import the names of a package at their first use."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, names: Mapping[str, str], *, before: Callable[[], object] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package that imports ``names`` at their first use (PEP 562).

    ``package`` is its ``__name__``; ``names`` maps each name to the module that defines it. ``before`` is called before
    such a module is imported, for example to say which extra it needs. Type checkers read the ``TYPE_CHECKING`` branch
    beside it, which keeps an unknown name an error for them::

        if TYPE_CHECKING:
            from shop.orders import Order
        else:
            __getattr__, __dir__ = lazy_names(__name__, {"Order": "shop.orders"})
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if before is not None:
            before()
        value = getattr(import_module(names[name]), name)
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, listed
