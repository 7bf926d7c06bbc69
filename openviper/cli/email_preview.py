"""``viperctl email preview``: render a mail template as it would be sent."""

import asyncio
import json
import sys
from codecs import BOM_UTF8
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import enter_project
from openviper.terminal import escape
from openviper.text import shown

if TYPE_CHECKING:
    from openviper.core.email.templates import RenderedTemplate

__all__ = ["preview"]


@click.command()
@click.argument("template")
@project_option
@click.option(
    "--context",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
    help="JSON file with the values. Default: <template>.sample.json beside the template, and sample values.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, resolve_path=True),
    help="File to write. Default: standard output.",
)
@click.option("--text", "as_text", is_flag=True, help="Write the text part instead of the HTML.")
@settings_option
def preview(
    template: str, path: Path, context: Path | None, output: Path | None, as_text: bool, settings: str | None
) -> None:
    """Render TEMPLATE as `send_email(template=...)` does, and show its subject and HTML."""
    enter_project(path, settings_module=settings).load_settings()
    rendered = asyncio.run(_render(template, None if context is None else _read(context)))
    body = _body(template, rendered, as_text=as_text)
    # Standard output is for the rendered template alone.
    click.echo(f"Subject: {escape(rendered.subject or '(none: the template has no subject block)')}", err=True)
    if output is None:
        click.echo(escape(body, body=True) if sys.stdout.isatty() else body, nl=not body.endswith("\n"))
        return
    # Without the mark browsers guess the charset of a file that names none.
    mark = b"" if as_text else BOM_UTF8
    try:
        output.write_bytes(mark + body.encode())
    except OSError as error:
        raise click.ClickException(
            f"cannot write to {output}: {error.strerror}; choose another file with --output"
        ) from error
    click.echo(f"Written: {output}", err=True)


async def _render(template: str, context: dict[str, Any] | None) -> "RenderedTemplate":
    from openviper.core.email.delivery import Mailer
    from openviper.core.email.inbox.previews import preview as render_with_samples
    from openviper.core.email.settings import EmailSettings

    renderer = Mailer(EmailSettings.from_settings()).renderer
    if context is not None:
        return await renderer.render(template, context)
    found = await render_with_samples(renderer, template)
    if found.rendered is None:
        raise click.ClickException(found.error)
    made_up = [variable.path for variable in found.variables if not variable.given]
    if made_up:
        click.echo(f"Made up: {', '.join(made_up)}  (set them with --context, or in {found.sample_name})", err=True)
    return found.rendered


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--context: {file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise click.UsageError(f"--context: {file} must contain an object whose names are the variables")
    return values


def _body(template: str, rendered: "RenderedTemplate", *, as_text: bool) -> str:
    from openviper.core.email.message.plaintext import html_to_text

    if not as_text:
        if rendered.html is None:
            raise click.ClickException(f"template {shown(template)} has no HTML; use --text")
        return rendered.html
    if rendered.text is not None:
        return rendered.text
    return html_to_text(rendered.html or "")
