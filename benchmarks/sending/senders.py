"""The senders: this component and its peers, each used as its documentation recommends for many messages.

Run as a process in the measured sender's environment: ``python senders.py NAME --port ...``.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from content import Content
from measure import Stopwatch, print_result

HOST = "127.0.0.1"
TO = "customer@example.com"
FILE_NAME = "photos.zip"
FILE_TYPE = ("application", "zip")


class Job:
    """Content, server and number of connections of a run. Message 0 has no attachment."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.port: int = options.port
        self.to = TO if options.recipients == 1 else [f"customer{n}@example.com" for n in range(options.recipients)]
        self.connections: int = options.concurrency
        self.content = Content.read(options.content)
        path = self.content.attachment
        self.attachment = None if path is None else Path(path).read_bytes()
        self.stopwatch = Stopwatch(
            concurrency=options.concurrency, seconds=options.seconds, warm=options.warm, messages=options.messages
        )


def _configure(job: Job) -> None:
    from openviper.conf import settings

    email = {"host": HOST, "port": job.port, "default_sender": job.content.sender, "pool_size": job.connections}
    if job.content.template is None:
        settings.configure(EMAIL=email)
    else:
        settings.configure(EMAIL=email, TEMPLATES_DIR=str(Path(job.content.template).parent))


def _newsletter(job: Job, n: int) -> dict[str, Any]:
    template = job.content.template
    assert template is not None
    subject = job.content.filled(n)[0]
    return {"recipients": TO, "subject": subject, "template": Path(template).name, "context": job.content.context(n)}


async def openviper(job: Job) -> dict[str, float]:
    """Measure this component's ``send_email`` over its pool."""
    from openviper.core.email import send_email

    _configure(job)
    attachments = None if job.attachment is None else [(FILE_NAME, job.attachment, "/".join(FILE_TYPE))]

    async def send(n: int) -> None:
        subject, text, html = job.content.filled(n)
        await send_email(job.to, subject, text, html, attachments=attachments if n else None)

    async def send_newsletter(n: int) -> None:
        await send_email(**_newsletter(job, n))

    return await job.stopwatch.run(send if job.content.template is None else send_newsletter)


async def openviper_many(job: Job, *, pipeline: bool = False) -> dict[str, float]:
    """Measure this component's ``send_many``."""
    from openviper.core.email import send_many

    _configure(job)

    async def stream(numbers: Iterator[int]) -> AsyncIterator[object]:
        async for receipt in send_many((message(n) for n in numbers), pipeline=pipeline):
            if receipt.error is not None:
                raise receipt.error
            yield receipt

    def message(n: int) -> dict[str, Any]:
        if job.content.template is not None:
            return _newsletter(job, n)
        subject, text, html = job.content.filled(n)
        return {"recipients": TO, "subject": subject, "text": text, "html": html}

    return await job.stopwatch.run_stream(stream)


async def openviper_0_1_1(job: Job) -> dict[str, float]:
    """Measure ``send_email`` of openviper 0.1.1, which connects for each message."""
    from openviper.conf import settings
    from openviper.core.email import send_email

    email = {"host": HOST, "port": job.port, "default_sender": job.content.sender, "background": False}
    settings.configure(_with_email(email))
    attachments: list[object] = [] if job.attachment is None else [(FILE_NAME, job.attachment, "/".join(FILE_TYPE))]

    async def send(n: int) -> None:
        subject, text, html = job.content.filled(n)
        await send_email(TO, subject, text=text, html=html, attachments=attachments if n else None)

    return await job.stopwatch.run(send)


def _with_email(email: dict[str, object]) -> Any:
    from openviper.conf.settings import Settings

    return Settings(EMAIL=email)


async def aiosmtplib(job: Job) -> dict[str, float]:
    """Measure aiosmtplib with one connection for each concurrent message, built by the standard library."""
    from aiosmtplib import SMTP

    clients: asyncio.LifoQueue[SMTP] = asyncio.LifoQueue()
    for _ in range(job.connections):
        client = SMTP(hostname=HOST, port=job.port, start_tls=False)
        await client.connect()
        clients.put_nowait(client)

    async def send(n: int) -> None:
        message = _standard_message(job, n)
        client = await clients.get()
        try:
            await client.send_message(message)
        finally:
            clients.put_nowait(client)

    result = await job.stopwatch.run(send)
    while not clients.empty():
        await clients.get_nowait().quit()
    return result


def _standard_message(job: Job, n: int) -> Any:
    from email.message import EmailMessage
    from email.utils import formatdate, make_msgid

    message = EmailMessage()
    message["Subject"], text, html = job.content.filled(n)
    message["From"] = job.content.sender
    message["To"] = TO
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="shop.test")
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    if n and job.attachment is not None:
        maintype, subtype = FILE_TYPE
        message.add_attachment(job.attachment, maintype=maintype, subtype=subtype, filename=FILE_NAME)
    return message


