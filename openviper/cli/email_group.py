"""``viperctl email``: commands to test, inspect and manage a project's mail."""

import click

from openviper.cli.email_check import check
from openviper.cli.email_config import config
from openviper.cli.email_dkim import dkim
from openviper.cli.email_erase import erase
from openviper.cli.email_failed import failed
from openviper.cli.email_find import find
from openviper.cli.email_journal import journal
from openviper.cli.email_lint import lint
from openviper.cli.email_outbox import outbox
from openviper.cli.email_pause import pause, resume
from openviper.cli.email_preview import preview
from openviper.cli.email_relay import relay
from openviper.cli.email_send import send
from openviper.cli.email_status import status
from openviper.cli.email_suppressed import suppressed

__all__ = ["email"]


@click.group()
def email() -> None:
    """Test a project's mail, inspect its settings and templates, and manage its queue and outbox."""


for _command in (
    check,
    config,
    dkim,
    erase,
    failed,
    find,
    journal,
    lint,
    outbox,
    pause,
    preview,
    relay,
    resume,
    send,
    status,
    suppressed,
):
    email.add_command(_command)
