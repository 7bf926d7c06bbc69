"""Values that need no encoding are written as they are, though they hold a character of encoded words."""

from openviper.core.email.addresses import parse_address
from openviper.core.email.headers import address_header, parameter, text_header


def test_an_equals_sign_alone_asks_for_no_encoding() -> None:
    assert parameter("filename", "a=b.txt") == [' filename="a=b.txt"']
    assert text_header("Subject", "a=b? c?=") == "Subject: a=b? c?=\r\n"
    assert address_header("To", [parse_address("a=b <a@b.c>", field="to")]) == "To: a=b <a@b.c>\r\n"
