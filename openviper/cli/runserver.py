"""``viperctl runserver PATH``: serve a project with uvicorn."""

import errno
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from openviper.cli.options import project_path, settings_option
from openviper.cli.project import enter_project

__all__ = ["runserver"]

_DEFAULT_PORT = 8000


@click.command()
@project_path
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Port to listen on; 0 chooses a free port.  [default: {_DEFAULT_PORT}, or a free port if it is in use]",
)
@click.option("--reload", is_flag=True, help="Restart whenever a Python file of the project changes.")
@settings_option
def runserver(path: Path, host: str, port: int | None, reload: bool, settings: str | None) -> None:
    """Serve the application of the project folder PATH.

    The application is "app" in the folder's app.py, unless [tool.openviper] app = "module:app" in its pyproject.toml
    names another one.
    """
    from openviper.conf import require

    project = enter_project(path, settings_module=settings)
    app_path = project.app_path()
    uvicorn = require("uvicorn", extra="server", purpose="runserver")
    project.load_settings()
    # With --reload only the child process imports the application, so that the server survives broken code.
    app = app_path if reload else project.load_app()

    inbox = _has_inbox(loaded=not reload)
    listener = _listen(host, port)
    address = _base_address(host, listener.getsockname()[1])
    click.echo(f"{project.folder.name} is served at {address}")
    if inbox:
        click.echo(f"The mail that it sends is shown at {address}_mail")
    config = uvicorn.Config(
        app, reload=reload, reload_dirs=[str(project.folder)] if reload else None, log_config=_log_config()
    )
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):  # uvicorn has shut down already and raises Ctrl+C again
        if reload:
            from uvicorn.supervisors import ChangeReload

            ChangeReload(config, target=server.run, sockets=[listener]).run()
        else:
            server.run(sockets=[listener])
            if not server.started:
                sys.exit(3)  # as uvicorn's own command does; the log has the reason


def _log_config() -> dict[str, Any]:
    """Return uvicorn's own logging configuration, extended to show our loggers beside its requests."""
    from uvicorn.config import LOGGING_CONFIG

    ours = {"openviper": {"handlers": ["default"], "level": "INFO", "propagate": False}}
    return {**LOGGING_CONFIG, "loggers": {**LOGGING_CONFIG["loggers"], **ours}}


def _listen(host: str, port: int | None) -> socket.socket:
    """Open a socket that accepts connections already, so that the printed address works at once."""
    try:
        return _open_socket(host, _DEFAULT_PORT if port is None else port)
    except OSError as error:
        if port is None and error.errno == errno.EADDRINUSE:
            return _open_socket(host, 0)
        wanted = _DEFAULT_PORT if port is None else port
        raise click.ClickException(
            f"cannot listen on {host} port {wanted}: {error.strerror}; choose another with --host and --port"
        ) from error


def _open_socket(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.create_server(address[:2], family=family, backlog=2048)
    listener.set_inheritable(True)
    return listener


def _has_inbox(*, loaded: bool) -> bool:
    # Without the extension an application has no inbox page; with --reload this process has not imported it.
    if loaded and "openviper.core.email.asgi" not in sys.modules:
        return False
    from openviper.conf import settings
    from openviper.core.email.settings import EmailSettings

    return EmailSettings.from_settings().inbox_enabled(debug=bool(settings.DEBUG))


def _base_address(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}/" if ":" in reachable else f"http://{reachable}:{port}/"
