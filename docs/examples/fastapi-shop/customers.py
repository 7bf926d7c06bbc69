import secrets

from database import Customer, Session
from fastapi import APIRouter, HTTPException
from openviper.conf import settings
from openviper.core.email import InvalidAddress, send_email
from pydantic import BaseModel
from sqlalchemy import select

router = APIRouter()


class SignUp(BaseModel):
    email: str


@router.post("/signup", status_code=201)
async def sign_up(values: SignUp, session: Session) -> dict[str, str]:
    customer = Customer(email=values.email, token=secrets.token_urlsafe(32))
    session.add(customer)
    link = f"{settings.PUBLIC_URL}/confirm/{customer.token}"
    try:
        await send_email(
            values.email,
            "Confirm your address",
            html=f'<p>Welcome! <a href="{link}">Confirm your address</a></p>',
        )
    except InvalidAddress as error:
        raise HTTPException(422, f"This address {error.reason}") from error
    return {"message": "Look into your mail"}


@router.get("/confirm/{token}")
async def confirm(token: str, session: Session) -> dict[str, str]:
    customer = await session.scalar(
        select(Customer).where(Customer.token == token)
    )
    if customer is None:
        raise HTTPException(404, "This link is not valid")
    customer.confirmed = True
    return {"message": "Thank you"}
