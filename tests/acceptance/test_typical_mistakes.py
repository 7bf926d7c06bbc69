"""What a user reads after a typical mistake: the culprit and the remedy in the first line, and nothing that buries it.

A row is a mistake and the whole text. Rows are asserted as they are read, so that a changed text is read again.
"""

import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.mime.application import MIMEApplication
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fastapi import FastAPI
from support.commands import Cli
from support.lifespan import Lifespan
from support.smtpd import SmtpServer

from openviper import OpenViper
from openviper.conf import SETTINGS_VARIABLE, settings
from openviper.core.email import (
    DeliveryError,
    Email,
    EmailMiddleware,
    render_email,
    send_email,
    send_email_sync,
    send_many,
    subscribe,
    verify,
)
from openviper.core.email.queue import enqueue_email_job
from openviper.core.email.settings import EmailSettings, debug, template_dirs
from openviper.db import add_suppression, dispose, find_suppressed, on_commit, transaction
from openviper.exceptions import MissingDependency, OpenViperError
from openviper.tasks import TaskSettings, get_broker
from openviper.testing import capture_mail

ROOT = Path(__file__).parents[2]
MEMORY = {"backend": "MemoryBackend", "default_sender": "shop@example.com"}
SERVER = {"host": "smtp.example.com", "use_tls": True}
ORDER = {"recipients": "ana@example.com", "subject": "Your order", "text": "Thank you!"}

Mistake = Callable[[], object]
Row = tuple[str, Mistake, str]


def row(name: str, mistake: Mistake, text: str) -> Row:
    return name, mistake, text


PORT = "give a whole number from 1 to 65535"
NO_KEY = "there is no such setting; did you mean"
SECONDS = 'seconds above 0, a timedelta, or a string with a unit such as "90 s"'


def email(**values: Any) -> Mistake:
    return lambda: EmailSettings.load(email=values)


def project(**values: Any) -> Mistake:
    def configured() -> None:
        settings.configure(**values)
        EmailSettings.load()

    return configured


def environment(**variables: str) -> Mistake:
    def read() -> None:
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            EmailSettings.load()
        finally:
            os.environ.clear()
            os.environ.update(before)

    return read


def tasks(values: Any) -> Mistake:
    return lambda: TaskSettings.load(values)


def module(name: str) -> Mistake:
    return environment(**{SETTINGS_VARIABLE: name})


def send(setting: Mapping[str, Any] = MEMORY, **changes: Any) -> Mistake:
    async def sent() -> None:
        settings.configure(EMAIL=setting)
        values = {**ORDER, **changes}
        await send_email(**{name: value for name, value in values.items() if value is not ...})

    return sent


def template(name: Any, **more: Any) -> Mistake:
    return send(text=..., template=name, **more)


def with_setting(mistake: Callable[[], Any], **values: Any) -> Mistake:
    def run() -> Any:
        settings.configure(**values)
        return mistake()

    return run


def standard_message() -> EmailMessage:
    message = EmailMessage()
    message["To"], message["Subject"] = "ana@example.com", "Your order"
    message.set_content("Thank you!")
    return message


class FlaskMessage:
    """A message as other mail libraries have it."""

    subject = "Your order"
    recipients = ("ana@example.com",)


async def suppress_without_a_table() -> None:
    settings.configure(EMAIL={**MEMORY, "suppress": find_suppressed}, DATABASE_URL="sqlite:///shop.sqlite3")
    try:
        await send_email("ana@example.com", "Your order", "Thank you!")
    finally:
        await dispose()


async def add_to_no_table() -> None:
    try:
        await add_suppression("ana@example.com", "bounce")
    finally:
        await dispose()


async def started(*middleware: Any, **options: Any) -> None:
    """Start an application that has this middleware."""
    app = FastAPI()
    app.add_middleware(*middleware, **options)
    async with Lifespan(app):
        pass


def two_arguments(message: object, extra: object) -> object:
    return message


def closed_file() -> BinaryIO:
    with Path(__file__).open("rb") as file:
        return file


async def look_at_the_body() -> None:
    with capture_mail() as mailbox:
        await send_email("ana@example.com", "Your order", "Thank you!", sender="shop@example.com")
        mailbox.last.body  # type: ignore[attr-defined]  # noqa: B018


def assert_the_body() -> None:
    with capture_mail() as mailbox:
        mailbox.assert_sent(body="Thank you!")  # type: ignore[call-arg]


async def send_many_of_one() -> None:
    async for _ in send_many(ORDER):  # type: ignore[arg-type]
        pass


async def in_one_transaction() -> None:
    async with transaction():
        pass


async def send_template() -> None:
    await send_email("ana@example.com", "Welcome", template="welcome.html")


async def send_template_of_variable() -> None:
    await send_email("ana@example.com", "Welcome", template="emails/welcome.html", context={"nane": "Ana"})


async def sync_on_the_loop() -> None:
    send_email_sync("ana@example.com", "Your order", "Thank you!")


def twice(add: Callable[[], object]) -> Mistake:
    def both() -> None:
        add()
        add()

    return both


def extension_twice() -> None:
    app = OpenViper()
    app.add_extension(Email())
    app.add_extension(Email())


def attach_twice() -> None:
    app = FastAPI()
    Email().attach(app)
    Email().attach(app)


def create_app() -> FastAPI:
    return FastAPI()


