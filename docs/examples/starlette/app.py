import os

from openviper.conf import settings
from openviper.core.email import Email, send_email
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

DEBUG = os.environ.get("DEBUG") == "1"
settings.configure(
    DEBUG=DEBUG,
    EMAIL={
        "backend": "MemoryBackend" if DEBUG else "SMTPBackend",
        "default_sender": "Viper Supplies <orders@shop.example>",
    },
)


async def order(request: Request) -> JSONResponse:
    values = await request.json()
    link = "https://shop.example/orders/1001"
    await send_email(
        values["email"],
        "Your order 1001",
        html=f'<h1>Thank you!</h1><p><a href="{link}">See your order</a></p>',
    )
    return JSONResponse({"number": 1001})


app = Starlette(routes=[Route("/orders", order, methods=["POST"])])
Email().attach(app)
