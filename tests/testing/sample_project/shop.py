"""A small application as a user would write it."""

from openviper import JSONResponse, OpenViper, Request
from openviper.core.email import Email, send_email
from openviper.db import transaction

app = OpenViper(title="Shop")
app.add_extension(Email())


@app.post("/orders")
async def order(request: Request) -> JSONResponse:
    data = await request.json()
    link = f"https://shop.example/orders/{data['number']}"
    await send_email(
        data["email"], f"Your order {data['number']}", html=f'<p>Thank you! <a href="{link}">See it</a></p>'
    )
    return JSONResponse({"ok": True})


async def ship(email: str) -> None:
    async with transaction():
        await send_email(email, "On its way", text="It has left our house.")
