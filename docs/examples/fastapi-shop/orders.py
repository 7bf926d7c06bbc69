from typing import Annotated

from database import Order, Session
from fastapi import APIRouter, Form, HTTPException, UploadFile
from openviper.core.email import AttachmentRefused, InvalidAddress, send_email
from pydantic import BaseModel

router = APIRouter()


class NewOrder(BaseModel):
    email: str
    quantity: int = 1


@router.post("/orders", status_code=201)
async def place_order(values: NewOrder, session: Session) -> dict[str, int]:
    order = Order(email=values.email)
    session.add(order)
    await session.flush()
    try:
        await send_email(values.email, f"Order {order.id}", text="Thank you!")
    except InvalidAddress as error:
        raise HTTPException(422, f"This address {error.reason}") from error
    if values.quantity > 100:
        raise HTTPException(409, "Sold out")  # rolls back, and nothing is sent
    return {"number": order.id}


@router.post("/orders/{number}/invoice")
async def send_invoice(
    number: int, email: Annotated[str, Form()], invoice: UploadFile
) -> dict[str, str]:
    try:
        await send_email(
            email,
            f"Invoice of order {number}",
            text="It is attached.",
            attachments=[invoice],
        )
    except InvalidAddress as error:
        raise HTTPException(422, f"This address {error.reason}") from error
    except AttachmentRefused as error:
        if error.too_large:
            raise HTTPException(413, "The file is too large") from error
        raise HTTPException(422, "The file cannot be read") from error
    return {"message": "Sent"}
