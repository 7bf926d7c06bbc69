from openviper import JSONResponse, OpenViper, Request, Response
from openviper.core.email import Email, submit_email

app = OpenViper(title="Test")
app.add_extension(Email())


@app.get("/order")
async def order(request: Request) -> Response:
    receipt = await submit_email("a@example.test", request.query_params.get("subject", "order"), text="Thank you")
    return JSONResponse({"mode": receipt.mode, "message_id": receipt.message_id})
