"""Keep mail in the application's own database until it is delivered: stored with the commit that promises it.

SQLAlchemy is imported at the first use of a name.
"""

from typing import TYPE_CHECKING

from openviper.conf.imports import require
from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from openviper.db.outbox.adding import add
    from openviper.db.outbox.tables import create_outbox_tables, outbox_tables
else:

    def _require_sqlalchemy() -> None:
        for library in ("sqlalchemy", "greenlet"):
            require(library, extra="db", purpose="openviper.db.outbox")

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "add": "openviper.db.outbox.adding",
            "create_outbox_tables": "openviper.db.outbox.tables",
            "outbox_tables": "openviper.db.outbox.tables",
        },
        before=_require_sqlalchemy,
    )

__all__ = ["add", "create_outbox_tables", "outbox_tables"]
