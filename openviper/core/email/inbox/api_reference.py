"""The inbox's JSON API as a table: the routes are made from it, and so are its pages."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openviper.core.email.inbox.query import OPERATORS
from openviper.text import shown, suggestion

__all__ = ["ROUTES", "TABLES", "ApiRoute", "Table", "make_routes"]

Endpoint = Callable[[Request], Awaitable[Response]]

SEARCH = ("q", *OPERATORS)
_LIMITED = (*SEARCH, "limit")
_CHOICE = ("id", "all")

PARAMETERS: Mapping[str, str] = {
    "q": "a [search](inbox.md#search-operators) as on the page: words, phrases, operators",
    **OPERATORS,
    "limit": "for the list: the maximum number of messages, 1 to 500 (default: 500)",
    "timeout": "for `wait`: the number of seconds to wait, 0 to 60 (default: 10)",
}


class Table(NamedTuple):
    """A table of the documentation: ``rows`` maps names, several separated by commas, to meanings in Markdown."""

    title: str
    columns: tuple[str, str]
    rows: Mapping[str, str]


TABLES = (
    Table("Parameters of the list and of wait", ("parameter", "matches"), PARAMETERS),
    Table(
        "Fields of a message",
        ("field", "meaning"),
        {
            "key": "the name of the message in routes",
            "cursor": "a number that grows with each message; for `after` and `before`",
            "message_id, date": "the headers Message-ID and Date (ISO 8601)",
            "subject, from": "as in the headers, decoded",
            "to, cc, bcc": "lists of addresses",
            "recipients": "the envelope's recipients",
            "mode": "the first [delivery mode](delivery.md)",
            "mailer": "the mailer's name; `default` without `mailer=`",
            "state": "the kind of the newest event",
            "refused": "recipients who did not get the message",
            "read": "true if the message was opened on the page",
            "sensitive": "true if it was sent with `sensitive=True`; its content is then missing without `DEBUG`",
            "size": "bytes of the whole message",
            "attachments": "list of objects with `filename`, `mimetype`, `size`, `inline`, `content_id`",
        },
    ),
    Table(
        "Further fields of a single message and of wait",
        ("field", "meaning"),
        {
            "reply_to": "list of addresses",
            "envelope_sender": "the return path (MAIL FROM)",
            "text, html, calendar": "the bodies; null if there is none",
            "headers": "list of pairs of name and value, in the message's order",
            "origin": (
                "the source of the message: `template`, `context` (the names of the template's values) and `code` "
                "(the calling line); null or empty if unknown"
            ),
            "timeline": "list of events with `kind`, `at` (ISO 8601) and `detail`",
        },
    ),
    Table(
        "Fields of failed mail",
        ("field", "meaning"),
        {
            "message_id, subject, from, to, cc, bcc": "the headers",
            "failed_at": "when the message was given up (ISO 8601)",
            "reason": "the last error",
            "mailer": "the mailer's name",
            "attempts": "the number of attempts",
            "refused": "object that maps each address to the server's reply",
            "protocol": 'the SMTP dialogue of the last attempt, with `EMAIL["protocol_log"]`; else null',
            "unconfirmed": "object that maps each recipient who may have received the message to the reason",
            "perhaps_delivered": "true if it is unknown whether the server accepted it",
            "content_dropped": "true if its content was not kept, because it is sensitive",
        },
    ),
)


class ApiRoute(NamedTuple):
    """A route below the page's own path: what it answers, in Markdown, and the parameters that it knows."""

    method: str
    path: str
    answer: str
    parameters: tuple[str, ...] = ()

    @property
    def below(self) -> str:
        """Return the path as the documentation spells it, below the page's own."""
        return self.path.replace("{key}", "KEY").replace("{index:int}", "INDEX")


_MESSAGES = "/api/messages"

ROUTES = (
    ApiRoute("GET", _MESSAGES, "`messages`, newest first, and the `cursor` of the newest message of all", _LIMITED),
    ApiRoute("DELETE", _MESSAGES, "deletes all messages or, with a search, those that match; 204", SEARCH),
    ApiRoute(
        "GET",
        f"{_MESSAGES}/wait",
        "one message, as soon as it arrives; 404 if none arrives within `timeout`",
        (*SEARCH, "timeout"),
    ),
    ApiRoute("GET", f"{_MESSAGES}/{{key}}", "one message with all fields"),
    ApiRoute("DELETE", f"{_MESSAGES}/{{key}}", "deletes the message; 204"),
    ApiRoute("GET", f"{_MESSAGES}/{{key}}/source", "the message as it was sent (`message/rfc822`)"),
    ApiRoute(
        "GET",
        f"{_MESSAGES}/{{key}}/attachments/{{index:int}}",
        "an attachment's content; the first attachment has the index 0",
    ),
    ApiRoute("GET", "/api/failed", "[failed mail](#failed-mail)"),
    ApiRoute("DELETE", "/api/failed", "deletes failed mail", _CHOICE),
    ApiRoute("PUT", "/api/failed/retry", "queues failed mail again", _CHOICE),
)


def make_routes(endpoints: Mapping[tuple[str, str], Endpoint]) -> list[Route]:
    """Return the table's routes for ``endpoints``, by method and path; unknown or empty parameters are a 400."""
    known = {(route.method, route.path): route for route in ROUTES}
    return [_make_route(known[at], endpoint) for at, endpoint in endpoints.items()]


def _make_route(route: ApiRoute, endpoint: Endpoint) -> Route:
    async def checked(request: Request) -> Response:
        for name, value in request.query_params.multi_items():
            if name not in route.parameters:
                near = suggestion(name, route.parameters)
                known = ", ".join(route.parameters) or "none"
                raise HTTPException(400, f"there is no parameter {shown(name)} (known: {known}){near}")
            if not value.strip():  # a program has left it empty by mistake, and would find or delete too much
                raise HTTPException(400, f"{name}: is empty; give a value, or leave the parameter out")
        return await endpoint(request)

    return Route(route.path, checked, methods=[route.method])
