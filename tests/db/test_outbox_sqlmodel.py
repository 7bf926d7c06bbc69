"""SQLModel's sessions and tables with the database outbox: as SQLAlchemy's own."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio

import pytest
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from support.smtpd import SmtpServer

from openviper import db
from openviper.core.email import DeliveryMode, send_email, submit_email
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.settings import EmailSettings
from openviper.db import LifecycleHooks, transaction
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.tables import outbox_table

pytestmark = pytest.mark.usefixtures("database")


class Parcel(LifecycleHooks, SQLModel, table=True):
    __tablename__ = "sqlmodel_parcels"

    id: int | None = Field(default=None, primary_key=True)
    label: str

    async def after_insert(self) -> None:
        await send_email("a@example.test", f"inserted {self.label}", text="From a hook")


async def rows() -> list[str]:
    async with AsyncSession(await db.engine()) as session:
        return sorted(await session.exec(select(outbox_table.c.message_id)))


async def test_sqlmodels_sessions_store_mail_by_their_commit_alone() -> None:
    """Of hooks in a plain session and in ``transaction()``, and of a send in one; while the mail server waits."""
    engine = await db.engine()
    await create_outbox_tables(engine)
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    with SmtpServer() as smtp:
        gate = smtp.hold("MAIL")
        email = smtp.settings(default_sender="shop@example.test", outbox="database", pool_size=1)
        mailer = Mailer(EmailSettings(**email))
        await mailer.open()
        with using_mailer(mailer):
            async with AsyncSession(engine) as session:
                session.add(Parcel(label="plain"))
                await session.flush()
                await session.rollback()
                assert await rows() == []
                session.add(Parcel(label="plain"))
                commit = asyncio.create_task(session.commit())
                await gate.reached()
                assert len(await rows()) == 1
                gate.release()
                await commit
            async with AsyncSession(engine) as session, transaction(session):
                session.add(Parcel(label="held"))
                assert (await submit_email("a@example.test", "sent", text="x")).mode is DeliveryMode.HELD
            with pytest.raises(LookupError):
                async with AsyncSession(engine) as session, transaction(session):
                    session.add(Parcel(label="dropped"))
                    await session.flush()
                    raise LookupError
        await mailer.aclose()
        assert await rows() == []
        subjects = sorted(str(message.parse()["Subject"]) for message in smtp.messages)
        assert subjects == ["inserted held", "inserted plain", "sent"]
