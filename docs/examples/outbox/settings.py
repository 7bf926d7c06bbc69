import os

DATABASE_URL = os.environ["DATABASE_URL"]
EMAIL = {
    "default_sender": "Viper Supplies <orders@shop.example>",
    "outbox": "database",  # the one that DATABASE_URL names
}
