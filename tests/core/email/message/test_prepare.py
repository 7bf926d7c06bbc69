"""check_message(): what is checked, completed and deduplicated before anything is sent."""

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from typing import Any

import pytest
from support.forked import in_child

from openviper.core.email.addresses import Address
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.errors import AttachmentRefused, InvalidAddress, InvalidMessage
from openviper.core.email.message import EmailMessageData, PreparedMessage, check_message
from openviper.core.email.message.serialiser import serialise
from openviper.exceptions import ImproperlyConfigured


def data(**values: Any) -> EmailMessageData:
    usual: dict[str, Any] = {
        "recipients": ["to@example.com"],
        "subject": "Subject",
        "text": "Text",
        "sender": "Shop <shop@example.com>",
    }
    return EmailMessageData(**{**usual, **values})


def prepared(**values: Any) -> PreparedMessage:
    return check_message(data(**values), default_sender=None)


def test_addresses_are_parsed_once_into_their_fields() -> None:
    message = prepared(
        recipients="A <a@example.com>", cc=["c@example.com"], bcc=["b@example.com"], reply_to=["R <r@example.com>"]
    )
    assert message.sender == Address("Shop", "shop", "example.com")
    assert message.to == (Address("A", "a", "example.com"),)
    assert message.cc == (Address("", "c", "example.com"),)
    assert message.bcc == (Address("", "b", "example.com"),)
    assert message.reply_to == (Address("R", "r", "example.com"),)
    assert message.recipients == ("a@example.com", "c@example.com", "b@example.com")


def test_the_envelope_has_every_mailbox_once_in_the_order_of_to_cc_bcc() -> None:
    message = prepared(
        recipients=["a@example.com", "X <a@EXAMPLE.com>", "A@example.com", "d@example.com"],
        cc=["c@example.com", "Alice <a@example.com>"],
        bcc=["C <c@Example.com>", "b@example.com"],
    )
    assert message.recipients == (
        "a@example.com",
        "A@example.com",
        "d@example.com",
        "c@example.com",
        "b@example.com",
    )


def test_the_headers_keep_what_was_written_but_exact_duplicates() -> None:
    message = prepared(
        recipients=["a@example.com", "X <a@example.com>", "a@example.com"],
        cc=["a@example.com", "a@example.com"],
        reply_to=["r@example.com", "r@example.com"],
    )
    assert [str(address) for address in message.to] == ["a@example.com", '"X" <a@example.com>']
    assert [str(address) for address in message.cc] == ["a@example.com"]
    assert [str(address) for address in message.reply_to] == ["r@example.com"]


def test_one_recipient_who_is_also_blind_is_delivered_once() -> None:
    assert prepared(recipients=["a@example.com"], bcc=["a@example.com"]).recipients == ("a@example.com",)


@pytest.mark.parametrize("field", ["cc", "bcc"])
def test_a_recipient_in_cc_or_bcc_alone_is_enough(field: str) -> None:
    assert prepared(recipients=[], **{field: ["a@example.com"]}).recipients == ("a@example.com",)


def test_no_recipient_at_all_is_refused() -> None:
    with pytest.raises(InvalidMessage, match=r"^recipients: there is no recipient"):
        prepared(recipients=[])


@pytest.mark.parametrize("field", ["recipients", "cc", "bcc", "reply_to"])
def test_a_wrong_address_is_named_with_its_field(field: str) -> None:
    with pytest.raises(InvalidAddress, match=f"^{field}: 'a' has no '@'"):
        prepared(**{field: ["to@example.com", "a"]})


@pytest.mark.parametrize("field", ["sender", "envelope_sender"])
def test_a_wrong_sender_is_named_with_its_field(field: str) -> None:
    with pytest.raises(InvalidAddress, match=f"^{field}: 'a' has no '@'"):
        prepared(**{field: "a"})


