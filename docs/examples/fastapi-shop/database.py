from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from openviper.conf import settings
from openviper.db import prepare_sqlite, transaction
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(
    settings.DATABASE_URL, connect_args={"timeout": 30}
)
prepare_sqlite(engine)  # for SQLite only
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    token: Mapped[str]
    confirmed: Mapped[bool] = mapped_column(default=False)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


async def open_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session, transaction(session):
        yield session


# "function": the commit comes before the response, and a failing one is a 500.
Session = Annotated[AsyncSession, Depends(open_session, scope="function")]
