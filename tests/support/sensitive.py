"""A message whose content nobody may see who is not to receive it."""

from typing import Any

__all__ = ["RESET", "SECRET"]

SECRET = "https://shop.example/reset?token=4711"
RESET: dict[str, Any] = {
    "recipients": "a@example.test",
    "subject": "Reset",
    "text": f"text {SECRET}",
    "html": f"<p>html {SECRET}</p>",
    "attachments": [("reset.txt", SECRET.encode())],
    "sensitive": True,
}