def test_the_default_sender_stands_in_for_none() -> None:
    message = check_message(data(sender=None), default_sender="Default <default@example.com>")
    assert message.sender == Address("Default", "default", "example.com")
    assert check_message(data(), default_sender="default@example.com").sender.local_part == "shop"


@pytest.mark.parametrize("default", [None, ""])
def test_no_sender_is_a_matter_of_configuration(default: str | None) -> None:
    with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["default_sender"\]: is not set'):
        check_message(data(sender=None), default_sender=default)


def test_a_wrong_default_sender_is_a_matter_of_configuration() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^EMAIL\[\"default_sender\"\]: 'shop' has no '@'"):
        check_message(data(sender=None), default_sender="shop")


def test_an_empty_sender_is_not_the_default_one() -> None:
    with pytest.raises(InvalidAddress, match=r"^sender: '' is empty"):
        check_message(data(sender=""), default_sender="default@example.com")


def test_the_envelope_sender_is_the_senders_address_unless_given() -> None:
    assert prepared().envelope_sender == "shop@example.com"
    assert prepared(envelope_sender="").envelope_sender == ""
    assert prepared(envelope_sender="bounce+1@example.com").envelope_sender == "bounce+1@example.com"
    assert prepared(envelope_sender="a@bücher.example").envelope_sender == "a@xn--bcher-kva.example"
    with pytest.raises(InvalidAddress, match=r"^envelope_sender: .* has a name; give the address alone$"):
        prepared(envelope_sender="Bounces <bounce@example.com>")
    with pytest.raises(InvalidAddress, match=r"^envelope_sender: \('Bounces', .* has a name; give the address alone$"):
        prepared(envelope_sender=("Bounces", "bounce@example.com"))
    assert prepared(envelope_sender=Address.of("", "bounce@example.com")).envelope_sender == "bounce@example.com"


def test_the_message_id_is_unique_and_on_the_senders_domain() -> None:
    first, second = prepared(sender="a@bücher.example"), prepared(sender="a@bücher.example")
    assert first.message_id.startswith("<")
    assert first.message_id.endswith("@xn--bcher-kva.example>")
    assert first.message_id != second.message_id
    assert len(first.message_id.partition("@")[0]) > 20


def test_message_ids_are_unique_in_number_and_in_a_forked_child() -> None:
    ids = {prepared().message_id for _ in range(1000)}
    assert len(ids) == 1000
    of_child = in_child(lambda: " ".join(prepared().message_id for _ in range(100))).split()
    ids.update(prepared().message_id for _ in range(100))
    assert len(of_child) == 100
    assert not ids & {*of_child}


def test_message_ids_are_unique_among_threads_that_draw_at_once() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    try:
        with ThreadPoolExecutor(8) as threads:
            drawn = [*threads.map(lambda _: [prepared().message_id for _ in range(1_000)], range(16))]
    finally:
        sys.setswitchinterval(interval)
    assert len({each for ids in drawn for each in ids}) == 16_000


def test_a_message_id_of_the_application_is_kept() -> None:
    message = prepared(headers={"X-A": "1", "message-ID": "<order-1@example.com>", "X-B": "2"})
    assert message.message_id == "<order-1@example.com>"
    assert message.headers == (("X-A", "1"), ("X-B", "2"))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "order-1@example.com",
        "<order-1>",
        "<a@b@c>",
        "<a b@example.com>",
        "<@example.com>",
        "<a@>",
        "<a@b> <c@d>",
        "<a@[x y]>",
        "<a>b@c>",
        "<ü@example.com>",
        "<a@example.com>\r\nBcc: x@y.z",
        f"<{'a' * 240}@example.com>",
    ],
)
def test_a_message_id_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidMessage, match=r"^headers\['Message-ID'\]: "):
        prepared(headers={"Message-ID": value})


