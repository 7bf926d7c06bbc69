"""Nothing listens where these point to: mail that leaves a test would fail it."""

EMAIL = {"host": "127.0.0.1", "port": 1, "pool_warm": True, "default_sender": "orders@shop.example"}
TASKS = {"broker": "redis", "broker_url": "redis://127.0.0.1:1/0"}
DATABASE_URL = "sqlite://"
