"""Whether to colour."""

import os

__all__ = ["colour"]


def colour() -> bool | None:
    """For the argument ``color`` of ``click.echo``: None colours on terminals only; see https://no-color.org."""
    return False if os.environ.get("NO_COLOR") else None
