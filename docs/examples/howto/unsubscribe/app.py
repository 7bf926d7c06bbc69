import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from openviper.conf import settings
from openviper.core.email import Email, UnsubscribeEndpoint, send_many
from openviper.db import create_suppression_table

settings.configure(
    DATABASE_URL=os.environ.get("DATABASE_URL", "sqlite:///shop.db"),
    EMAIL={
        "default_sender": "Shop <news@shop.example>",
        "site_url": "https://shop.example",
        "unsubscribe_keys": [os.environ["UNSUBSCRIBE_KEY"]],
        "suppress": "openviper.db.find_suppressed",
    },
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    await create_suppression_table()
    yield


app = FastAPI(lifespan=lifespan)
app.mount("/unsubscribe", UnsubscribeEndpoint())
Email().attach(app)


@app.post("/newsletter")
async def newsletter() -> dict[str, int]:
    messages = [
        {"recipients": reader, "template": "emails/news.html"}
        for reader in ("alice@example.com", "bob@example.com")
    ]
    sent = 0
    async for receipt in send_many(messages, stream="news", unsubscribe=True):
        sent += len(receipt.accepted)
    return {"sent": sent}