def one_argument(address: str) -> list[str]:
    return []


async def on_commit_of_a_coroutine() -> None:
    on_commit(send_email("ana@example.com", "Your order", "Thank you!"))  # type: ignore[arg-type]


def wsgi_app(environ: Any, start_response: Any) -> Any:
    return []


SETTINGS: list[Row] = [
    row(
        "the port as text",
        email(port="587"),
        """EMAIL["port"]: '587' is not allowed; give a whole number from 1 to 65535""",
    ),
    row(
        "a port that is none",
        email(port=70000),
        'EMAIL["port"]: 70000 is not allowed; give a whole number from 1 to 65535',
    ),
    row(
        "STARTTLS on the port of TLS",
        email(host="smtp.example.com", use_tls=True, port=465),
        'EMAIL["port"]: 465 expects TLS from the first byte (RFC 8314); set use_ssl, and leave use_tls out',
    ),
    row(
        "no TLS on the port of TLS",
        email(host="smtp.example.com", port=465),
        'EMAIL["port"]: 465 expects TLS from the first byte (RFC 8314); set use_ssl, and leave use_tls out',
    ),
    row(
        "TLS on the port of STARTTLS",
        email(host="smtp.example.com", use_ssl=True, port=587),
        'EMAIL["port"]: 587 begins without TLS (RFC 6409); set use_tls instead of use_ssl, or port 465',
    ),
    row(
        "both kinds of TLS",
        email(use_tls=True, use_ssl=True),
        'EMAIL["use_ssl"]: excludes EMAIL["use_tls"], and both are True; keep use_tls for STARTTLS or use_ssl',
    ),
    row(
        "a URL as host",
        email(host="smtp://smtp.example.com"),
        "EMAIL[\"host\"]: 'smtp://smtp.example.com' is not a bare host name or address; give a host name or IP "
        "address, without scheme and port",
    ),
    row(
        "the port in the host",
        email(host="smtp.example.com:587"),
        "EMAIL[\"host\"]: 'smtp.example.com:587' contains a port, which has its own setting; give a host name or "
        "IP address, without scheme and port",
    ),
    row(
        "a password without a user",
        email(**SERVER, password="x"),
        'EMAIL["password"]: is given without a user name; give username, or leave it out',
    ),
    row(
        "a user without a password",
        email(**SERVER, username="x"),
        'EMAIL["username"]: is given without a password; give password (or xoauth2_token), or leave it out',
    ),
    row(
        "a login in clear text",
        email(host="smtp.example.com", username="x", password="y"),
        "EMAIL[\"username\"]: would be sent to 'smtp.example.com' in clear text; set use_tls (STARTTLS) or use_ssl, or "
        "use a server on this machine",
    ),
    row(
        "a password with the line end of its file",
        email(**SERVER, username="x", password="secret\n"),
        'EMAIL["password"]: *** has a control character or a line break; give None or a string without control '
        "characters",
    ),
    row(
        "a timeout as text",
        email(timeout="10"),
        f"EMAIL[\"timeout\"]: '10' is not a number with a known unit; give {SECONDS}",
    ),
    row("a flag as text", email(use_tls="true"), """EMAIL["use_tls"]: 'true' is not allowed; give True or False"""),
    row(
        "a rate without a period",
        email(rate_limit=14),
        'EMAIL["rate_limit"]: 14 is not a string; give None or a rate such as "14/second", "500/minute" or '
        '"14/second shared"',
    ),
    row("a misspelt key", email(hots="x"), f"""EMAIL["hots"]: {NO_KEY} 'host'?"""),
    row(
        "Django's key",
        email(EMAIL_HOST_USER="x"),
        f"""EMAIL["EMAIL_HOST_USER"]: {NO_KEY} 'username'?""",
    ),
    row(
        "Flask-Mail's key",
        email(MAIL_SERVER="x"),
        f"""EMAIL["MAIL_SERVER"]: {NO_KEY} 'host'?""",
    ),
    row(
        "fastapi-mail's key",
        email(MAIL_STARTTLS=True),
        f"""EMAIL["MAIL_STARTTLS"]: {NO_KEY} 'use_tls'?""",
    ),
    row("Nodemailer's key", email(secure=True), f"""EMAIL["secure"]: {NO_KEY} 'use_ssl'?"""),
    row("EMAIL as JSON", project(EMAIL='{"host": "x"}'), "EMAIL: is a str; give a dict of settings"),
    row(
        "EMAIL as JSON in the environment",
        environment(EMAIL='{"host": "x"}'),
        "EMAIL (environment): a dict is not read from there; give a variable for each setting, such as EMAIL_HOST",
    ),
    row(
        "Django's settings in the module",
        project(EMAIL_HOST="smtp.example.com", EMAIL_HOST_USER="x"),
        'EMAIL_HOST in settings.configure(): is not read there; write EMAIL = {"host": ...}\n'
        'EMAIL_HOST_USER in settings.configure(): is not read there; write EMAIL = {"username": ...}',
    ),
    row(
        "Django's sender in the module",
        project(DEFAULT_FROM_EMAIL="shop@example.com"),
        'DEFAULT_FROM_EMAIL in settings.configure(): is not read there; write EMAIL = {"default_sender": ...}',
    ),
    row(
        "Django's login in the environment",
        environment(EMAIL_HOST="smtp.example.com", EMAIL_HOST_USER="x"),
        "EMAIL_HOST_USER (environment): is not read; name it EMAIL_USERNAME",
    ),
    row(
        "a word as port in the environment",
        environment(EMAIL_PORT="smtp"),
        "EMAIL_PORT (environment): 'smtp' is not allowed; give a whole number from 1 to 65535",
    ),
    row(
        "a settings module that is not there",
        module("shop.setings"),
        f"{SETTINGS_VARIABLE}: there is no module 'shop.setings' on the import path; the import path is "
        f"{', '.join(sys.path[:3])}, ...",
    ),
    row(
        "a settings module with its extension",
        module("settings.py"),
        f"{SETTINGS_VARIABLE}: 'settings.py' is a file; give the module's dotted name, 'settings'",
    ),
    row(
        "a settings module as a path",
        module("shop/settings"),
        f"{SETTINGS_VARIABLE}: 'shop/settings' is not the dotted name of a module such as 'shop.settings'",
    ),
    row(
        "DEBUG as text, which is true whatever it says",
        with_setting(debug, DEBUG="False"),
        "DEBUG: 'False' is text; give True or False, such as os.environ.get('DEBUG') == '1'",
    ),
    row(
        "configure() twice",
        twice(lambda: settings.configure(EMAIL=MEMORY)),
        "settings.configure(): settings are already in use; call it before anything else",
    ),
    row(
        "a folder of templates that is none",
        with_setting(template_dirs, TEMPLATES_DIR=5),
        "TEMPLATES_DIR: 5 is not a folder; give a path or a list of paths",
    ),
    row(
        "tasks with a URL only",
        tasks({"broker_url": "redis://localhost"}),
        'TASKS["broker"]: is missing, so the URL is not used; give "redis" or "rabbitmq"',
    ),
    row(
        "tasks with Celery's name",
        tasks({"broker": "celery"}),
        'TASKS["broker"]: \'celery\' is not allowed; give "redis", "rabbitmq" or "stub"',
    ),
    row(
        "the URL of another broker",
        tasks({"broker": "rabbitmq", "broker_url": "redis://localhost"}),
        'TASKS["broker_url"]: is not a URL for rabbitmq; give one that begins with amqp:// or amqps://',
    ),
    row(
        "tasks with another key",
        tasks({"broker": "redis", "url": "x"}),
        f"""TASKS["url"]: {NO_KEY} 'broker_url'?""",
    ),
    row("tasks as a URL", tasks("redis://localhost"), "TASKS: is a str; give a dict of settings"),
    row(
        "a task without a broker",
        with_setting(get_broker),
        'TASKS["enabled"]: is not set, so there is no broker; set TASKS["broker"]; '
        "the settings come from settings.configure()",
    ),
    row(
        "a synchronous database driver",
        with_setting(in_one_transaction, DATABASE_URL="postgresql+psycopg2://x/y"),
        "DATABASE_URL: 'postgresql+psycopg2' is not an asynchronous driver; name one, such as postgresql+asyncpg",
    ),
    row(
        "a backend of another library",
        send({"backend": "django.core.mail.backends.smtp.EmailBackend"}),
        "EMAIL[\"backend\"]: 'django.core.mail.backends.smtp.EmailBackend' is for Django only; give SMTPBackend",
    ),
    row(
        "Django's backend for files",
        send({"backend": "django.core.mail.backends.filebased.EmailBackend"}),
        "EMAIL[\"backend\"]: 'django.core.mail.backends.filebased.EmailBackend' is for Django only; give FileBackend",
    ),
    row("Nodemailer's login", email(auth={"user": "x", "pass": "y"}), f"""EMAIL["auth"]: {NO_KEY} 'username'?"""),
    row(
        "a suppression of one argument",
        send({**MEMORY, "suppress": one_argument}),
        f'EMAIL["suppress"]: {__name__}.one_argument() is called with two arguments; write it as '
        "(addresses: list[str], stream: str | None)",
    ),
    row(
        "a backend that is not there",
        send({"backend": "smtp"}),
        "EMAIL[\"backend\"]: there is no backend 'smtp'; give SMTPBackend, ConsoleBackend, FileBackend, MemoryBackend, "
        "NullBackend or the dotted path of your own class",
    ),
    row(
        "a certificate file that is not there",
        send({**SERVER, "host": "127.0.0.1", "tls_ca_file": "/nowhere.pem", **MEMORY, "backend": "SMTPBackend"}),
        "EMAIL[\"tls_ca_file\"]: '/nowhere.pem' cannot be used: [Errno 2] No such file or directory; give a PEM file "
        "with certificates",
    ),
]

