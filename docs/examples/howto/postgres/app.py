from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI
from openviper.core.email import Email, send_email
from openviper.db import Model, create_tables, outbox_tables, transaction
from pydantic import BaseModel
from sqlalchemy.orm import Mapped, mapped_column


class Order(Model):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


outbox_tables(Order.metadata)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await create_tables(Order.metadata)  # or your migrations
    yield


app = FastAPI(lifespan=lifespan)
Email().attach(app)


class NewOrder(BaseModel):
    email: str


@app.post("/orders", status_code=201)
async def place_order(values: NewOrder) -> dict[str, int]:
    async with transaction() as session:
        order = Order(email=values.email)
        session.add(order)
        await session.flush()
        await send_email(order.email, f"Order {order.id}", text="Thank you!")
        await send_email(
            order.email,
            "Are you happy with it?",
            text="Write us a line.",
            delay=timedelta(days=7),
        )
    return {"number": order.id}
