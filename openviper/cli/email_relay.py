"""``viperctl email relay``: deliver the outbox's mail in a process of its own."""

import asyncio
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import enter_project
from openviper.cli.transport import describe_transport

if TYPE_CHECKING:
    from openviper.core.email.delivery import Mailer
    from openviper.core.email.settings import EmailSettings

__all__ = ["relay"]


@click.command()
@project_option
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@settings_option
def relay(path: Path, verbose: bool, settings: str | None) -> None:
    """Deliver the outbox's mail that no other process has, until SIGTERM or Ctrl+C.

    With a message broker it gives that mail to the workers' queue instead. Any number may run. Applications and
    workers run a relay by themselves; this is one without them. After the signal the deliveries in progress end, and
    the exit status is 0.
    """
    from openviper.core.email.inbox import start_recording
    from openviper.core.email.settings import EmailSettings, debug

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    email = EmailSettings.from_settings()
    if email.outbox is None:
        raise click.ClickException(f'EMAIL["outbox"] is not set: set it to "database"; {project.settings_origin()}')
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="[%(asctime)s] [%(process)d] [%(name)s] [%(levelname)s] %(message)s")
    start_recording(email, debug=debug())
    asyncio.run(_run(email))


async def _run(email: "EmailSettings") -> None:
    from openviper.core.email.delivery import Mailer
    from openviper.core.email.queue import close_queue

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    mailer = Mailer(email)
    try:
        await mailer.open()
        await mailer.start_relay()
        click.echo(f"Relay of {_describe_outbox(mailer)}: {_describe_target(email)}. Stop it with Ctrl+C.")
        await stopping.wait()
    finally:
        await mailer.aclose()
        await asyncio.to_thread(close_queue)


def _describe_outbox(mailer: "Mailer") -> str:
    assert mailer.outbox is not None, "the setting was read"
    return mailer.outbox.keeper.store.engine.url.render_as_string()


def _describe_target(email: "EmailSettings") -> str:
    from openviper.core.email.queue import queue_service

    service = queue_service()
    if service is None or email.use_background_worker is False:
        return f"delivers by {describe_transport(email)}"
    return f"gives mail to the queue on {service.address}"