NO_MIDDLEWARE = (
    "add_middleware(Email): Email is not a middleware; write Email(settings).attach(app), or "
    "app.add_middleware(EmailMiddleware, settings=...)"
)
BY_NAME = "give its values by name: send_email(recipients=..., subject=..., text=...)"
NO_TABLE = (
    "there is no table email_suppression on DATABASE_URL; create it with `await create_suppression_table()`, or "
    "`viperctl email suppressed add`"
)

APPLICATIONS: list[Row] = [
    row(
        "settings as keywords",
        lambda: Email(host="smtp.example.com"),  # type: ignore[arg-type]
        'Email(host=...): settings are given as one dict: Email({"host": ...})',
    ),
    row(
        "settings as keywords of the middleware",
        lambda: EmailMiddleware(FastAPI(), host="smtp.example.com"),  # type: ignore[call-arg]
        'EmailMiddleware(app, host=...): settings are given as one dict: EmailMiddleware(app, {"host": ...})',
    ),
    row(
        "an application as settings",
        lambda: Email(FastAPI()),  # type: ignore[arg-type]
        "Email(FastAPI): these are settings; an application is given to Email(settings).attach(app), or "
        "EmailMiddleware(app)",
    ),
    row(
        "settings of two parts",
        lambda: Email(MEMORY, {}),  # type: ignore[arg-type]
        "Email() takes one dict of settings, and was given 2 arguments",
    ),
    row(
        "Flask's init_app()",
        lambda: Email(MEMORY).init_app(FastAPI()),  # type: ignore[attr-defined]
        "'Email' object has no attribute 'init_app'; write Email(settings).attach(app)",
    ),
    row(
        "routes on the wrapped application",
        lambda: EmailMiddleware(FastAPI()).get("/"),  # type: ignore[attr-defined]
        "'EmailMiddleware' object has no attribute 'get'; use the application itself before it is wrapped, or for "
        "Quart: app.asgi_app = EmailMiddleware(app.asgi_app)",
    ),
    row("a host as settings", lambda: Email("smtp.example.com"), "Email(str): give a dict of settings"),  # type: ignore[arg-type]
    row(
        "a class as application",
        lambda: EmailMiddleware(FastAPI),  # type: ignore[arg-type]
        "EmailMiddleware(app): 'FastAPI' is a class, not an application; give FastAPI(...)",
    ),
    row(
        "a factory as application",
        lambda: EmailMiddleware(create_app),  # type: ignore[arg-type]
        "EmailMiddleware(app): create_app() takes 0 arguments, an ASGI application takes scope, receive and send; call "
        "a factory first, and adapt a WSGI application (a2wsgi)",
    ),
    row(
        "a WSGI application",
        lambda: EmailMiddleware(wsgi_app),  # type: ignore[arg-type]
        "EmailMiddleware(app): wsgi_app() takes 2 arguments, an ASGI application takes scope, receive and send; call a "
        "factory first, and adapt a WSGI application (a2wsgi)",
    ),
    row(
        "the name of an application",
        lambda: EmailMiddleware("shop:app"),  # type: ignore[arg-type]
        "EmailMiddleware(app): 'shop:app' is not an ASGI application; give the application object",
    ),
    row(
        "attached twice",
        attach_twice,
        "Email(...).attach(FastAPI): mail was attached to this application before; attach it once",
    ),
    row(
        "attached to a class",
        lambda: Email().attach(FastAPI),  # type: ignore[type-var]
        "Email(...).attach(FastAPI): this is a class, not an application; give FastAPI(...)",
    ),
    row(
        "attached to a name",
        lambda: Email().attach("shop:app"),  # type: ignore[type-var]
        "Email(...).attach('shop:app'): this is a name; give the application object",
    ),
    row(
        "added twice",
        extension_twice,
        "add_extension('email'): this extension has already been added; add it only once",
    ),
    row(
        "a class added as extension",
        lambda: OpenViper().add_extension(Email),
        "add_extension(Email): this is a class; give an object: Email(...)",
    ),
    row(
        "the middleware added as extension",
        lambda: OpenViper().add_extension(EmailMiddleware(FastAPI())),  # type: ignore[arg-type]
        "add_extension(EmailMiddleware): this is not an extension, since it has no name",
    ),
    row(
        "a listener by its name",
        lambda: subscribe("shop.note"),  # type: ignore[arg-type]
        "subscribe(): the listener is a str; give a function that takes one MessageEvent",
    ),
]

