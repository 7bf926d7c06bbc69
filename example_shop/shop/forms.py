"""Read and validate posted forms: small ones, sent by the shop's own pages."""

import unicodedata
from urllib.parse import parse_qsl, urlsplit

from openviper import HTTPException, Request
from openviper.core.email import InvalidAddress
from openviper.core.email.addresses import parse_address

from .orders import Customer

__all__ = ["email_fault", "read_customer", "read_form", "read_news"]

_MAX_BYTES = 16 * 1024
_MAX_FIELDS = 20


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a urlencoded form.

    Raises:
        HTTPException: 403 another site sent it; 400, 413 or 415 it is not one of the shop's forms.
    """
    _refuse_other_sites(request)
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This page accepts only forms.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise HTTPException(413, "This form is too large.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise HTTPException(400, "This form cannot be read.") from error


def read_customer(form: dict[str, str]) -> tuple[Customer, dict[str, str]]:
    """Return the customer as entered, and the faults: a message for each invalid field."""
    customer = Customer(
        name=form.get("name", "").strip(),
        email=form.get("email", "").strip(),
        address=form.get("address", "").strip().replace("\r\n", "\n"),
    )
    checks = {
        "name": _text_fault(customer.name, "your name", 80),
        "email": email_fault(customer.email, "the confirmation goes there"),
        "address": _text_fault(customer.address.replace("\n", " "), "the address to ship to", 400),
    }
    return customer, {field: fault for field, fault in checks.items() if fault}


def _text_fault(value: str, name: str, max_length: int) -> str | None:
    if not value:
        return f"Please enter {name}."
    if len(value) > max_length:
        return f"Please shorten {name} to {max_length} characters."
    if any(unicodedata.category(character) == "Cc" for character in value):
        return f"Please enter {name} without control characters."
    return None


def read_news(form: dict[str, str]) -> tuple[str, str, str | None]:
    """Return the subject and the text of a newsletter, and what is wrong with them; None if nothing is."""
    subject, text = form.get("subject", "").strip(), form.get("text", "").strip().replace("\r\n", "\n")
    fault = _text_fault(subject, "a subject", 150) or _text_fault(text.replace("\n", " "), "a text", 10_000)
    return subject, text, fault


def email_fault(value: str, purpose: str) -> str | None:
    """Return what is wrong with an email address, as a form tells it; None if nothing is."""
    if not value:
        return f"Please enter your email address: {purpose}."
    try:
        address = parse_address(value, field="email")
    except InvalidAddress:
        return "This is not an email address. It should look like ana@example.com."
    return "Please enter the address alone, like ana@example.com." if address.display_name or "<" in value else None


def _refuse_other_sites(request: Request) -> None:
    """Refuse forged requests: browsers send the form's origin in headers that no page can change."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        own = site in {"same-origin", "none"}
    elif origin is not None:
        own = urlsplit(origin).netloc == request.headers.get("host")
    else:
        own = True  # not a browser, so another user's session cannot be misused
    if not own:
        raise HTTPException(403, "This form was sent from another site.")
