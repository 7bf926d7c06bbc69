"""Run work in other processes: the broker of the setting ``TASKS``, and ``actor`` for functions that workers run.

Importing this package loads neither Dramatiq nor a broker's client library.
"""

from typing import TYPE_CHECKING

from openviper.lazy import lazy_names
from openviper.tasks.runner import check_modules
from openviper.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from openviper.tasks.actors import actor
    from openviper.tasks.broker import get_broker
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"actor": "openviper.tasks.actors", "get_broker": "openviper.tasks.broker"}
    )

__all__ = ["TaskSettings", "actor", "get_broker"]

check_modules()
