from fastapi import FastAPI
from openviper.conf import settings
from openviper.core.email import Email, send_email

settings.configure(
    DEBUG=True,
    EMAIL={
        "backend": "MemoryBackend",
        "default_sender": "Shop <orders@shop.example>",
    },
)
app = FastAPI()
Email().attach(app)


def make_invoice(number: int) -> bytes:
    """Make the PDF with the library of your choice; it may take a while."""
    return b"%PDF-1.7\n% invoice " + str(number).encode()


@app.post("/orders/{number}/pay")
async def pay(number: int) -> dict[str, bool]:
    await send_email(
        "alice@example.com",
        f"Invoice {number}",
        text="Thank you! Your invoice is attached.",
        attachments=[
            # A function is called in a thread: the event loop goes on.
            (f"invoice-{number}.pdf", lambda: make_invoice(number)),
        ],
    )
    return {"ok": True}
