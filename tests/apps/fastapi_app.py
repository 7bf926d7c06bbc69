from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI

from openviper.core.email import Email, EmailMiddleware, submit_email

application = FastAPI()
app = EmailMiddleware(application)


async def session() -> AsyncIterator[None]:
    yield
    await submit_email("a@example.test", "dependency", text="From the exit of a yield dependency")


@application.get("/order")
async def order(session: Annotated[None, Depends(session)], subject: str = "order") -> dict[str, str]:
    receipt = await submit_email("a@example.test", subject, text="Thank you")
    return {"mode": receipt.mode, "message_id": receipt.message_id}


attached = Email().attach(FastAPI())
attached.include_router(application.router)
