import os

DATABASE_URL = os.environ["DATABASE_URL"]
EMAIL = {
    "default_sender": "Shop <orders@shop.example>",
    "outbox": "database",
}
