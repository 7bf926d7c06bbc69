"""Render pages off the event loop, with autoescaping templates."""

import asyncio
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["render"]

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


async def render(name: str, **context: Any) -> str:
    """Render a template in a thread, because reading its file would block the loop."""
    return await asyncio.to_thread(lambda: _environment.get_template(name).render(context))
