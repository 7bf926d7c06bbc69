"""An application in a process of its own that sends what a test asks for over HTTP; its mail goes to EMAIL_HOST."""

import json
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openviper.conf import settings
from openviper.core.email import EmailMiddleware, submit_email

settings.configure(
    DEBUG=True,
    TEMPLATES_DIR=os.environ.get("OPENVIPER_TEST_TEMPLATES", "templates"),
    TASKS=json.loads(os.environ.get("OPENVIPER_TEST_TASKS", "{}")),
)


async def send(request: Request) -> Response:
    message = await request.json()
    receipt = await submit_email(**message)
    return JSONResponse({"message_id": receipt.message_id, "mode": receipt.mode})


app = EmailMiddleware(Starlette(routes=[Route("/send", send, methods=["POST"])]))
