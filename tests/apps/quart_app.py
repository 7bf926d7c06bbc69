from quart import Quart, request

from openviper.core.email import EmailMiddleware, submit_email

app = Quart(__name__)
app.asgi_app = EmailMiddleware(app.asgi_app)  # type: ignore[method-assign]


@app.get("/order")
async def order() -> dict[str, str]:
    receipt = await submit_email("a@example.test", request.args.get("subject", "order"), text="Thank you")
    return {"mode": receipt.mode, "message_id": receipt.message_id}
