import hashlib
import secrets
import time
from datetime import UTC, datetime, timedelta

from fastapi import FastAPI
from openviper.conf import settings
from openviper.core.email import Email, send_email
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

users = {"alice@example.com"}
resets: dict[str, tuple[str, float]] = {}  # in your application a table
HOUR = 3600.0


class Forgotten(BaseModel):
    email: str


@app.post("/password/forgotten")
async def forgotten(request: Forgotten) -> dict[str, str]:
    if request.email in users:
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        resets[digest] = request.email, time.time() + HOUR
        link = f"{settings.PUBLIC_URL}/password/{token}"
        await send_email(
            request.email,
            "Your new password",
            text=f"Choose a new password within an hour:\n\n{link}",
            sensitive=True,
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
    # The same answer, and as fast, whether there is such a user or not.
    return {"message": "If we know you, a link is on its way."}