STARTS: list[Row] = [
    row("Email added as middleware", lambda: started(Email), NO_MIDDLEWARE),
    row("Email added as middleware with settings", lambda: started(Email, MEMORY), NO_MIDDLEWARE),
    row(
        "the middleware added with an application in it",
        lambda: started(EmailMiddleware(FastAPI(), MEMORY)),
        "add_middleware(EmailMiddleware(app)): give the class, with its settings by name: "
        "app.add_middleware(EmailMiddleware, settings=...)",
    ),
]

CALLS: list[Row] = [
    row(
        "a message of the standard library",
        send(recipients=standard_message(), subject=..., text=...),
        f"recipients: must be an address or a list of addresses, not EmailMessage; {BY_NAME}, or attach it: "
        "attachments=[message]",
    ),
    row(
        "a message of the standard library with a subject",
        send(recipients=standard_message()),
        f"recipients: must be an address or a list of addresses, not EmailMessage; {BY_NAME}, or attach it: "
        "attachments=[message]",
    ),
    row(
        "a message of another library",
        send(recipients=FlaskMessage(), subject=..., text=...),
        f"recipients: must be an address or a list of addresses, not FlaskMessage; {BY_NAME}",
    ),
    row(
        "recipients of another type and no subject",
        send(recipients=7, subject=..., text=...),
        "recipients: must be an address or a list of addresses, not int",
    ),
    row(
        "a message of the standard library as copy",
        send(cc=standard_message()),
        "cc: must be an address or a list of addresses, not EmailMessage",
    ),
    row(
        "no table of suppressed addresses",
        suppress_without_a_table,
        f'EMAIL["suppress"]: openviper.db.suppression.find_suppressed failed: {NO_TABLE}; nothing was sent',
    ),
    row("no table for a suppressed address", add_to_no_table, NO_TABLE),
    row("nobody", send(recipients=[]), "recipients: there is no recipient, not even in cc or bcc; give an address"),
    row(
        "two recipients in one text",
        send(recipients="a@example.com, b@example.com"),
        "recipients: 'a@example.com, b@example.com' contains several addresses; pass a list",
    ),
    row(
        "Django's order of arguments",
        send(recipients="Your order", subject="Thank you!", text="shop@example.com", html=["ana@example.com"]),
        "recipients: 'Your order' has no '@'; recipients come first: send_email(recipients, subject, text)",
    ),
    row(
        "Django's order of arguments with a subject of one word",
        send(recipients="Hello", subject="ana@example.com"),
        "recipients: 'Hello' has no '@'; recipients come first: send_email(recipients, subject, text)",
    ),
    row(
        "smtplib's order of arguments",
        send(recipients="shop@example.com", subject=["ana@example.com"]),
        "subject: must be a str, not list; recipients come first: send_email(recipients, subject, text)",
    ),
    row(
        "Django's list of recipients as html",
        send(html=["ana@example.com"]),
        "html: must be a str, not list; recipients come first: send_email(recipients, subject, text), the sender is "
        "sender=",
    ),
    row(
        "a template's values as html",
        send(html={"name": "Ana"}),
        "html: must be a str, not dict; a template's values are given as context=",
    ),
    row(
        "template and context in each other's places",
        template({"name": "Ana"}, context="emails/welcome.html"),
        "template: must be the name of a file, not its values; these are given as context=",
    ),
    row(
        "a template as a path",
        template(Path("emails/welcome.html")),
        "template 'emails/welcome.html': the name must be a str, not PosixPath; write 'emails/hi.txt'",
    ),
    row(
        "recipients for render_email()",
        lambda: render_email("ana@example.com", "Your order", "Thank you!"),
        "render_email() takes the subject first, not recipients, but the first value is an address: write "
        "render_email(subject, text, recipients=...), or subject=... if the address is the subject",
    ),
    row(
        "too many values by position",
        lambda: send_email(*["ana@example.com"] * 13),  # type: ignore[arg-type]
        "send_email() takes at most 12 values by position, and was given 13; give those after sender by name",
    ),
    row(
        "verify() of an address",
        lambda: verify("ana@example.com"),  # type: ignore[call-arg]
        "verify() takes at most 0 values by position, and was given 1; give them by name",
    ),
    row(
        "a flag as text in a call",
        send(fail_silently="false"),
        "fail_silently: must be True, False or None, not 'false'",
    ),
    row(
        "a queue's name as background",
        send(background="emails"),
        "background: must be True, False or None, not 'emails'",
    ),
    row(
        "an attachment's content before its name",
        send(attachments=[(b"x", "invoice.pdf")]),
        "attachment 'attachments[0]': its filename must be a str, not bytes; write (filename, content)",
    ),
    row(
        "a dict to enqueue",
        lambda: enqueue_email_job(ORDER),  # type: ignore[arg-type]
        "enqueue_email_job() takes one EmailMessageData, not dict; write EmailMessageData(recipients=..., subject=..., "
        "text=...)",
    ),
    row(
        "Nodemailer's one dict",
        send(recipients={"to": "ana@example.com", "subject": "Your order"}, subject=..., text=...),
        "recipients: must be an address or a list of addresses, not a whole message as a dict; give its values by "
        "name: send_email(recipients=..., subject=..., text=...)",
    ),
    row(
        "Nodemailer's recipient",
        send(recipients={"name": "Ana", "address": "ana@example.com"}),
        "recipients: must be an address or a list of addresses, not dict; give [(name, address)], or the address alone",
    ),
    row(
        "Nodemailer's media type of an attachment",
        send(attachments=[{"content": b"x", "contentType": "text/csv"}]),
        "attachment 'attachments[0]': unknown key 'contentType'; did you mean 'mimetype'?",
    ),
    row(
        "a part for Django's attach()",
        send(attachments=[MIMEApplication(b"x")]),
        "attachment 'attachments[0]': is a MIME part, not a message; give (filename, part.get_payload(decode=True), "
        "mimetype)",
    ),
    row(
        "a template's text as its name",
        template("<p>Welcome, {{ name }}</p>"),
        "template '<p>Welcome, {{{{ name }}}}</p>': this is a template's text, not the name of a file; give text as "
        "text= or html=",
    ),
    row(
        "Django's tags in a template",
        template("emails/django.html"),
        "template 'emails/django.html': line 1: Encountered unknown tag 'url'. Templates are Jinja2, which does not "
        "have this Django tag.",
    ),
    row(
        "a variable that is not given",
        with_setting(send_template_of_variable, EMAIL=MEMORY, DEBUG=True),
        "template 'emails/welcome.html': line 1: 'name' is undefined; give it in context, or test for it: "
        "{{% if ... is defined %}}",
    ),
    row(
        "a coroutine for on_commit()",
        on_commit_of_a_coroutine,
        "on_commit(): the callback is a coroutine, not a function; write on_commit(lambda: send_email(...)), or await "
        "the call inside transaction(), which holds its mail",
    ),
    row("no subject", send(subject=None), "subject is missing: give one, or a template with a 'subject' block"),
    row(
        "a line break in the subject",
        send(subject="Your\norder"),
        "subject: contains LF, which no header may contain; remove it",
    ),
    row("no body", send(text=...), 'text: there is no body; give text (text="" is valid), html or a template'),
    row("bytes as text", send(text=b"x"), "text: must be a str, not bytes; decode it"),
    row(
        "no sender",
        send({"backend": "MemoryBackend"}),
        'EMAIL["default_sender"]: is not set, and the message names no sender; set it, or pass sender=; '
        "the settings come from settings.configure()",
    ),
    row(
        "two senders",
        send(sender="a@example.com, b@example.com"),
        "sender: 'a@example.com, b@example.com' contains several addresses; this takes one address",
    ),
    row(
        "From among the headers",
        send(headers={"From": "x@example.com"}),
        "headers['From']: cannot be set here; use the argument sender",
    ),
    row("a header's number", send(headers={"X-Priority": 1}), "headers['X-Priority']: must be a str, not int"),
    row(
        "a file that is not there",
        send(attachments=["invoice.pdf"]),
        "attachment 'invoice.pdf': there is no file 'invoice.pdf' in the working directory '{cwd}'; a str is a path or "
        'a URL, text is given as {{"content": ...}}',
    ),
    row(
        "a file that is not there, by its whole path",
        send(attachments=["/nowhere/invoice.pdf"]),
        "attachment 'invoice.pdf': there is no file '/nowhere/invoice.pdf'; a str is a path or a URL, text is given as "
        '{{"content": ...}}',
    ),
    row(
        "a folder as attachment",
        send(attachments=["templates"]),
        "attachment 'templates': 'templates' is a directory; only regular files can be attached",
    ),
    row(
        "an attachment of this machine",
        send(attachments=["http://127.0.0.1/invoice.pdf"]),
        "attachment 'invoice.pdf': the host '127.0.0.1' has an address that is not public; "
        'EMAIL["attachment_hosts"] can allow an internal host',
    ),
    row(
        "a template one letter away",
        template("emails/welcom.html"),
        "template 'emails/welcom.html': there is no emails/welcom.html in {cwd}/templates; "
        "did you mean 'emails/welcome.html'?",
    ),
    row(
        "a template's stem one letter away",
        template("emails/wellcome"),
        "template 'emails/wellcome': there is no emails/wellcome with one of .txt, .html, .htm, .md in "
        "{cwd}/templates; did you mean 'emails/welcome'?",
    ),
    row(
        "a template with its folder",
        template("templates/emails/welcome.html"),
        "template 'templates/emails/welcome.html': there is no templates/emails/welcome.html in {cwd}/templates; "
        "did you mean 'emails/welcome.html'?",
    ),
    row(
        "a folder of templates that is not there",
        with_setting(send_template, EMAIL=MEMORY, TEMPLATES_DIR="mails"),
        "template 'welcome.html': there is no welcome.html, since there is no folder {cwd}/mails; "
        "correct TEMPLATES_DIR",
    ),
    row(
        "another template",
        template("emails/invoice.html"),
        "template 'emails/invoice.html': there is no emails/invoice.html in {cwd}/templates",
    ),
    row(
        "a template by its whole path",
        template("/srv/templates/emails/welcome.html"),
        "template '/srv/templates/emails/welcome.html': the name must be relative, with '/' between folders; name a "
        "file below the template folders, such as 'emails/hi.txt'",
    ),
    row(
        "a template with a syntax error",
        template("emails/broken.html"),
        "template 'emails/broken.html': line 1: unexpected end of template, expected 'end of print statement'.",
    ),
    row(
        "values without a template",
        send(context={"name": "Ana"}),
        "context is given without a template: name the template, or leave the context out",
    ),
    row(
        "a time without a zone",
        send(send_at=datetime(2030, 1, 1)),  # noqa: DTZ001 - the mistake
        "send_at: must be a datetime with a time zone, such as datetime.now(UTC)",
    ),
    row(
        "a later time without a queue",
        send(send_at=datetime.now(UTC) + timedelta(hours=1)),
        'send_at, delay: no broker can keep the message until then; set TASKS["broker"]',
    ),
    row(
        "a delay as text",
        send(delay="5 minutes"),
        "delay: must be seconds (0 or more) or a timedelta that is not negative",
    ),
    row(
        "the synchronous call on the event loop",
        sync_on_the_loop,
        "send_email_sync() would block the event loop: use 'await send_email(...)' here",
    ),
    row(
        "many messages awaited",
        lambda: send_many([ORDER]),
        "iterate over send_many() instead of awaiting it: async for receipt in send_many(...)",
    ),
    row(
        "a template's values as keywords",
        template("emails/welcome.html", customer="Ana"),
        "send_email() got an unexpected keyword argument 'customer'; a template's values are given as context={{...}}",
    ),
    row(
        "a hook of two arguments",
        send({**MEMORY, "before_send": two_arguments}),
        f'EMAIL["before_send"]: {__name__}.two_arguments() is called with one argument; write it as '
        "(message: EmailMessageData)",
    ),
    row(
        "a file that was closed",
        send(attachments=[closed_file()]),
        "attachment 'test_typical_mistakes.py': is closed; send while it is open (frameworks close uploads with the "
        "response, before background tasks)",
    ),
    row(
        "a message's part by another library's name",
        look_at_the_body,
        "'SentMessage' object has no attribute 'body'; did you mean 'text'?",
    ),
    row(
        "a criterion by another library's name",
        assert_the_body,
        "there is no criterion 'body'; did you mean 'text_contains'?",
    ),
    row(
        "one message as many",
        send_many_of_one,
        "send_many(): takes many messages; give a list, or one message to send_email()",
    ),
]


