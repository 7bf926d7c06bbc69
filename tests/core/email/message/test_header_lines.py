"""What is written as it is, and what is encoded, to the character."""

from openviper.core.email.addresses import parse_address
from openviper.core.email.message.header_lines import address_header, parameter, text_header


def test_an_equals_sign_alone_asks_for_no_encoding() -> None:
    assert parameter("filename", "a=b.txt") == [' filename="a=b.txt"']
    assert text_header("Subject", "a=b? c?=") == "Subject: a=b? c?=\r\n"
    assert address_header("To", [parse_address("a=b <a@b.c>", field="to")]) == "To: a=b <a@b.c>\r\n"


def test_encoded_words_leave_what_is_plain_in_phrases_too() -> None:
    assert text_header("Subject", "é!*+-/a") == "Subject: =?utf-8?q?=C3=A9!*+-/a?=\r\n"
    assert text_header("Subject", "é\"#$%&'(),.:;_z") == "Subject: =?utf-8?b?w6kiIyQlJicoKSwuOjtfeg==?=\r\n"


def test_parameters_leave_what_is_unreserved() -> None:
    assert parameter("filename", "a") == [' filename="a"']
    assert parameter("filename", "é-._~") == [" filename*=utf-8''%C3%A9-._~"]
    assert parameter("filename", "é !'*") == [" filename*=utf-8''%C3%A9%20%21%27%2A"]
