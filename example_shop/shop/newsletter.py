"""The newsletter: who reads it, and sending it by the mailer ``bulk``, so that no order's mail waits for it."""

import secrets

from sqlalchemy import delete, func, select

from openviper.core.email import UnsubscribeRequest, send_email
from openviper.db import transaction

from .models import Reader

__all__ = ["count_readers", "join", "leave", "send_newsletter"]


async def join(email: str) -> None:
    """Add a reader; one who reads already stays as they are."""
    async with transaction() as session:
        if await session.scalar(select(Reader.id).where(Reader.email == email)) is None:
            session.add(Reader(email=email, token=secrets.token_urlsafe(16)))


async def leave(request: UnsubscribeRequest) -> None:
    """Remove the reader who follows the link in a newsletter, or whose mailbox provider does."""
    async with transaction() as session:
        await session.execute(delete(Reader).where(Reader.token == request.recipient_id))


async def count_readers() -> int:
    """Return the number of readers."""
    async with transaction() as session:
        return await session.scalar(select(func.count(Reader.id))) or 0


async def send_newsletter(subject: str, text: str) -> int:
    """Send to each reader a message of their own, with a link by which they leave; return how many."""
    async with transaction() as session:
        readers = (await session.scalars(select(Reader).order_by(Reader.id))).all()
        for reader in readers:
            await send_email(
                recipients=reader.email,
                subject=subject,
                template="emails/news.txt",
                context={"text": text},
                mailer="bulk",
                unsubscribe=True,
                recipient_id=reader.token,
            )
    return len(readers)