def libraries(files: list[str]) -> list[str]:
    """Return the files that are neither the package's nor the test's."""
    return [file for file in files if "site-packages" in file or not file.startswith(str(ROOT))]


def named(rows: list[Row]) -> list[Any]:
    return [pytest.param(mistake, text, id=name) for name, mistake, text in rows]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with three templates, two of them broken, and no settings module."""
    emails = tmp_path / "templates" / "emails"
    emails.mkdir(parents=True)
    (emails / "welcome.html").write_text("<p>Welcome, {{ name }}</p>")
    (emails / "broken.html").write_text("<p>Welcome, {{ name")
    (emails / "django.html").write_text("<a href=\"{% url 'home' %}\">Home</a>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def text_of(mistake: Mistake) -> tuple[str, list[str]]:
    """Make the mistake; return the error's text, and the files of all frames that a traceback would show."""
    try:
        made = mistake()
        if isinstance(made, Awaitable):
            await made
    except (OpenViperError, AttributeError, RuntimeError, TypeError) as error:
        whole = traceback.TracebackException.from_exception(error)
        before = whole.__cause__ or (None if whole.__suppress_context__ else whole.__context__)
        return str(error), [] if before is None else [frame.filename for frame in before.stack]
    raise AssertionError("nothing was said")


@pytest.mark.parametrize(("mistake", "text"), named(SETTINGS + APPLICATIONS + STARTS))
async def test_a_wrong_setting_or_application_is_named_with_the_remedy(mistake: Mistake, text: str) -> None:
    said, buried = await text_of(mistake)
    assert said == text
    assert libraries(buried) == []


