from database import Order, Session
from fastapi import FastAPI
from openviper.core.email import Email, send_email
from pydantic import BaseModel

app = FastAPI()
Email().attach(app)


class NewOrder(BaseModel):
    email: str


@app.post("/orders", status_code=201)
async def place_order(values: NewOrder, session: Session) -> dict[str, int]:
    order = Order(email=values.email)
    session.add(order)
    await session.flush()
    await send_email(order.email, f"Order {order.id}", text="Thank you!")
    return {"number": order.id}