@pytest.mark.parametrize("value", ["<a@b>", "<a..b@c>", "<a@[192.0.2.1]>", "<CA+x_y=z@mail.example.com>"])
def test_message_ids_of_other_systems_are_known(value: str) -> None:
    assert prepared(headers={"Message-ID": value}).message_id == value


def test_the_date_is_now_and_aware_or_as_given() -> None:
    before = datetime.now(UTC)
    moment = prepared().date
    assert before <= moment <= datetime.now(UTC)
    given = datetime(2024, 2, 29, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    assert check_message(data(), default_sender=None, now=given).date == given


def test_auto_submitted_is_added_when_asked_and_not_given() -> None:
    assert prepared().headers == ()
    asked = check_message(data(headers={"X-A": "1"}), default_sender=None, auto_submitted=True)
    assert asked.headers == (("X-A", "1"), ("Auto-Submitted", "auto-generated"))
    own = check_message(data(headers={"auto-submitted": "auto-replied"}), default_sender=None, auto_submitted=True)
    assert own.headers == (("auto-submitted", "auto-replied"),)


@pytest.mark.parametrize(
    ("text", "html"), [("", None), (None, ""), ("a", "b"), ("\x00\x01", None), ("\u2028", "\u202e")]
)
def test_any_text_is_a_body_empty_ones_too(text: str | None, html: str | None) -> None:
    message = prepared(text=text, html=html)
    assert (message.text, message.html) == (text, html)


def test_no_body_at_all_is_refused() -> None:
    with pytest.raises(InvalidMessage, match=r"^text: there is no body"):
        prepared(text=None)


@pytest.mark.parametrize("field", ["text", "html"])
def test_a_body_must_be_text_that_can_be_encoded(field: str) -> None:
    with pytest.raises(InvalidMessage, match=f"^{field}: must be a str, not bytes"):
        prepared(**{field: b"bytes"})
    with pytest.raises(InvalidMessage, match=rf"^{field}: contains the lone surrogate U\+DC80"):
        serialise(prepared(**{field: "ab\udc80"}))


def test_an_empty_subject_is_valid_and_none_is_not() -> None:
    assert prepared(subject="").subject == ""
    with pytest.raises(InvalidMessage, match=r"^subject: must be a str, not NoneType"):
        prepared(subject=None)


CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xD800, 0xDFFF)]


def with_header_value(value: str) -> EmailMessageData:
    return data(headers={"X-Test": f"a{value}b"})


def with_structured_value(value: str) -> EmailMessageData:
    return data(headers={"References": f"<a{value}b@example.com>"})


def with_header_name(value: str) -> EmailMessageData:
    return data(headers={f"X-{value}Test": "a"})


def with_subject(value: str) -> EmailMessageData:
    return data(subject=f"a{value}b")


def with_recipient(value: str) -> EmailMessageData:
    return data(recipients=[f"a{value}b@example.com"])


def with_recipient_domain(value: str) -> EmailMessageData:
    return data(recipients=[f"a@exam{value}ple.com"])


def with_display_name(value: str) -> EmailMessageData:
    return data(recipients=[f'"a{value}b" <a@example.com>'])


def with_plain_display_name(value: str) -> EmailMessageData:
    return data(cc=[f"a{value}b <a@example.com>"])


def with_bcc(value: str) -> EmailMessageData:
    return data(bcc=[f"{value}a@example.com"])


def with_reply_to(value: str) -> EmailMessageData:
    return data(reply_to=[f"a@example.com{value}"])


def with_sender(value: str) -> EmailMessageData:
    return data(sender=f"a{value} <a@example.com>")


def with_envelope_sender(value: str) -> EmailMessageData:
    return data(envelope_sender=f"a{value}@example.com")


def with_file_name(value: str) -> EmailMessageData:
    return data(attachments=[AttachmentData(f"a{value}b.txt", b"")])


def with_content_id(value: str) -> EmailMessageData:
    return data(attachments=[AttachmentData("a.png", b"", "image/png", inline=True, content_id=f"a{value}")])


