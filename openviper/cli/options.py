"""Arguments and options shared by several commands."""

from pathlib import Path

import click

__all__ = ["AddressCommand", "mailer_option", "project_path", "sender_option", "settings_option"]

_ADDRESS_OPTIONS = ("-t", "--to", "--cc", "--bcc", "--recipient", "--recipients", "--rcpt", "--address", "--email")
_SENDER_OPTIONS = ("-f", "--sender", "--from-email", "--from-address", "--mail-from")
_CONTENT_OPTIONS = ("-s", "--subject", "--text", "--body", "--message", "--html")


class AddressCommand(click.Command):
    """A command whose addresses are arguments: it names the remedy for options that other programs have for them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not (remedy := self._remedy(error.option_name, ctx)):
                raise
            raise click.UsageError(f"No such option '{error.option_name}'; {remedy}", ctx) from error

    def _remedy(self, option: str, ctx: click.Context) -> str:
        if option in _ADDRESS_OPTIONS:
            arguments = [piece for piece in self.collect_usage_pieces(ctx) if piece != self.options_metavar]
            return f"addresses are arguments: {ctx.command_path} {' '.join(arguments)}"
        sends = any(parameter.name == "sender" for parameter in self.params)
        if sends and option in _SENDER_OPTIONS:
            return "did you mean '--from'?"
        if sends and option in _CONTENT_OPTIONS:
            return "the test message has a subject and a text of its own"
        return ""


project_path = click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
settings_option = click.option(
    "--settings",
    metavar="MODULE",
    help="Settings module. Default: OPENVIPER_SETTINGS_MODULE, else [tool.openviper] settings in the project's "
    "pyproject.toml, else its only settings.py.",
)


def _address(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    from openviper.core.email.addresses import parse_address
    from openviper.core.email.errors import InvalidAddress

    if value is not None:
        try:
            parse_address(value, field="--from")
        except InvalidAddress as error:
            raise click.UsageError(str(error)) from error
    return value


mailer_option = click.option(
    "--mailer", metavar="NAME", help='A mailer of EMAIL["mailers"]. Default: the one that EMAIL itself describes.'
)
sender_option = click.option(
    "--from",
    "sender",
    metavar="ADDRESS",
    callback=_address,
    help='Sender of the message. Default: EMAIL["default_sender"].',
)
