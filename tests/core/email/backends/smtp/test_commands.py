"""Encoding of SMTP commands: parameters, and no injected command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email.backends.smtp.commands import (
    Capabilities,
    check_host_name,
    mail_from,
    needs_smtputf8,
    rcpt_to,
)
from openviper.core.email.errors import InvalidAddress
from openviper.core.email.message import Envelope
from openviper.exceptions import ImproperlyConfigured

PLAIN = Capabilities()
ALL = Capabilities(pipelining=True, chunking=True, size=True, max_size=None, smtputf8=True)


def test_mail_from_has_size_and_smtputf8_if_offered_and_needed() -> None:
    envelope = Envelope("a@example.com", ("b@example.com",))
    assert mail_from(envelope, 12, PLAIN) == b"MAIL FROM:<a@example.com>\r\n"
    assert mail_from(envelope, 12, ALL) == b"MAIL FROM:<a@example.com> SIZE=12\r\n"
    international = Envelope("jörg@example.com", ("b@example.com",))
    assert mail_from(international, 12, ALL) == "MAIL FROM:<jörg@example.com> SIZE=12 SMTPUTF8\r\n".encode()


def test_an_empty_sender_is_the_null_reverse_path() -> None:
    assert mail_from(Envelope("", ("b@example.com",)), 1, PLAIN) == b"MAIL FROM:<>\r\n"


@pytest.mark.parametrize(
    ("envelope", "needed"),
    [
        (Envelope("a@example.com", ("b@example.com",)), False),
        (Envelope("a@example.com", ("b@example.com",), smtputf8=True), True),
        (Envelope("a@example.com", ("b@example.com", "ü@example.com")), True),
    ],
)
def test_smtputf8_is_needed_for_any_address_outside_ascii(envelope: Envelope, needed: bool) -> None:
    assert needs_smtputf8(envelope) is needed


@pytest.mark.parametrize(
    "address",
    [
        "a@example.com\r\nRCPT TO:<evil@example.com",
        "a@example.com\nDATA",
        "a@example.com\rDATA",
        "a@example.com> ORCPT=rfc822;evil@example.com",
        "a@example.com>",
        "<a@example.com",
        "a b@example.com",
        "a\tb@example.com",
        "a\0@example.com",
        "a\x7f@example.com",
        "a\x85@example.com",
        "a\xa0b@example.com",
        "a\u2028@example.com",
        "a\ud800@example.com",
        "a" * 1001,
    ],
)
def test_an_address_that_could_add_a_command_or_parameter_is_refused(address: str) -> None:
    with pytest.raises(InvalidAddress) as raised:
        rcpt_to(address)
    assert raised.value.address == address
    with pytest.raises(InvalidAddress):
        mail_from(Envelope(address, ("b@example.com",)), 1, PLAIN)


def test_an_empty_recipient_is_refused() -> None:
    with pytest.raises(InvalidAddress):
        rcpt_to("")


@given(st.text(st.characters(), max_size=40))
def test_a_command_is_one_line_with_one_path_whatever_the_address(address: str) -> None:
    try:
        command = rcpt_to(address).decode()
    except InvalidAddress:
        return
    assert command == f"RCPT TO:<{address}>\r\n"
    assert len(command.splitlines()) == 1
    assert command.count("<") == command.count(">") == 1


@pytest.mark.parametrize("name", ["", "two words", "a\r\nMAIL FROM:<x>", "a\n", "[127.0.0.1", "host;", "ü.example"])
def test_a_host_name_that_is_not_valid_in_ehlo_is_refused(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="local_hostname"):
        check_host_name(name)


@pytest.mark.parametrize("name", ["localhost", "my-host.example.com", "[127.0.0.1]", "[IPv6:::1]", "with_underscore"])
def test_host_names_and_address_literals_are_valid_in_ehlo(name: str) -> None:
    assert check_host_name(name) == name


@pytest.mark.parametrize(
    ("parameter", "limit"), [("1000", 1000), ("0", None), ("", None), ("many", None), ("9" * 40, None), ("-1", None)]
)
def test_the_size_limit_is_read_and_zero_means_none(parameter: str, limit: int | None) -> None:
    capabilities = Capabilities.from_extensions({"size": parameter})
    assert capabilities.size
    assert capabilities.max_size == limit


@pytest.mark.parametrize(
    ("parameters", "messages", "recipients"),
    [
        ("MAILMAX=20 RCPTMAX=5", 20, 5),
        ("rcptmax=100", None, 100),
        ("RCPTDOMAINMAX=1 MAILMAX=999999", 999_999, None),
        ("MAILMAX=20 MAILMAX=10", 10, None),
        ("MAILMAX=0 RCPTMAX=-1", None, None),
        ("MAILMAX=1000000 RCPTMAX=5x", None, None),
        ("MAILMAX= RCPTMAX", None, None),
        ("XMAILMAX=3 RCPTMAX=05", None, None),
        ("RCPTMAX=\u0665", None, None),
        ("", None, None),
    ],
)
def test_announced_limits_are_parsed_and_malformed_ones_ignored(
    parameters: str, messages: int | None, recipients: int | None
) -> None:
    capabilities = Capabilities.from_extensions({"limits": parameters})
    assert (capabilities.max_messages, capabilities.max_recipients) == (messages, recipients)