def with_inline_file_name(value: str) -> EmailMessageData:
    return data(attachments=[AttachmentData(f"a{value}", b"", "image/png", inline=True)])


def with_mime_type(value: str) -> EmailMessageData:
    return data(attachments=[AttachmentData("a.png", b"", f"image/png{value}")])


def with_mime_parameter(value: str) -> EmailMessageData:
    return data(attachments=[AttachmentData("a.txt", b"", f'text/plain; a="b{value}"')])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (with_header_value, "headers['X-Test']: "),
        (with_structured_value, "headers['References']: "),
        (with_header_name, "headers["),
        (with_subject, "subject: "),
        (with_recipient, "recipients: "),
        (with_recipient_domain, "recipients: "),
        (with_display_name, "recipients: "),
        (with_plain_display_name, "cc: "),
        (with_bcc, "bcc: "),
        (with_reply_to, "reply_to: "),
        (with_sender, "sender: "),
        (with_envelope_sender, "envelope_sender: "),
        (with_file_name, ": filename: "),
        (with_content_id, ": content_id: "),
        (with_inline_file_name, ": filename: "),
        (with_mime_type, ": mimetype: "),
        (with_mime_parameter, ": mimetype: "),
    ],
)
def test_every_control_is_refused_in_every_field_by_name(make: Callable[[str], EmailMessageData], field: str) -> None:
    for control in CONTROLS:
        with pytest.raises(InvalidMessage) as caught:
            check_message(make(control), default_sender=None)
        assert field in str(caught.value), (control, str(caught.value))
        assert control not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("From", "use the argument sender"),
        ("TO", "use the argument recipients"),
        ("cc", "use the argument cc"),
        ("Bcc", "use the argument bcc"),
        ("Reply-To", "use the argument reply_to"),
        ("subject", "use the argument subject"),
        ("Return-Path", "use the argument envelope_sender"),
        ("Date", "use the argument date"),
        ("MIME-Version", "it is made with the message"),
        ("Content-Type", "it is made from the bodies and attachments"),
        ("content-transfer-encoding", "it is made from the bodies and attachments"),
        ("Content-ID", "it is made from the bodies and attachments"),
        ("Received", "mail servers add it"),
        ("Delivered-To", "mail servers add it"),
        ("Resent-Bcc", "resending is not supported"),
        ("Resent-From", "resending is not supported"),
    ],
)
def test_a_header_of_our_own_is_refused_with_the_way_to_set_it(name: str, instead: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepared(headers={name: "a@example.com"})
    assert str(caught.value) == f"headers[{name!r}]: cannot be set here; {instead}"


@pytest.mark.parametrize(
    "name", ["", " ", "X Test", "X:Test", "X-Test:", "-X", "Bcc:", "Bcc ", " Bcc", "X-Ü", "=?utf-8?q?X?=", "X" * 51, 5]
)
def test_a_header_name_must_be_one(name: Any) -> None:
    with pytest.raises(InvalidMessage, match=r"^headers\[.*\]: a name must be at most 50 letters"):
        prepared(headers={name: "value"})


def test_a_header_name_of_fifty_characters_is_long_enough() -> None:
    assert prepared(headers={"X" * 50: "value"}).headers == (("X" * 50, "value"),)


@pytest.mark.parametrize("value", [None, 5, b"bytes", [5]])
def test_a_header_value_must_be_text(value: Any) -> None:
    with pytest.raises(InvalidMessage, match=r"^headers\['X-Test'\]: must be a str"):
        prepared(headers={"X-Test": value})


def test_headers_must_be_a_mapping() -> None:
    with pytest.raises(InvalidMessage, match=r"^headers: must be a mapping of names to values, not list"):
        prepared(headers=[("X-Test", "a")])


def test_the_same_header_in_two_spellings_is_refused() -> None:
    with pytest.raises(InvalidMessage, match=r"^headers\['x-test'\]: given twice"):
        prepared(headers={"X-Test": "a", "x-test": "b"})


def test_a_header_value_has_a_greatest_length() -> None:
    assert len(prepared(subject="é" * 32_000).subject) == 32_000
    with pytest.raises(InvalidMessage, match=r"^subject: is longer than 32000 characters"):
        prepared(subject="é" * 32_001)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("<https://example.com/ü>", "may contain only ASCII"),
        ("", "is empty"),
        (" <https://example.com>", "begins or ends with a space"),
        ("<https://example.com> ", "begins or ends with a space"),
        ("=?utf-8?q?x=0D=0ABcc=3A_evil=40x.test?=", "contains an encoded word"),
        ("<https://example.com/=?utf-8?B?x?=>", "contains an encoded word"),
        (f"<https://example.com/{'a' * 900}>", "more than 900 characters without a place to fold"),
        (
            f"<https://example.com/a>,{' ' * 900}<https://example.com/b>",
            "more than 900 characters without a place to fold",
        ),
    ],
)
@pytest.mark.parametrize("name", ["List-Unsubscribe", "references", "ARC-Seal", "X-Priority"])
def test_a_structured_header_holds_nothing_that_cannot_travel_as_given(name: str, value: str, reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        prepared(headers={name: value})
    assert str(caught.value).startswith(f"headers[{name!r}]: ")
    assert reason in str(caught.value)


def test_the_header_sender_is_one_address() -> None:
    assert prepared(headers={"Sender": "Büro <office@example.com>"}).headers == (
        ("Sender", "Büro <office@example.com>"),
    )
    with pytest.raises(InvalidAddress, match=r"^headers\['Sender'\]: "):
        prepared(headers={"Sender": "a@example.com, b@example.com"})


def test_attachments_are_taken_over_without_changing_the_callers() -> None:
    logo = AttachmentData("logo.png", b"png", "image/png", inline=True)
    plain = AttachmentData("a b.txt", b"", "text/plain; charset=utf-8")
    message = prepared(html="<img src='cid:logo.png'>", attachments=[logo, plain])
    assert message.attachments == (AttachmentData("logo.png", b"png", "image/png", True, "logo.png"), plain)
    assert logo.content_id is None


@pytest.mark.parametrize(
    ("attachment", "reason"),
    [
        (AttachmentData("", b""), "filename: must be a str that is not empty"),
        (AttachmentData(None, b""), "filename: must be a str that is not empty"),  # type: ignore[arg-type]
        (AttachmentData("a" * 1001, b""), "filename: is longer than 1000 characters"),
        (AttachmentData("a", "text"), "content: must be bytes, not str"),  # type: ignore[arg-type]
        (AttachmentData("a", b"", ""), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", None), "mimetype: must be type/subtype"),  # type: ignore[arg-type]
        (AttachmentData("a", b"", "text"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", "text/"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", "text/plain;"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", "text/plain; a"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", 'text/plain; a="b'), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", "text/plain, image/png"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", "text/plain\r\nX: y"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", "tüxt/plain"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", f"text/{'a' * 251}"), "mimetype: must be type/subtype"),
        (AttachmentData("a", b"", 'text/plain; a="=?utf-8?q?b?="'), "mimetype: contains an encoded word"),
        (AttachmentData("a", b"", "multipart/mixed"), "mimetype: a multipart type has a structure of its own"),
        (AttachmentData("a", b"", "Multipart/Related; a=b"), "mimetype: a multipart type has a structure of its own"),
        (AttachmentData("a", b"", inline=True, content_id=""), "content_id: must be"),
        (AttachmentData("a", b"", inline=True, content_id="<a@b>"), "without '<' and '>'"),
        (AttachmentData("a", b"", content_id="a b"), "content_id: must be"),
        (AttachmentData("a", b"", content_id="a%20b"), "content_id: must be"),
        (AttachmentData("a", b"", content_id="=?utf-8?q?a?="), "content_id: must be"),
        (AttachmentData("a", b"", content_id=5), "content_id: must be"),  # type: ignore[arg-type]
        (AttachmentData("a", b"", content_id="a" * 201), "content_id: must be"),
        (AttachmentData("my logo.png", b"", inline=True), "give a content_id: the file name cannot be one"),
    ],
)
def test_an_attachment_that_cannot_be_sent_is_named(attachment: AttachmentData, reason: str) -> None:
    with pytest.raises(AttachmentRefused) as caught:
        prepared(attachments=[attachment])
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    "mimetype",
    [
        "text/plain",
        "application/vnd.ms-excel",
        "image/svg+xml",
        "text/csv; charset=utf-8; header=present",
        'a/b; c="d e"',
    ],
)
def test_mime_types_with_and_without_parameters_are_valid(mimetype: str) -> None:
    assert prepared(attachments=[AttachmentData("a", b"", mimetype)]).attachments[0].mimetype == mimetype


