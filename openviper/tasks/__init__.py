"""Work for other processes: the broker from the setting ``TASKS``, and ``actor`` for what workers run.

Importing this package loads neither Dramatiq nor a broker's client library.
"""

from typing import TYPE_CHECKING, Any

from openviper.conf.imports import import_string
from openviper.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from openviper.tasks.actors import actor
    from openviper.tasks.broker import get_broker

__all__ = ["TaskSettings", "actor", "get_broker"]

_PATHS = {"actor": "openviper.tasks.actors.actor", "get_broker": "openviper.tasks.broker.get_broker"}


def __getattr__(name: str) -> Any:
    if name not in _PATHS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = import_string(_PATHS[name], setting=__name__)
    return value
