from openviper import JSONResponse, OpenViper, Request
from openviper.core.email import Email, send_email

app = OpenViper(title="Shop")
app.add_extension(Email())


@app.post("/orders")
async def order(request: Request) -> JSONResponse:
    values = await request.json()
    await send_email(
        values["email"],
        template="emails/order",
        context={"name": values["name"], "number": 1001},
    )
    return JSONResponse({"number": 1001})