def test_what_the_caller_changes_later_does_not_change_the_message() -> None:
    attachment = AttachmentData("a.txt", b"as it was")
    message = prepared(attachments=[attachment])
    attachment.filename, attachment.content = "b\r\n.txt", b"changed"
    assert message.attachments == (AttachmentData("a.txt", b"as it was"),)


def test_two_attachments_with_one_content_id_are_refused() -> None:
    images = [AttachmentData("a.png", b"", "image/png", content_id="x"), AttachmentData("x", b"", inline=True)]
    with pytest.raises(InvalidMessage, match=r"^attachments: 'x' has the content_id 'x' of another attachment"):
        prepared(attachments=images)


def test_what_is_no_attachment_is_refused() -> None:
    with pytest.raises(InvalidMessage, match=r"^attachments: must contain AttachmentData, not tuple"):
        prepared(attachments=[("a.txt", b"")])


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("sender", "this takes one address"),
        ("envelope_sender", "this takes one address"),
        ("headers['Sender']", "this takes one address"),
        ("recipients", "pass a list"),
        ("cc", "pass a list"),
        ("bcc", "pass a list"),
        ("reply_to", "pass a list"),
    ],
)
def test_several_addresses_in_one_string_get_the_remedy_of_their_field(field: str, remedy: str) -> None:
    several = "a@x.example, b@x.example"
    values: dict[str, Any] = {"recipients": "to@example.test", "sender": "s@example.test"}
    values |= {"headers": {"Sender": several}} if field.startswith("headers") else {field: several}
    with pytest.raises(InvalidAddress) as caught:
        check_message(EmailMessageData(subject="Hello", text="Hello", **values), default_sender=None)
    assert str(caught.value) == f"{field}: {several!r} contains several addresses; {remedy}"


