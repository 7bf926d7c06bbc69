"""Keeping mail for the inbox page in a process that serves no page: a worker, a script."""

from collections.abc import Callable

from openviper.core.email.events import subscribe
from openviper.core.email.inbox.folder import Folder
from openviper.core.email.inbox.folderstore import Writer
from openviper.core.email.settings import EmailSettings

__all__ = ["start_recording"]


def start_recording(settings: EmailSettings, *, debug: bool) -> Callable[[], None]:
    """Write what happens to mail into ``inbox_dir``, where the page of another process shows it.

    Returns the function that ends it, which blocks until everything is written; a process that ends without it writes
    what is left all the same. Does nothing without a folder, or where the inbox is off; ``debug`` is the setting
    ``DEBUG``.
    """
    if settings.inbox_dir is None or not settings.inbox_enabled(debug=debug):
        return lambda: None
    writer = Writer(Folder(settings.inbox_dir))
    unsubscribe = subscribe(writer.take)

    def end() -> None:
        unsubscribe()
        writer.thread.shutdown()

    return end
