"""``viperctl email config``: show the mail settings, their origins, and the resulting delivery modes."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import mailer_option, settings_option
from openviper.cli.project import Project, enter_project
from openviper.terminal import colour, escape

if TYPE_CHECKING:
    from openviper.core.email.delivery import DeliveryModes
    from openviper.core.email.settings import EmailSettings

__all__ = ["config"]


@click.command()
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@mailer_option
@settings_option
def config(path: Path, as_json: bool, mailer: str | None, settings: str | None) -> None:
    """Show each mail setting with its origin, and the delivery mode that mail would have now. Secrets are masked.

    Settings passed to `Email({...})` or `EmailMiddleware(app, {...})` are not shown: only the application has them.
    """
    from openviper.core.email.errors import InvalidMessage
    from openviper.core.email.settings import EmailSettings

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    every = EmailSettings.from_settings()
    try:
        email = every.of_mailer(mailer)
    except InvalidMessage as error:
        raise click.UsageError(str(error)) from error
    origins = _origins(project, email, mailer)
    modes = asyncio.run(_modes(email))
    if as_json:
        _print_json(email, origins, modes)
    else:
        _print_lines(email, origins, modes)


def _origins(project: Project, email: "EmailSettings", mailer: str | None) -> dict[str, str]:
    given = email.sources(mailer)
    origins = {}
    for name in type(email).model_fields:
        place = given.get(name, "default")
        origins[name] = f"{place} in {project.settings}" if place.startswith("EMAIL[") else place
    if "port" not in given and (email.use_ssl or email.use_tls):
        origins["port"] = "default with use_ssl" if email.use_ssl else "default with use_tls"
    return origins


async def _modes(email: "EmailSettings") -> "DeliveryModes":
    from openviper.core.email.delivery import Mailer, current_modes

    mailer = Mailer(email)
    if (queue := mailer.transport.queue) is not None:
        await asyncio.to_thread(queue.load)  # the probe has a second, which the import alone may take
    await mailer.detect_broker()
    return current_modes(mailer)


def _print_lines(email: "EmailSettings", origins: dict[str, str], modes: "DeliveryModes") -> None:
    values = {name: _shown(getattr(email, name)) for name in origins}
    width = max(map(len, origins))
    wide = max(len(value) for value in values.values())
    for name, origin in origins.items():
        line = f"{name:<{width}}  {values[name]:<{min(wide, 40)}}  {origin}"
        click.echo(click.style(escape(line), dim=origin == "default"), color=colour())
    click.echo()
    click.echo(f"In a request  {modes.in_request}")
    click.echo(f"Elsewhere     {modes.elsewhere}")
    click.echo(f"Through       {escape(modes.backend)}")
    click.echo(f"Because       {escape(modes.reason)}")
    if modes.redirect:
        click.echo(f"All of it     {escape(modes.redirect)}")


def _print_json(email: "EmailSettings", origins: dict[str, str], modes: "DeliveryModes") -> None:
    settings = {name: {"value": _plain(getattr(email, name)), "origin": origins[name]} for name in origins}
    mode = {
        "request": modes.in_request,
        "elsewhere": modes.elsewhere,
        "backend": modes.backend,
        "reason": modes.reason,
        "redirect": modes.redirect or None,
    }
    click.echo(json.dumps({"settings": settings, "mode": mode}, indent=2))


def _shown(value: object) -> str:
    plain = _plain(value)
    return "none" if plain is None else ", ".join(plain) if isinstance(plain, list) else str(plain)


def _plain(value: object) -> Any:
    """Return ``value`` as JSON can express it; asterisks for a secret."""
    from pydantic import SecretStr

    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return list(value)  # the names of mailers; --mailer shows each
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if isinstance(value, str | Path):
        return str(value)
    # A rate has a readable str(); of other objects only the type is meaningful.
    return str(value) if type(value).__str__ is not object.__str__ else type(value).__name__