@pytest.mark.parametrize(
    "name",
    ["application/pdf", "TEXT/CSV", "application/vnd.ms-excel", "text/html; charset=utf-8", "image/svg+xml"],
)
def test_a_file_name_that_is_a_media_type_is_refused(name: str) -> None:
    values: dict[str, Any] = {"recipients": "to@example.test", "sender": "s@example.test"}
    data = EmailMessageData(subject="Hello", text="Hello", attachments=[AttachmentData(name, b"x")], **values)
    with pytest.raises(AttachmentRefused, match=r"is a media type; write \(filename, content, mimetype\)"):
        check_message(data, default_sender=None)


def _parsed(name: str, value: str) -> str:
    content = b"".join(serialise(prepared(headers={name: value})))
    assert max(map(len, content.split(b"\r\n"))) <= 78
    assert content.isascii()
    return str(message_from_bytes(content, policy=policy.compat32)[name])


@pytest.mark.parametrize(
    ("value", "name", "identifier"),
    [
        ("<news.example.com>", "", "<news.example.com>"),
        ("Müller News <news.example.com>", "Müller News", "<news.example.com>"),
        ("News of May <news.example.com>", "News of May", "<news.example.com>"),
        ('"Müller, Söhne & Co." <a.b-c.example>', "Müller, Söhne & Co.", "<a.b-c.example>"),
        ("Tea, coffee (weekly) <tea.localhost>", '"Tea, coffee (weekly)"', "<tea.localhost>"),
        (f"{'Größe ' * 30}<long.example.com>", ("Größe " * 30).strip(), "<long.example.com>"),
    ],
)
def test_the_name_of_a_list_may_be_in_any_language(value: str, name: str, identifier: str) -> None:
    raw = " ".join(_parsed("List-Id", value).split())
    assert str(make_header(decode_header(raw.removesuffix(identifier).strip()))) == name
    assert raw.endswith(identifier)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("news.example.com", "must be <news.example.com> or Name <news.example.com>"),
        ("Name <news>.example", "must be"),
        ("Name <näws.example>", "must be"),
        ("Name < a b >", "must be"),
        ('"Name <a.example>', "must be"),
        ('"Na"me <a.example>', "must be"),
        ("", "must be"),
        (f"<{'a' * 256}>", "must be"),
        ("=?utf-8?q?M=C3=BCller?= <a.example>", "contains an encoded word; give plain text"),
    ],
)
def test_a_list_id_has_its_form(value: str, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=rf"^headers\['List-Id'\]: {re.escape(reason)}"):
        prepared(headers={"List-Id": value})


