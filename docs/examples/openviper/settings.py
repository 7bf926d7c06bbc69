import os

DEBUG = os.environ.get("DEBUG") == "1"

EMAIL = {
    "backend": "MemoryBackend" if DEBUG else "SMTPBackend",
    "default_sender": "Viper Supplies <orders@shop.example>",
}
