from database import Customer, sessions
from fastapi import APIRouter, HTTPException
from openviper.core.email import QueueUnavailable, send_many
from sqlalchemy import select

router = APIRouter()


@router.post("/newsletter")
async def send_newsletter() -> dict[str, int]:
    async with sessions() as session:
        found = await session.scalars(
            select(Customer.email).where(Customer.confirmed)
        )
    news = (
        {"recipients": each, "subject": "News", "text": "Hello!"}
        for each in found
    )
    queued = failed = 0
    try:
        async for receipt in send_many(news, background=True):
            if receipt:
                queued += 1
            else:
                failed += 1
    except QueueUnavailable as error:
        raise HTTPException(
            503, "Nothing was queued; try again later"
        ) from error
    return {"queued": queued, "failed": failed}