async def fastapi_mail(job: Job) -> dict[str, float]:
    """Measure fastapi-mail, which connects for each message."""
    from fastapi_mail import ConnectionConfig, FastMail, MessageSchema, MessageType, MultipartSubtypeEnum
    from markupsafe import Markup

    config = ConnectionConfig(
        MAIL_USERNAME="", MAIL_PASSWORD="", MAIL_FROM="shop@example.com", MAIL_FROM_NAME="Vipera Shop",
        MAIL_SERVER=HOST, MAIL_PORT=job.port, MAIL_STARTTLS=False, MAIL_SSL_TLS=False, USE_CREDENTIALS=False,
        VALIDATE_CERTS=False,
        TEMPLATE_FOLDER=None if job.content.template is None else Path(job.content.template).parent,
    )  # fmt: skip
    mail = FastMail(config)
    attachments: list[Any] = []
    if job.attachment is not None:
        maintype, subtype = FILE_TYPE
        attachments = [{"file": job.content.attachment, "mime_type": maintype, "mime_subtype": subtype}]

    render: Callable[..., str] | None = None
    if job.content.template is not None:
        # It derives no text, so the HTML is rendered here; Jinja2's own function takes the tags out of it.
        render = config.template_engine().get_template(Path(job.content.template).name).render

    async def send(n: int) -> None:
        subject, text, html = job.content.filled(n)
        if render is not None:
            html = render(job.content.context(n))
            text = Markup(html).striptags()
        message = MessageSchema(
            subject=subject, recipients=[TO], body=html, alternative_body=text, subtype=MessageType.html,
            multipart_subtype=MultipartSubtypeEnum.alternative, attachments=attachments if n else [],
        )  # fmt: skip
        await mail.send_message(message)

    return await job.stopwatch.run(send)


def django(job: Job) -> dict[str, float]:
    """Measure Django's EmailMultiAlternatives; each thread keeps a connection open."""
    import django as framework
    from django.conf import settings
    from django.core.mail import EmailMultiAlternatives
    from django.core.mail.backends.smtp import EmailBackend
    from django.template.loader import render_to_string
    from django.utils.html import strip_tags

    template = None if job.content.template is None else Path(job.content.template)
    folders = [] if template is None else [template.parent]
    settings.configure(TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": folders}])
    framework.setup()

    def open_sender() -> Callable[[int], object]:
        connection = EmailBackend(host=HOST, port=job.port)
        connection.open()

        def send(n: int) -> None:
            subject, text, html = job.content.filled(n)
            if template is not None:
                html = render_to_string(template.name, job.content.context(n))
                text = strip_tags(html)
            message = EmailMultiAlternatives(subject, text, job.content.sender, [TO])
            message.attach_alternative(html, "text/html")
            if n and job.attachment is not None:
                message.attach(FILE_NAME, job.attachment, "/".join(FILE_TYPE))
            connection.send_messages([message])

        return send

    return job.stopwatch.run_threads(open_sender)


def emails(job: Job) -> dict[str, float]:
    """Measure the ``emails`` library; each thread keeps a connection open."""
    from emails import Message
    from emails.backend import SMTPBackend

    def open_sender() -> Callable[[int], object]:
        backend = SMTPBackend(host=HOST, port=job.port)

        def send(n: int) -> None:
            subject, text, html = job.content.filled(n)
            message = Message(subject=subject, text=text, html=html, mail_from=("Vipera Shop", "shop@example.com"))
            if n and job.attachment is not None:
                message.attach(filename=FILE_NAME, data=job.attachment, mime_type="/".join(FILE_TYPE))
            response = message.send(to=TO, smtp=backend)
            if not response.success:
                raise RuntimeError(f"emails: {response.error}")

        return send

    return job.stopwatch.run_threads(open_sender)


def flask_mail(job: Job) -> dict[str, float]:
    """Measure Flask-Mail; each thread keeps a connection open."""
    from flask import Flask
    from flask_mail import Mail, Message

    app = Flask("benchmark")
    app.config.update(MAIL_SERVER=HOST, MAIL_PORT=job.port, MAIL_DEFAULT_SENDER=job.content.sender)
    mail = Mail(app)

    def open_sender() -> Callable[[int], object]:
        with app.app_context():
            connection = mail.connect().__enter__()

        def send(n: int) -> None:
            subject, text, html = job.content.filled(n)
            with app.app_context():
                message = Message(subject, recipients=[TO], body=text, html=html)
                if n and job.attachment is not None:
                    message.attach(FILE_NAME, "/".join(FILE_TYPE), job.attachment)
                connection.send(message)

        return send

    return job.stopwatch.run_threads(open_sender)


COROUTINES: dict[str, Callable[[Job], Coroutine[Any, Any, dict[str, float]]]] = {
    "openviper": openviper,
    "openviper on uvloop": openviper,
    "openviper send_many": openviper_many,
    "openviper pipeline": partial(openviper_many, pipeline=True),
    "openviper-0.1.1": openviper_0_1_1,
    "aiosmtplib": aiosmtplib,
    "fastapi-mail": fastapi_mail,
}
THREADED: dict[str, Callable[[Job], dict[str, float]]] = {"Django": django, "emails": emails, "Flask-Mail": flask_mail}


def main() -> None:
    """Run the command line of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*COROUTINES, *THREADED])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--content", required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warm", type=float, default=0.3)
    parser.add_argument("--messages", type=int)
    parser.add_argument(
        "--recipients", type=int, default=1, help="recipients of each message; only openviper supports more than one"
    )
    options = parser.parse_args()
    job = Job(options)
    if options.name in THREADED:
        print_result(THREADED[options.name](job))
    elif options.name.endswith("on uvloop"):
        import uvloop

        print_result(uvloop.run(COROUTINES[options.name](job)))
    else:
        print_result(asyncio.run(COROUTINES[options.name](job)))


if __name__ == "__main__":
    main()
