import os

DEBUG = os.environ.get("DEBUG") == "1"
# A key of your own:
PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000")
DATABASE_URL = os.environ.get(
    "DATABASE_URL", "sqlite+aiosqlite:///shop.sqlite3"
)

EMAIL = {
    "backend": "FileBackend" if DEBUG else "SMTPBackend",
    "file_dir": "sent",
    "inbox_dir": "inbox",
    "default_sender": "Viper Supplies <orders@shop.example>",
}
if broker_url := os.environ.get("BROKER_URL"):
    TASKS = {"broker": "redis", "broker_url": broker_url}
