"""``viperctl email dkim``: make keys to sign with, and print the DNS records of the configured ones."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import enter_project
from openviper.terminal import escape

__all__ = ["dkim", "keygen", "show"]

_DEFAULT_BITS = 2048
_PURPOSE = "viperctl email dkim"


@click.group()
def dkim() -> None:
    """Make keys to sign mail with, and print their DNS records."""


@dkim.command()
@click.argument("domain")
@click.option("--selector", metavar="NAME", help="Name of the key. Default: its type and this month, as rsa202611.")
@click.option("--type", "kind", type=click.Choice(["rsa", "ed25519"]), default="rsa", show_default=True)
@click.option("--bits", type=click.IntRange(1024, 4096), help=f"Length of an RSA key. Default: {_DEFAULT_BITS}.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write. Default: SELECTOR.DOMAIN.pem.",
)
def keygen(domain: str, selector: str | None, kind: str, bits: int | None, output: Path | None) -> None:
    """Make a key for the sender domain DOMAIN. Prints the TXT record to publish and the setting to add.

    The private key is written to a file that only its owner may read; an existing file is never overwritten.
    """
    from openviper.conf.imports import require
    from openviper.core.email.message.dkim import generate_key, load_key, public_record, record_name, zone_lines
    from openviper.core.email.settings import EmailSettings
    from openviper.exceptions import ImproperlyConfigured

    if kind == "ed25519" and bits is not None:
        raise click.UsageError("--bits: an Ed25519 key has a fixed length; leave --bits out")
    selector = selector or f"{kind.removesuffix('25519')}{datetime.now(UTC):%Y%m}"
    try:
        (ascii_domain,) = EmailSettings(dkim={domain: {selector: "-"}}).dkim
    except ImproperlyConfigured:
        raise click.UsageError(
            f"{escape(domain)}, {escape(selector)}: the first must be a domain such as shop.example, the second a "
            "selector of letters, digits and hyphens"
        ) from None
    require("cryptography", extra="dkim", purpose=_PURPOSE)
    file = (output or Path(f"{selector}.{ascii_domain}.pem")).absolute()
    pem = generate_key(kind, bits=bits or _DEFAULT_BITS)
    _write_private(file, pem)
    record = public_record(load_key(selector, pem))
    setting = json.dumps({ascii_domain: {selector: str(file)}}, ensure_ascii=False)
    click.echo(f"{escape(str(file))} has the private key; keep it out of version control.\n")
    click.echo("Publish this record:\n")
    click.echo(f"{zone_lines(record_name(selector, ascii_domain), record)}\n")
    click.echo("When DNS returns it, add the key to EMAIL and run `viperctl email check`:\n")
    click.echo(f'"dkim": {escape(setting)}')


@dkim.command()
@click.argument("domain", required=False)
@project_option
@settings_option
def show(domain: str | None, path: Path, settings: str | None) -> None:
    """Print the TXT records of the keys in EMAIL["dkim"] as a zone file has them; only DOMAIN's if it is given."""
    from openviper.core.email.delivery.signing import load_keys
    from openviper.core.email.message.dkim import public_record, record_name, zone_lines
    from openviper.core.email.settings import EmailSettings

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    email = EmailSettings.from_settings()
    if not email.dkim:
        raise click.ClickException(
            f'EMAIL["dkim"] has no keys; `viperctl email dkim keygen DOMAIN` makes one; {project.settings_origin()}'
        )
    shown = [each for each in email.dkim if domain in (None, each)]
    if not shown:
        raise click.UsageError(f"{escape(str(domain))} has no keys; these have: {', '.join(email.dkim)}")
    keys = asyncio.run(load_keys(email))
    for name in shown:
        for key in keys[name]:
            click.echo(zone_lines(record_name(key.selector, name), public_record(key)))


def _write_private(file: Path, pem: bytes) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.ClickException(
            f"{escape(str(file))} exists and is not overwritten: mail signed with it would fail; "
            "choose another --selector or --output"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{escape(str(file))}: {error.strerror}; choose another --output") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
