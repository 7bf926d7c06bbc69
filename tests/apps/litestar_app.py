from litestar import Litestar, get

from openviper.core.email import EmailMiddleware, submit_email


@get("/order")
async def order(subject: str = "order") -> dict[str, str]:
    receipt = await submit_email("a@example.test", subject, text="Thank you")
    return {"mode": receipt.mode, "message_id": receipt.message_id}


app = EmailMiddleware(Litestar([order]))
