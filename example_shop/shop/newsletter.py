"""The newsletter: who reads it, and sending it by the mailer ``bulk``, so that no order's mail waits for it."""

import secrets

from sqlalchemy import delete, func, select

from openviper.core.email import send_email
from openviper.db import transaction

from .models import Reader

__all__ = ["count_readers", "join", "leave", "send_newsletter"]


async def join(email: str) -> None:
    """Add a reader; one who reads already stays as they are."""
    async with transaction() as session:
        if await session.scalar(select(Reader.id).where(Reader.email == email)) is None:
            session.add(Reader(email=email, token=secrets.token_urlsafe(16)))


async def leave(token: str) -> bool:
    """Remove the reader with this token; False if there is none."""
    async with transaction() as session:
        removed = await session.scalars(delete(Reader).where(Reader.token == token).returning(Reader.id))
        return removed.first() is not None


async def count_readers() -> int:
    """Return the number of readers."""
    async with transaction() as session:
        return await session.scalar(select(func.count(Reader.id))) or 0


async def send_newsletter(subject: str, text: str, url: str) -> int:
    """Send to each reader a message of their own, with the page on which they leave below ``url``; return how many."""
    async with transaction() as session:
        readers = (await session.scalars(select(Reader).order_by(Reader.id))).all()
        for reader in readers:
            leave_url = f"{url}/newsletter/leave/{reader.token}"
            await send_email(
                recipients=reader.email,
                subject=subject,
                text=f"{text}\n\nNo more of this: {leave_url}\n",
                headers={"List-Unsubscribe": f"<{leave_url}>"},
                mailer="bulk",
            )
    return len(readers)
