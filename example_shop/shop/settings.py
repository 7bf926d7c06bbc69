"""Settings of the shop. The environment may override each of them, and EMAIL by EMAIL_HOST, EMAIL_BACKEND and so on."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# The example starts in debug mode: the staff page is open on this machine, and /_mail shows the mail that was sent.
DEBUG = os.environ.get("DEBUG", "1").lower() not in {"", "0", "false", "no", "off"}

# For PostgreSQL: postgresql://user:password@host/database
DATABASE_URL = os.environ.get("DATABASE_URL") or f"sqlite:///{PROJECT / 'shop.sqlite3'}"

TEMPLATES_DIR = PROJECT / "shop" / "templates"

EMAIL = {
    "backend": "MemoryBackend",
    "default_sender": "Viper Supplies <orders@shop.example>",
}

# Where customers reach the shop: mail links there. Never taken from a request, whose Host header anyone can write.
SHOP_URL = os.environ.get("SHOP_URL", "http://127.0.0.1:8000").rstrip("/")

# Outside debug mode the staff page asks for this password, and stays closed without one.
SHOP_STAFF_PASSWORD = os.environ.get("SHOP_STAFF_PASSWORD", "")
