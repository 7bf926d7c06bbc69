"""Settings of the shop. The environment may override each of them, and EMAIL by EMAIL_HOST, EMAIL_BACKEND and so on."""

import os
from pathlib import Path

from openviper.exceptions import ImproperlyConfigured

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

# redis://... or amqp://...: then mail is queued, and `viperctl runworker example_shop` delivers it.
BROKER_URL = os.environ.get("BROKER_URL", "")
TASKS = {}
if BROKER_URL:
    TASKS = {"broker": "rabbitmq" if BROKER_URL.startswith("amqp") else "redis", "broker_url": BROKER_URL}

# Where customers reach the shop: mail links there. Only in debug mode it may be left out, and is then taken from the
# request, because elsewhere anyone can write any Host header into a request.
SHOP_URL = os.environ.get("SHOP_URL", "").rstrip("/")
if not SHOP_URL and not DEBUG:
    raise ImproperlyConfigured("SHOP_URL: needed outside debug mode, for example https://shop.example")

# Outside debug mode the staff page asks for this password, and stays closed without one.
SHOP_STAFF_PASSWORD = os.environ.get("SHOP_STAFF_PASSWORD", "")
