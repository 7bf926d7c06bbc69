from typing import Annotated

from fastapi import FastAPI, Form, HTTPException, UploadFile
from openviper.conf import settings
from openviper.core.email import AttachmentRefused, Email, send_email

settings.configure(
    DEBUG=True,
    EMAIL={
        "backend": "MemoryBackend",
        "default_sender": "Shop <noreply@shop.example>",
        "max_attachment_bytes": "5 MB",
    },
)
app = FastAPI()
Email().attach(app)


@app.post("/support")
async def support(
    email: Annotated[str, Form()],
    question: Annotated[str, Form()],
    file: UploadFile,
) -> dict[str, bool]:
    try:
        await send_email(
            "support@shop.example",
            "A question",
            text=question,
            reply_to=email,
            attachments=[file],
        )
    except AttachmentRefused as error:
        code = 413 if error.too_large else 422
        raise HTTPException(code, f"{error.filename} {error.reason}") from error
    return {"ok": True}
