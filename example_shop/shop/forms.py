"""What a browser may post: small, from our own pages, and checked."""

import unicodedata
from urllib.parse import parse_qsl, urlsplit

from openviper import HTTPException, Request
from openviper.core.email import InvalidAddress
from openviper.core.email.addresses import parse_address

from .orders import Customer

__all__ = ["read_customer", "read_form"]

_MAX_BYTES = 16 * 1024
_MAX_FIELDS = 20


async def read_form(request: Request) -> dict[str, str]:
    """The fields of an urlencoded form.

    Raises:
        HTTPException: 403 it comes from another site; 400, 413 or 415 it is not a form of ours.
    """
    _refuse_other_sites(request)
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This page takes forms only.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise HTTPException(413, "That is more than this form can take.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise HTTPException(400, "This form could not be read.") from error


def read_customer(form: dict[str, str]) -> tuple[Customer, dict[str, str]]:
    """The customer as typed, and what is wrong: field to message, empty when all is well."""
    customer = Customer(
        name=form.get("name", "").strip(),
        email=form.get("email", "").strip(),
        address=form.get("address", "").strip().replace("\r\n", "\n"),
    )
    checks = {
        "name": _text_fault(customer.name, "your name", 80),
        "email": _email_fault(customer.email),
        "address": _text_fault(customer.address.replace("\n", " "), "the address to ship to", 400),
    }
    return customer, {field: fault for field, fault in checks.items() if fault}


def _text_fault(value: str, what: str, longest: int) -> str | None:
    if not value:
        return f"Please enter {what}."
    if len(value) > longest:
        return f"Please shorten {what} to {longest} characters."
    if any(unicodedata.category(character) == "Cc" for character in value):
        return f"Please enter {what} without control characters."
    return None


def _email_fault(value: str) -> str | None:
    if not value:
        return "Please enter your email address: the confirmation goes there."
    try:
        address = parse_address(value, field="email")
    except InvalidAddress:
        return "This is not an email address. It should look like ana@example.com."
    return "Please enter the address alone, like ana@example.com." if address.display_name or "<" in value else None


def _refuse_other_sites(request: Request) -> None:
    """Stop forged requests: browsers say where a form was sent from, and no page can change what they say."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        own = site in {"same-origin", "none"}
    elif origin is not None:
        own = urlsplit(origin).netloc == request.headers.get("host")
    else:
        own = True  # not a browser, so there is no session of somebody else to misuse
    if not own:
        raise HTTPException(403, "This form was sent from another site.")