@pytest.mark.parametrize(("mistake", "text"), named(CALLS))
async def test_a_wrong_call_is_named_with_the_remedy(mistake: Mistake, text: str, folder: Path) -> None:
    said, buried = await text_of(mistake)
    assert said == text.format(cwd=folder)
    assert libraries(buried) == []


@pytest.mark.parametrize(
    ("verb", "reply", "remedy"),
    [
        ("MAIL", "530 5.7.0 Authentication required", 'set EMAIL["username"] and EMAIL["password"]'),
        ("MAIL", "530 5.7.0 Must issue a STARTTLS command first", 'set EMAIL["use_tls"] (STARTTLS, port 587)'),
        ("MAIL", "553 5.7.1 Sender address rejected", 'use an EMAIL["default_sender"] from which this login may send'),
        ("RCPT", "550 5.1.1 No such user", "correct the address, or do not mail it again"),
        ("MAIL", "554 Message rejected: Email address is not verified.", "verify the address or domain of EMAIL"),
    ],
)
async def test_a_refusal_has_its_remedy(verb: str, reply: str, remedy: str) -> None:
    with SmtpServer() as server:
        server.fault(verb, reply)
        settings.configure(EMAIL=server.settings(default_sender="shop@example.com"))
        with pytest.raises(DeliveryError) as caught:
            await send_email("ana@example.com", "Your order", "Thank you!")
    assert reply.partition(" ")[2] in str(caught.value)
    assert [note for note in caught.value.__notes__ if note.startswith(f"-> {remedy}")]


