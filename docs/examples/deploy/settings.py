import os

EMAIL = {"default_sender": "Viper Supplies <orders@shop.example>"}
TASKS = {"broker": "redis", "broker_url": os.environ["BROKER_URL"]}
