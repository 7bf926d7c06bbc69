"""A seeded, model-based run of the queue over a real broker, real workers and a real mail server."""

from support.queue_model.plan import BROKERS
from support.queue_model.report import ModelReport
from support.queue_model.run import run_model

__all__ = ["BROKERS", "ModelReport", "run_model"]
