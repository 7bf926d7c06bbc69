"""The shop's settings. The environment overrides them, and keys of EMAIL by EMAIL_HOST, EMAIL_BACKEND and so on."""

import os
from pathlib import Path

from openviper.exceptions import ImproperlyConfigured

from .footer import add_footer

PROJECT = Path(__file__).resolve().parent.parent

# In debug mode, the default, the staff page is open on this machine, and /_mail shows the mail that was sent.
DEBUG = os.environ.get("DEBUG", "1").lower() not in {"", "0", "false", "no", "off"}

# For PostgreSQL: postgresql://user:password@host/database
DATABASE_URL = os.environ.get("DATABASE_URL") or f"sqlite:///{PROJECT / 'shop.sqlite3'}"

TEMPLATES_DIR = PROJECT / "shop" / "templates"

# The shop's public URL, for links in mail. Only debug mode takes it from the request if it is not set: in production
# anyone can put any Host header into a request.
SHOP_URL = os.environ.get("SHOP_URL", "").rstrip("/")
if not SHOP_URL and not DEBUG:
    raise ImproperlyConfigured("SHOP_URL: must be set outside debug mode, for example to https://shop.example")

# Orders are confirmed by the default mailer. The newsletter has its own, so that no confirmation waits for it:
# EMAIL_BULK_URL names its mail server, which otherwise is the default mailer's.
EMAIL = {
    "backend": "MemoryBackend",
    "default_sender": "Viper Supplies <orders@shop.example>",
    "before_send": add_footer,
    "mails": [f"{__package__}.mails"],
    # The newsletter's links to unsubscribe. Outside debug mode EMAIL_UNSUBSCRIBE_KEYS gives the secret that signs them.
    "site_url": SHOP_URL or "http://127.0.0.1:8000",
    "unsubscribe_keys": ["no secret, and so for debug mode only"] if DEBUG else [],
    # With "database" an order's commit stores its mail too, which then survives `kill -9`.
    "outbox": os.environ.get("EMAIL_OUTBOX") or None,
    "mailers": {
        "bulk": {
            "default_sender": "Viper Supplies News <news@shop.example>",
            "rate_limit": "14/second",
            "stream": "news",
        },
    },
}

# With redis://... or amqp://... mail is queued, and `viperctl runworker example_shop` delivers it.
BROKER_URL = os.environ.get("BROKER_URL", "")
TASKS = {}
if BROKER_URL:
    TASKS = {"broker": "rabbitmq" if BROKER_URL.startswith("amqp") else "redis", "broker_url": BROKER_URL}

# Outside debug mode the staff page requires this password, and is closed if none is set.
SHOP_STAFF_PASSWORD = os.environ.get("SHOP_STAFF_PASSWORD", "")
