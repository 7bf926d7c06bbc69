import os

from fastapi import FastAPI, HTTPException
from openviper.conf import settings
from openviper.core.email import Email, InvalidAddress, send_email
from pydantic import BaseModel

DEBUG = os.environ.get("DEBUG") == "1"
settings.configure(
    DEBUG=DEBUG,
    EMAIL={
        "backend": "MemoryBackend" if DEBUG else "SMTPBackend",
        "default_sender": "Viper Supplies <orders@shop.example>",
    },
)

app = FastAPI()
Email().attach(app)


class Order(BaseModel):
    email: str
    product: str


@app.post("/orders")
async def order(order: Order) -> dict[str, int]:
    try:
        text = f"Thank you! We are packing: {order.product}."
        await send_email(order.email, "Your order 1001", text=text)
    except InvalidAddress as error:
        raise HTTPException(422, f"This address {error.reason}") from error
    return {"number": 1001}
