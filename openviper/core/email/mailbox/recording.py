"""Keeping mail for the inbox page in a process that serves no page: a worker, a script."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from openviper.core.email.mailbox.folder import FolderStore
from openviper.core.email.settings import EmailSettings

__all__ = ["recording"]


@asynccontextmanager
async def recording(settings: EmailSettings, *, debug: bool) -> AsyncIterator[None]:
    """Write what happens to mail in a block into ``inbox_dir``, where the page of another process shows it.

    Does nothing without a folder, or while the inbox is off; ``debug`` is the setting ``DEBUG``.
    """
    if settings.inbox_dir is None or not settings.inbox_enabled(debug=debug):
        yield
        return
    store = FolderStore(settings.inbox_dir)
    unfollow = store.follow()
    try:
        yield
    finally:
        unfollow()
        await store.aclose()
