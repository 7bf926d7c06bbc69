"""Prints the id of every accepted message; dawdles before and after, so that clients leave at every moment."""

import asyncio
import random

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from openviper.core.email import EmailMiddleware, submit_email

dice = random.Random(11)


async def order(request: Request) -> Response:
    await asyncio.sleep(dice.random() * 0.01)
    receipt = await submit_email("a@example.test", request.query_params["subject"], text="Thank you")
    print("accepted", receipt.message_id)
    await asyncio.sleep(dice.random() * 0.01)
    return PlainTextResponse(receipt.message_id)


app = EmailMiddleware(Starlette(routes=[Route("/order", order)]))
