import secrets

from fastapi import FastAPI, HTTPException
from openviper.conf import settings
from openviper.core.email import Email, InvalidAddress, send_email
from pydantic import BaseModel

settings.configure(
    DEBUG=True,
    PUBLIC_URL="https://shop.example",  # yours; never the request's Host
    EMAIL={
        "backend": "MemoryBackend",
        "default_sender": "Shop <hello@shop.example>",
    },
)
app = FastAPI()
Email().attach(app)

waiting: dict[str, str] = {}  # in your application a table, with a date
confirmed: set[str] = set()


class SignUp(BaseModel):
    name: str
    email: str


@app.post("/sign-up")
async def sign_up(person: SignUp) -> dict[str, str]:
    token = secrets.token_urlsafe(32)
    try:
        await send_email(
            person.email,
            template="emails/confirm.md",
            context={
                "name": person.name,
                "link": f"{settings.PUBLIC_URL}/confirm/{token}",
            },
        )
    except InvalidAddress as error:
        raise HTTPException(422, f"the address {error.reason}") from error
    waiting[token] = person.email
    return {"message": "We have sent you a link."}


@app.get("/confirm/{token}")
async def confirm(token: str) -> dict[str, str]:
    email = waiting.pop(token, None)
    if email is None:
        raise HTTPException(404, "This link is not valid any more.")
    confirmed.add(email)
    return {"message": f"Thank you, {email} is confirmed."}
