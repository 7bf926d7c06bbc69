"""Applications that are started and shut down as a server does it."""

from asgi_lifespan import LifespanManager
from starlette.types import ASGIApp

from support.patience import PATIENCE

__all__ = ["Lifespan"]


class Lifespan(LifespanManager):
    """``async with Lifespan(app) as started:``; ``started.app`` is the application with the state of its lifespan."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, startup_timeout=PATIENCE, shutdown_timeout=PATIENCE)