SCRIPT = """
import asyncio, sys
import openviper.core.email as mail
asyncio.run(mail.send_email("ana@example.com", "Your order", "Thank you!", sender=sys.argv[1] or None))
"""


def run_script(folder: Path, sender: str = "", **variables: str) -> list[str]:
    """Return what a script prints that sends one message; it is in ``folder``."""
    (folder / "script.py").write_text(SCRIPT)
    done = Cli(folder).run_program([sys.executable, "script.py", sender], **variables)
    assert done.returncode == 1
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("settings.py", f"set {SETTINGS_VARIABLE}=settings"),
        ("elsewhere.py", f"set {SETTINGS_VARIABLE}, or call settings.configure()"),
    ],
)
def test_settings_that_nothing_reads_are_found(folder: Path, file: str, remedy: str) -> None:
    (folder / file).write_text("EMAIL = {'default_sender': 'shop@example.com'}")
    assert run_script(folder)[-1] == (
        'openviper.exceptions.ImproperlyConfigured: EMAIL["default_sender"]: is not set, and the message names no '
        f"sender; set it, or pass sender=; no settings module was read: {remedy}"
    )


def test_the_settings_module_that_was_read_is_named_with_its_file(folder: Path) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "settings.py").write_text("EMAIL = {}")
    assert run_script(folder, **{SETTINGS_VARIABLE: "shop.settings"})[-1].endswith(
        f"the settings come from shop.settings ({folder}/shop/settings.py)"
    )


def test_a_server_that_is_not_there_is_told_without_the_frames_of_libraries(folder: Path) -> None:
    lines = run_script(folder, "shop@example.com", EMAIL_HOST="127.0.0.1", EMAIL_PORT="1")
    assert "openviper.core.email.errors.ConnectionFailed: 127.0.0.1:1: connecting: Connection refused" in lines
    assert not [line for line in lines if "site-packages" in line or "selector_events" in line]


