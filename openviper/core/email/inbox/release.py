"""Send a copy of a message to another address: marked as a copy, and never to the message's own recipients."""

from datetime import UTC, datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from openviper.core.email.addresses import read_address
from openviper.core.email.delivery import Mailer
from openviper.core.email.delivery.redirect import describe_redirect
from openviper.core.email.errors import InvalidAddress, InvalidMessage
from openviper.core.email.events import NOTHING
from openviper.core.email.inbox.entries import Entry, key_of
from openviper.core.email.inbox.forms import read_form
from openviper.core.email.inbox.list_view import ListView
from openviper.core.email.inbox.lookup import NOT_KEPT, entry_or_404, message_or_404
from openviper.core.email.inbox.responses import PageRenderer
from openviper.core.email.inbox.store import Store
from openviper.core.email.message import OutgoingMessage, new_message_id
from openviper.core.email.message.model import MUST_KEY, MUST_MAILER, read_only
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.unsubscribe import disarm_links
from openviper.core.email.settings import DEFAULT_MAILER, debug
from openviper.exceptions import ImproperlyConfigured

__all__ = ["ReleasePages"]

_HEADER, _PREFIX = "X-Copy-Of", "[Copy] "
# Beginnings of header names, in lower case: the reader of a copy must not unsubscribe the recipient, nor confirm
# for the recipient that the message was read.
_LEFT_OUT = (_HEADER.lower(), "list-unsubscribe", "disposition-notification-to", "return-receipt-to")
_ROOM = 2**20  # bytes that a copy may be larger than what was accepted, for its header and subject


class ReleasePages:
    """Routes at ``/KEY/release``, which need ``DEBUG``: the page has no login, and they send to any address."""

    def __init__(self, renderer: PageRenderer, store: Store, mailer: Mailer) -> None:
        self._renderer = renderer
        self._store = store
        self._mailer = mailer
        self.routes = [
            Route("/{key}/release", self._form),
            Route("/{key}/release", self._send, methods=["POST"]),
        ]

    async def _form(self, request: Request) -> Response:
        entry = await self._entry(request)
        return await self._page(request, entry, entry.prepared.mailer)

    async def _send(self, request: Request) -> Response:
        entry = await self._entry(request)
        form = await read_form(request)
        to, mailer = form.get("to", [""])[0], form.get("mailer", [DEFAULT_MAILER])[0]
        message = await message_or_404(self._store, request)
        try:
            message_id = await _send_copy(entry, message, to, mailer, self._mailer)
        except (InvalidMessage, ImproperlyConfigured) as error:
            return await self._page(request, entry, mailer, to=to, problem=str(error), status=422)
        listed = ListView.from_values(request.query_params)
        return RedirectResponse(f"{request.scope['root_path']}/{key_of(message_id)}{listed.url}", 303)

    async def _entry(self, request: Request) -> Entry:
        if not debug():
            raise HTTPException(404, "Sending a copy needs DEBUG.")
        entry = await entry_or_404(self._store, request)
        if entry.redacted:
            raise HTTPException(409, NOT_KEPT)
        return entry

    async def _page(
        self, request: Request, entry: Entry, mailer: str, *, to: str = "", problem: str = "", status: int = 200
    ) -> Response:
        return await self._renderer.render(
            request,
            "release.html",
            status,
            entry=entry,
            listed=ListView.from_values(request.query_params),
            mailers=[DEFAULT_MAILER, *sorted(self._mailer.settings.mailers)],
            mailer=mailer,
            to=to,
            problem=problem,
            backend=self._mailer.backend.describe(),
            redirect=describe_redirect(self._mailer.settings),
            keeps_mail=self._mailer.backend.keeps_mail,
        )


async def _send_copy(entry: Entry, message: OutgoingMessage, to: str, mailer_name: str, mailer: Mailer) -> str:
    """Send a copy of ``message`` to the address ``to`` by a mailer; return the copy's Message-ID.

    The copy has a Message-ID and a date of its own, ``[Copy]`` before its subject, and the header X-Copy-Of with the
    original's Message-ID. It is addressed to ``to`` alone in header and envelope; bounces go to the sender. It has
    neither the original's key nor its labels, notices and unsubscribe headers, and its unsubscribe links do nothing.

    Raises:
        InvalidAddress: ``to`` is not one address, or belongs to a recipient of the message.
        InvalidMessage: the copy is too large.
        ImproperlyConfigured: there is no such mailer.
    """
    prepared = message.prepared
    address = read_address(to.strip(), field="to")
    steps = [recipient for step in entry.steps for recipient in step.recipients]
    if address.addr_spec.lower() in {
        each.lower() for each in (*prepared.recipients, *entry.envelope.recipients, *steps)
    }:
        raise InvalidAddress(
            f"to: {address.addr_spec} is a recipient of this message, and a copy is for somebody else; "
            "to send it to all its recipients again, use Send again",
            address=address.addr_spec,
        )
    settings = mailer.settings.of_mailer(mailer_name)
    headers = [pair for pair in prepared.headers if not pair[0].lower().startswith(_LEFT_OUT)]
    must = {name: value for name, value in prepared.must.items() if name not in (MUST_KEY, MUST_MAILER)}
    if mailer_name != DEFAULT_MAILER:
        must[MUST_MAILER] = mailer_name
    copy = prepared._replace(
        message_id=new_message_id(prepared.sender),
        date=datetime.now(UTC),
        to=(address,),
        cc=(),
        bcc=(),
        subject=_PREFIX + prepared.subject,
        text=disarm_links(prepared.text),
        html=disarm_links(prepared.html),
        headers=(*headers, (_HEADER, prepared.message_id)),
        # An address for bounces may name the recipient, who has nothing to do with a copy that bounces.
        envelope_sender=prepared.sender.addr_spec if prepared.envelope_sender else "",
        extra=NOTHING,
        must=read_only(must) if must else NOTHING,
    )
    serialised = await serialise_message(copy, max_message_bytes=settings.max_message_bytes + _ROOM)
    mailer.deliver_soon(serialised, f"a copy of {prepared.message_id}, sent from the inbox page")
    return copy.message_id
