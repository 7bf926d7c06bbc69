from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from openviper.conf import settings
from openviper.core.email import Email, send_email
from openviper.db import Model, create_tables, transaction
from pydantic import BaseModel
from sqlalchemy.orm import Mapped, mapped_column

settings.configure(
    DEBUG=True,
    DATABASE_URL="sqlite:///shop.sqlite3",
    EMAIL={
        "backend": "MemoryBackend",
        "default_sender": "Shop <orders@shop.example>",
    },
)


class Order(Model):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await create_tables(Order.metadata)
    yield


app = FastAPI(lifespan=lifespan)
Email().attach(app)


class NewOrder(BaseModel):
    email: str


def make_invoice(number: int) -> bytes:
    """Make the PDF with the library of your choice; it may take a while."""
    return b"%PDF-1.7\n% invoice " + str(number).encode()


@app.post("/orders")
async def place_order(values: NewOrder) -> dict[str, int]:
    async with transaction() as session:
        order = Order(email=values.email)
        session.add(order)
        await session.flush()  # gives the order its number
        number = order.id
        await send_email(
            values.email,
            f"Invoice {number}",
            text="Thank you! Your invoice is attached.",
            attachments=[
                # A function is called in a thread: the event loop goes on.
                (f"invoice-{number}.pdf", lambda: make_invoice(number)),
            ],
        )
    return {"number": number}
