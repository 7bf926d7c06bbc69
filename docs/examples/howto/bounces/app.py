import os
import secrets
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from openviper.conf import settings
from openviper.core.email import Email
from openviper.db import add_suppression

settings.configure(
    DATABASE_URL=os.environ.get("DATABASE_URL", "sqlite:///shop.db"),
    EMAIL={
        "default_sender": "Shop <orders@shop.example>",
        "suppress": "openviper.db.find_suppressed",
    },
)
PASSWORD = os.environ.get("HOOK_PASSWORD", "change me")
app = FastAPI()
Email().attach(app)


def from_postmark(
    login: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())],
) -> None:
    given, wanted = login.password.encode(), PASSWORD.encode()
    if not secrets.compare_digest(given, wanted):
        raise HTTPException(401)


@app.post("/hooks/postmark", dependencies=[Depends(from_postmark)])
async def postmark(event: dict[str, Any]) -> dict[str, bool]:
    kind, address = event.get("RecordType"), event.get("Email", "")
    if kind == "Bounce" and event.get("Type") == "HardBounce":
        await add_suppression(address, "bounced")
    elif kind == "SpamComplaint":
        await add_suppression(address, "complained")
    return {"ok": True}
