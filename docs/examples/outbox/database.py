from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from openviper.db import engine, outbox_tables, transaction
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


outbox_tables(Base.metadata)  # so that Alembic knows them


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


async def open_session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(await engine()) as session, transaction(session):
        yield session


# "function": the commit comes before the response, and a failing one is a 500.
Session = Annotated[AsyncSession, Depends(open_session, scope="function")]
