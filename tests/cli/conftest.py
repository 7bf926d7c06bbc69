"""A sample project, and the commands to run on it."""

from pathlib import Path

import pytest
from support.commands import Cli

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def hello(request):
    return PlainTextResponse("hello from app.py")


app = Starlette(routes=[Route("/", hello)])
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an app.py and an empty settings.py."""
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "settings.py").write_text("")
    return folder