def test_a_worker_in_the_wrong_folder_says_which_settings_it_has(folder: Path) -> None:
    done = Cli(folder).run("runworker", "templates")
    assert done.returncode == 1
    assert done.stderr == (
        'Error: no broker is configured: set TASKS = {"broker": "redis", "broker_url": "redis://..."}; '
        f"there is no settings.py in {folder}/templates: give the project's folder, or --settings\n"
    )


TASK = "from openviper.tasks import actor\n\n\n@actor\ndef hello() -> None: ...\n"
NO_SETTINGS = f"no settings module was read: set {SETTINGS_VARIABLE}, or call settings.configure()"
BY_HAND = (
    "this module declares no tasks: queued mail and tasks are run by `viperctl runworker PATH`, with the project's "
    "folder as PATH"
)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("openviper.core.email.queue", f"dramatiq: openviper.core.email.queue: {NO_SETTINGS}; {BY_HAND}"),
        ("openviper.tasks", f"dramatiq: openviper.tasks: {NO_SETTINGS}; {BY_HAND}"),
        (
            "jobs",
            'dramatiq: TASKS["enabled"]: is not set, so there is no broker; set TASKS["broker"]; ' + NO_SETTINGS,
        ),
    ],
)
def test_dramatiqs_own_command_without_settings_ends_with_one_line(folder: Path, module: str, line: str) -> None:
    (folder / "jobs.py").write_text(TASK)
    done = Cli(folder).run_program([sys.executable, "-m", "dramatiq", module, "--processes", "1", "--path", folder])
    assert done.returncode != 0
    assert line in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["status", "failed"])
def test_a_look_at_the_queue_from_the_wrong_folder_says_which_settings_it_has(folder: Path, command: str) -> None:
    done = Cli(folder).run("email", command, *(["list"] if command == "failed" else []), "--project", "templates")
    assert done.stderr == (
        'Error: mail is not queued: set TASKS["broker"] to "redis" or "rabbitmq", or EMAIL["outbox"]; '
        f"there is no settings.py in {folder}/templates: give the project's folder, or --settings\n"
    )


def test_a_worker_with_settings_of_another_project_names_their_file(folder: Path) -> None:
    (folder / "settings.py").write_text("DEBUG = True")
    done = Cli(folder).run("runworker", ".")
    assert done.stderr.endswith(f"; the settings come from settings ({folder}/settings.py)\n")


@pytest.mark.parametrize(
    ("broker", "library", "extra"), [("redis", "redis", "redis"), ("rabbitmq", "pika", "rabbitmq")]
)
async def test_a_brokers_missing_library_stops_the_start(
    broker: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    settings.configure(EMAIL={**MEMORY, "backend": "SMTPBackend"}, TASKS={"broker": broker})
    text = (
        f'TASKS["broker"] = "{broker}" needs \'{library}\', which is not installed: '
        f"pip install 'openviper-email[{extra}]'"
    )
    for app in (EmailMiddleware(FastAPI()), Email().attach(FastAPI())):
        with pytest.raises(MissingDependency) as caught:
            async with Lifespan(app):
                pass
        assert str(caught.value) == text
    with pytest.raises(MissingDependency):
        await send_email("ana@example.com", "Your order", "Thank you!")


async def test_a_database_in_the_environment_that_is_not_read_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://shop:secret@db/shop")
    for _ in range(2):
        async with transaction():
            pass
        await dispose()
    (warning,) = [record for record in caplog.records if record.name == "openviper.db"]
    assert warning.getMessage() == (
        "DATABASE_URL (environment) is not read, so sqlite+aiosqlite:///db.sqlite3 is used; write "
        "DATABASE_URL = os.environ['DATABASE_URL'] in the settings module; no settings module was read: "
        f"set {SETTINGS_VARIABLE}, or call settings.configure()"
    )


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ("send --to ana@example.com", "addresses are arguments: viperctl email send ADDRESSES..."),
        ("send ana@example.com --sender s@example.com", "did you mean '--from'?"),
        ("send ana@example.com --subject Hi", "the test message has a subject and a text of its own"),
        ("suppressed add --address ana@example.com", "addresses are arguments: viperctl email suppressed add ADDRESS"),
    ],
)
def test_an_option_of_other_programs_has_its_remedy(folder: Path, options: str, remedy: str) -> None:
    done = Cli(folder).run("email", *options.split())
    option = next(word for word in options.split() if word.startswith("--"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"Error: No such option '{option}'; {remedy}"


def test_many_messages_that_are_never_iterated_are_warned_of(folder: Path) -> None:
    (folder / "script.py").write_text("import openviper.core.email as mail\nmail.send_many([])\n")
    done = Cli(folder).run_program([sys.executable, "script.py"])
    assert (
        "script.py:2: RuntimeWarning: send_many() was never iterated, so nothing was sent: "
        "async for receipt in send_many(...)"
    ) in done.stderr


def test_a_call_that_is_not_awaited_is_named(folder: Path) -> None:
    (folder / "script.py").write_text(
        "import openviper.core.email as mail\nmail.send_email('a@example.com', 'Hello', 'Hi')"
    )
    done = Cli(folder).run_program([sys.executable, "script.py"])
    assert "RuntimeWarning: coroutine 'send_email' was never awaited" in done.stderr


def test_there_are_enough_of_them() -> None:
    assert len(SETTINGS + APPLICATIONS + STARTS + CALLS) >= 60