@pytest.mark.parametrize("name", ["Disposition-Notification-To", "Errors-To", "Return-Receipt-To", "mail-followup-to"])
def test_headers_of_addresses_take_names_in_any_language(name: str) -> None:
    raw = _parsed(name, 'Jürgen Müller <j@example.com>, "Ray, Bob" <b@example.com>, c@bücher.example')
    encoded, rest = raw.split(" <", 1)
    assert str(make_header(decode_header(encoded))) == "Jürgen Müller"
    assert " ".join(rest.split()) == 'j@example.com>, "Ray, Bob" <b@example.com>, c@xn--bcher-kva.example'
    for wrong in ("nobody", "a@example.com,", "", "a@example.com, Ray, Bob <b@example.com>", "é"):
        with pytest.raises(InvalidAddress, match=rf"^headers\['{name}'\]: "):
            prepared(headers={name: wrong})


def test_the_date_of_a_message_may_be_given() -> None:
    moment = datetime(2024, 2, 29, 13, 5, 7, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
    checked = prepared(date=moment)
    assert checked.date is moment
    assert b"Date: Thu, 29 Feb 2024 13:05:07 -0330\r\n" in b"".join(serialise(checked))


@pytest.mark.parametrize(
    ("date", "reason"),
    [
        (datetime(2024, 2, 29), "must be a datetime with a time zone, not datetime.datetime(2024, 2, 29, 0, 0)"),  # noqa: DTZ001
        ("2024-02-29", "must be a datetime with a time zone, not '2024-02-29'"),
        (0, "must be a datetime with a time zone, not 0; datetime.now(UTC) is one"),
        (datetime(1899, 12, 31, tzinfo=UTC), "is before 1900"),
    ],
)
def test_another_date_is_refused(date: Any, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=f"^date: {re.escape(reason)}"):
        prepared(date=date)


@pytest.mark.parametrize(
    ("given", "headers"),
    [
        ({"in_reply_to": "<a@b.c>"}, [("In-Reply-To", "<a@b.c>"), ("References", "<a@b.c>")]),
        ({"references": ["<1@b.c>", "<2@b.c>"]}, [("References", "<1@b.c> <2@b.c>")]),
        (
            {"in_reply_to": ("<2@b.c>",), "references": "<1@b.c>  <2@b.c>"},
            [("In-Reply-To", "<2@b.c>"), ("References", "<1@b.c> <2@b.c>")],
        ),
        (
            {"in_reply_to": ["<1@b.c>", "<2@b.c>"], "references": "<0@b.c>"},
            [("In-Reply-To", "<1@b.c> <2@b.c>"), ("References", "<0@b.c>")],
        ),
        (
            {"in_reply_to": "<a@b.c>", "headers": {"X-A": "1"}},
            [("X-A", "1"), ("In-Reply-To", "<a@b.c>"), ("References", "<a@b.c>")],
        ),
    ],
)
def test_a_reply_names_its_thread(given: dict[str, Any], headers: list[tuple[str, str]]) -> None:
    assert list(prepared(**given).headers) == headers


@pytest.mark.parametrize("field", ["in_reply_to", "references"])
@pytest.mark.parametrize(
    "value", ["", "a@b.c", "<a b@c>", "<a@b.c> x", [], ["<a@b.c>", 5], 5, ["<a@b.c>\r\nBcc: x@y.z"], "<ü@b.c>"]
)
def test_what_is_no_message_id_is_refused(field: str, value: Any) -> None:
    remedy = "is not a message id; give <unique@example.com>, or a list of them"
    with pytest.raises(InvalidMessage, match=f"^{field}: .* {remedy}$"):
        prepared(**{field: value})
    with pytest.raises(InvalidMessage, match=f"^{field}: contains CR"):
        prepared(**{field: "<a@b.c>\r\n<d@e.f>"})


def test_a_thread_is_given_once() -> None:
    with pytest.raises(InvalidMessage, match=r"^headers\['References'\]: is set by the argument in_reply_to already"):
        prepared(in_reply_to="<a@b.c>", headers={"references": "<a@b.c>"})


@pytest.mark.parametrize(
    ("name", "values", "lines"),
    [
        ("X-Tag", ["a", "b", "Müller"], ["a", "b", "Müller"]),
        ("X-Tag", ("a",), ["a"]),
        ("Comments", ["a", "a"], ["a", "a"]),
        ("References", ["<1@b.c>", "<2@b.c>"], ["<1@b.c> <2@b.c>"]),
        ("Errors-To", ["A <a@b.c>", '"C, D" <c@b.c>'], ['A <a@b.c>, "C, D" <c@b.c>']),
        ("List-Unsubscribe", ["<https://b.c/1>", "<mailto:a@b.c>"], ["<https://b.c/1>, <mailto:a@b.c>"]),
        ("Authentication-Results", ["b.c; none", "d.e; none"], ["b.c; none", "d.e; none"]),
    ],
)
def test_a_list_of_header_values_is_written_as_the_header_allows(name: str, values: Any, lines: list[str]) -> None:
    checked = prepared(headers={name: values})
    assert [value for _, value in checked.headers] == lines
    read = message_from_bytes(b"".join(serialise(checked)), policy=policy.default)
    assert read.get_all(name) == lines


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("X-Tag", [], "is an empty list; leave the header out"),
        ("X-Tag", ["a", "b\nBcc: x@y.z"], "contains LF"),
        ("X-Tag", ["a", 5], "must be a str, not int"),
        ("X-Tag", [["a"]], "must be a str, not list"),
        ("References", ["<1@b.c>", "ü"], "may contain only ASCII"),
        ("Errors-To", ["a@b.c", "nobody"], "'nobody' has no '@'"),
        ("Auto-Submitted", ["no", "no"], "may occur only once, and a list of 2 values is given; give one str"),
        ("Message-ID", ["<1@b.c>", "<2@b.c>"], "may occur only once"),
        ("Sender", ["a@b.c", "c@d.e"], "may occur only once"),
        ("List-Id", ["<a.b.c>", "<d.b.c>"], "may occur only once"),
    ],
)
def test_a_list_that_the_header_cannot_hold_is_refused(name: str, values: Any, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=rf"^headers\['{name}'\]: .*{re.escape(reason)}"):
        prepared(headers={name: values})
