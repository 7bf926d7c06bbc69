"""The bytes of a message: structure, encodings and headers, read back by the standard library's parser."""

import email
import email.header
import email.policy
import email.utils
import itertools
import random
import re
import time
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from email.message import EmailMessage
from email.utils import formataddr
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from openviper.core.email.addresses import AddressLike
from openviper.core.email.attachments import AttachmentData, looks_like_type
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import Content, EmailMessageData, PreparedMessage, build_message, check_message
from openviper.core.email.message.model import LateContent
from openviper.core.email.message.serialiser import (
    serialise,
    serialise_later,
    serialise_message,
    serialise_message_sync,
)

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOW = datetime(2024, 2, 29, 23, 5, 9, tzinfo=UTC)
# What may stand in a header at all; the rest is refused before.
HEADER_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=300)
BODY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=2000)
E_ACUTE = "%C3%A9"
BODY_LINES = st.lists(
    st.one_of(
        st.sampled_from(["", ".", "..", "From here", ">From", " ", "a ", "a\t", "=", "--", "é" * 40, "x" * 75 + " "]),
        st.text("a \t.=é\x00-F", max_size=200),
    ),
    max_size=30,
)


def prepared(**values: Any) -> PreparedMessage:
    usual: dict[str, Any] = {
        "recipients": ["to@example.com"],
        "subject": "Subject",
        "text": "Text",
        "sender": "shop@example.com",
        "headers": {"Message-ID": "<1@example.com>"},
    }
    return check_message(EmailMessageData(**{**usual, **values}), default_sender=None, now=NOW)


def written(**values: Any) -> bytes:
    """The bytes, after the checks that hold for every message."""
    content = b"".join(serialise(prepared(**values)))
    assert content.endswith(b"\r\n")
    assert re.search(rb"\r(?!\n)|(?<!\r)\n|\x00", content) is None
    head, _, body = content.partition(b"\r\n\r\n")
    assert max(map(len, head.split(b"\r\n"))) <= 998
    assert body.isascii()
    return content


def parsed(**values: Any) -> EmailMessage:
    message = email.message_from_bytes(written(**values), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert part.defects == []
    return message


def header_lines(content: bytes, name: str) -> list[str]:
    """The raw lines of one header, folded lines apart."""
    head = content.partition(b"\r\n\r\n")[0].decode()
    found = re.search(rf"(?:^|\r\n){name}:[^\r\n]*(?:\r\n [^\r\n]*)*", head)
    assert found is not None
    return found.group().removeprefix("\r\n").split("\r\n")


def unfolded(content: bytes, name: str) -> str:
    return "".join(header_lines(content, name)).removeprefix(f"{name}: ")


def lines(text: str) -> str:
    """``text`` as it arrives: one kind of line end, the last line ended."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if not text or text.endswith("\n") else f"{text}\n"


def body_of(part: Any) -> str:
    return part.get_payload(decode=True).decode().replace("\r\n", "\n")


def test_a_small_message_is_written_like_this() -> None:
    content = written(
        recipients=["Ann <ann@example.com>", "bob@example.com"],
        cc=["Renée Dupont <c@example.com>"],
        bcc=["secret@example.com"],
        reply_to=["help@example.com"],
        sender='"Shop, Inc." <shop@example.com>',
        subject="Grüße",
        text="Hello\nWörld",
        headers={"Message-ID": "<1@example.com>", "X-Order": "17"},
    )
    assert content == (
        b'From: "Shop, Inc." <shop@example.com>\r\n'
        b"To: Ann <ann@example.com>, bob@example.com\r\n"
        b"Cc: =?utf-8?q?Ren=C3=A9e_Dupont?= <c@example.com>\r\n"
        b"Reply-To: help@example.com\r\n"
        b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n"
        b"Date: Thu, 29 Feb 2024 23:05:09 +0000\r\n"
        b"Message-ID: <1@example.com>\r\n"
        b"X-Order: 17\r\n"
        b"MIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n"
        b"\r\n"
        b"Hello\r\nW=C3=B6rld\r\n"
    )


def test_the_same_prepared_message_gives_the_same_bytes() -> None:
    message = prepared(html="<p>x</p>", attachments=[AttachmentData("a.bin", b"\x00")])
    assert serialise(message) == serialise(message)


@pytest.mark.parametrize(
    ("moment", "date"),
    [
        (datetime(2024, 1, 1, 0, 0, 0, tzinfo=UTC), "Mon, 01 Jan 2024 00:00:00 +0000"),
        (datetime(1999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=5, minutes=30))), "+0530"),
        (
            datetime(2030, 7, 7, 1, 2, 3, tzinfo=timezone(-timedelta(hours=3, minutes=30))),
            "Sun, 07 Jul 2030 01:02:03 -0330",
        ),
    ],
)
def test_the_date_is_written_with_its_own_offset(moment: datetime, date: str) -> None:
    data = EmailMessageData(["to@example.com"], "", text="", sender="a@b.c")
    content = b"".join(serialise(check_message(data, default_sender=None, now=moment)))
    line = unfolded(content, "Date")
    assert line.endswith(date)
    assert email.utils.parsedate_to_datetime(line) == moment


def test_all_months_and_days_have_their_english_names() -> None:
    for days in range(0, 366, 3):
        moment = NOW + timedelta(days=days)
        data = EmailMessageData(["to@example.com"], "", text="", sender="a@b.c")
        content = b"".join(serialise(check_message(data, default_sender=None, now=moment)))
        assert unfolded(content, "Date") == email.utils.format_datetime(moment)


# Structure


def shape(part: Any) -> Any:
    kind = part.get_content_type()
    return (kind, [shape(each) for each in part.iter_parts()]) if part.is_multipart() else kind


LOGO = AttachmentData("logo.png", b"\x89PNG", "image/png", inline=True)
FILE = AttachmentData("a.pdf", b"%PDF", "application/pdf")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "t"}, "text/plain"),
        ({"text": ""}, "text/plain"),
        ({"text": None, "html": "h"}, "text/html"),
        ({"text": "t", "html": "h"}, ("multipart/alternative", ["text/plain", "text/html"])),
        ({"text": "t", "attachments": [FILE]}, ("multipart/mixed", ["text/plain", "application/pdf"])),
        (
            {"text": None, "html": "h", "attachments": [LOGO]},
            ("multipart/related", ["text/html", "image/png"]),
        ),
        (
            {"text": "t", "html": "h", "attachments": [FILE, LOGO, FILE]},
            (
                "multipart/mixed",
                [
                    (
                        "multipart/alternative",
                        ["text/plain", ("multipart/related", ["text/html", "image/png"])],
                    ),
                    "application/pdf",
                    "application/pdf",
                ],
            ),
        ),
        (
            {"text": "t", "attachments": [LOGO, FILE]},
            ("multipart/mixed", ["text/plain", "image/png", "application/pdf"]),
        ),
    ],
)
def test_parts_are_nested_by_what_they_are_for(values: dict[str, Any], expected: Any) -> None:
    assert shape(parsed(**values)) == expected


def test_related_names_its_root_and_inline_parts_their_content_id() -> None:
    message = parsed(html='<img src="cid:logo.png">', text=None, attachments=[LOGO])
    assert message.get_param("type") == "text/html"
    image = list(message.iter_parts())[1]
    assert re.fullmatch(r"<logo\.png\.[0-9a-f]{16}@example\.com>", image["Content-ID"])
    assert image.get_content_disposition() == "inline"
    assert image.get_filename() == "logo.png"
    assert image.get_payload(decode=True) == b"\x89PNG"


def test_an_attachment_with_a_content_id_that_is_not_inline_is_attached() -> None:
    message = parsed(html="h", attachments=[AttachmentData("a.png", b"1", "image/png", content_id="a@b")])
    assert shape(message)[0] == "multipart/mixed"
    image = list(message.iter_parts())[1]
    assert (image["Content-ID"], image.get_content_disposition()) == ("<a@b>", "attachment")


def test_nested_boundaries_differ_and_none_begins_with_another() -> None:
    content = written(html="h", attachments=[FILE, LOGO])
    boundaries = re.findall(rb'boundary="([^"]+)"', content)
    assert len(boundaries) == 3
    for boundary in boundaries:
        assert not any(other != boundary and other.startswith(boundary) for other in boundaries)
        assert boundary.startswith(b"=_")


def test_a_text_that_holds_the_boundary_does_not_end_its_part() -> None:
    boundary = re.findall(r'boundary="([^"]+)"', written(html="h").decode())[0]
    text = f"--{boundary}\n--{boundary}--\n"
    message = parsed(text=text, html="h")
    assert body_of(message.get_body(("plain",))) == text
    assert body_of(message.get_body(("html",))) == "h\n"


def test_bcc_is_nowhere_in_the_bytes() -> None:
    content = written(bcc=["secret@example.com", "Blind Person <blind@example.org>"])
    assert b"secret" not in content
    assert b"blind" not in content.lower()
    assert b"bcc" not in content.lower()


def test_blind_recipients_alone_stand_behind_an_empty_group() -> None:
    assert unfolded(written(recipients=[], bcc=["secret@example.com"]), "To") == "undisclosed-recipients:;"
    assert b"To:" not in written(recipients=[], cc=["c@example.com"]).replace(b"Reply-To:", b"")


# Bodies


@unhurried
@given(text=BODY_TEXT)
@example("a\rb\r\nc\n\rd")
@example("From me\nFrom you\n.\n..\n")
@example("x" * 2000)
@example("\x00\x01\x0b\x0c\x1a\x7f\u2028\u2029\x85")
@example("日本語" * 300)
@example("a " * 38 + "\n" + "b\t" * 40)
def test_any_text_arrives_as_it_was_but_for_its_line_ends(text: str) -> None:
    assert body_of(parsed(text=text)) == lines(text)
    message = parsed(text=text, html=text)
    assert body_of(message.get_body(("plain",))) == lines(text)
    assert body_of(message.get_body(("html",))) == lines(text)


@unhurried
@given(BODY_LINES.map("\n".join))
def test_lines_that_encoders_get_wrong_arrive_in_lines_of_76(text: str) -> None:
    content = written(text=text)
    body = content.partition(b"\r\n\r\n")[2]
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert not re.search(rb"(?m)[ \t]\r$", body)
    assert not re.search(rb"(?m)^From ", body)
    assert body_of(parsed(text=text)) == lines(text)


@pytest.mark.parametrize("end", ["", " ", "\t", "=", "= ", "==", "== ", "\u00e9", "\u00e9 ", "=\t", " ."])
@pytest.mark.parametrize("begin", ["", "From ", "=From ", ".", "\u00e9"])
def test_lines_of_every_length_around_the_limit_arrive(begin: str, end: str) -> None:
    """binascii alone makes lines of 77 octets where a space at the end is encoded."""
    text = "\n".join(f"{begin}{'x' * length}{end}" for length in range(66, 160))
    content = written(text=text)
    assert parsed(text=text)["Content-Transfer-Encoding"] == "quoted-printable"
    body = content.partition(b"\r\n\r\n")[2]
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert not re.search(rb"(?m)[ \t]\r$|^From ", body)
    assert body_of(parsed(text=text)) == lines(text)


@pytest.mark.parametrize("shift", range(75))
def test_a_slice_may_end_at_any_place_of_an_encoded_line(shift: int) -> None:
    text = "\x01" * shift + "x" * 131_072
    assert max(map(len, written(text=text).partition(b"\r\n\r\n")[2].split(b"\r\n"))) <= 76
    assert body_of(parsed(text=text)) == lines(text)


@pytest.mark.parametrize("unit", ["word é ", "x", "日本", "a b c\n", "a\r\n", "From x\n", "\r", "é", " ", "=\n", "\t"])
def test_a_long_text_is_encoded_in_slices_that_join_without_a_seam(unit: str) -> None:
    """Slices of 128 kB: seams inside words, line ends and runs of one character."""
    text = "".join([unit] * (600_000 // len(unit.encode())))
    content = written(text=text)
    assert max(map(len, content.partition(b"\r\n\r\n")[2].split(b"\r\n"))) <= 76
    assert body_of(parsed(text=text)) == lines(text)


@pytest.mark.parametrize("offset", range(131_065, 131_076))
def test_a_line_end_at_the_end_of_a_slice_is_not_torn(offset: int) -> None:
    text = "x" * offset + "\n" + "y" * 10
    assert body_of(parsed(text=text)) == lines(text)


def test_text_is_quoted_printable_until_base64_is_shorter() -> None:
    def encoding(text: str) -> str:
        return str(parsed(text=text)["Content-Transfer-Encoding"])

    assert encoding("plain") == "quoted-printable"
    assert encoding("a=b") == "quoted-printable"
    assert encoding("Grüße aus München, schöne Feiertage") == "quoted-printable"
    assert encoding("日本語のテキスト") == "base64"
    # With its line end 30 octets, 42 in base64 with its own: six escapes take as much.
    assert encoding("x" * 22 + "=" * 6) == "quoted-printable"
    assert encoding("x" * 21 + "=" * 7) == "base64"


def test_an_ascii_message_is_readable_as_it_is() -> None:
    assert b"\r\n\r\nDear Ann,\r\n\r\nyour order.\r\n" in written(text="Dear Ann,\n\nyour order.")


# Attachments


def attached(content: bytes, filename: str = "a.bin", mimetype: str = "application/octet-stream") -> Any:
    message = parsed(attachments=[AttachmentData(filename, content, mimetype)])
    return list(message.iter_parts())[1]


@unhurried
@given(st.binary(max_size=1000))
@example(b"")
@example(b"\r\n")
@example(b"\n.\n")
def test_any_bytes_arrive_as_they_were(content: bytes) -> None:
    assert attached(content).get_payload(decode=True) == content
    assert attached(content, "a.txt", "text/plain").get_payload(decode=True) == content


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 113, 114, 115])
@pytest.mark.parametrize("slices", [0, 1, 2])
def test_base64_has_no_seam_between_slices_and_no_longer_line(size: int, slices: int) -> None:
    content = bytes(range(256)) * (57 * 16 * slices) + b"\xff" * size
    written_content = written(attachments=[AttachmentData("a.bin", content)])
    assert max(map(len, written_content.split(b"\r\n"))) <= 78
    assert attached(content).get_payload(decode=True) == content


def test_the_type_of_an_attachment_keeps_its_parameters() -> None:
    part = attached(b"a", "a.csv", 'text/csv; charset=iso-8859-1 ;header="p q"')
    assert part.get_content_type() == "text/csv"
    assert part.get_param("charset") == "iso-8859-1"
    assert part.get_param("header") == "p q"


@unhurried
@given(HEADER_TEXT.filter(lambda name: name != "" and not looks_like_type(name)))
@example("a\"b\\c'd%20e;f=g.txt")
@example("=?utf-8?q?a=0D=0AX=3A_y?=.txt")
@example("utf-8''a%0D%0AX.txt")
@example("日本語" * 60 + ".pdf")
@example("a" * 300 + ".pdf")
@example(" a ")
@example("../../etc/passwd")
@example("\u202etxt.exe")
def test_any_file_name_arrives_as_it_was(filename: str) -> None:
    part = attached(b"a", filename)
    # Not get_filename(), which cuts spaces and quotes at the ends.
    assert part["Content-Disposition"].params["filename"] == filename
    assert part.get_content_disposition() == "attachment"
    content = written(attachments=[AttachmentData(filename, b"a")])
    part_head = content[content.rindex(b"Content-Type:") :].partition(b"\r\n\r\n")[0]
    assert part_head.isascii()
    assert max(map(len, part_head.split(b"\r\n"))) <= 78
    assert re.findall(rb"(?m)^[A-Za-z-]+:", part_head) == [
        b"Content-Type:",
        b"Content-Transfer-Encoding:",
        b"Content-Disposition:",
    ]


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("a.txt", 'attachment; filename="a.txt"'),
        ("a b;c.txt", 'attachment; filename="a b;c.txt"'),
        ("ü.txt", "attachment; filename*=utf-8''%C3%BC.txt"),
        ('a"b', "attachment; filename*=utf-8''a%22b"),
        ("a\\b", "attachment; filename*=utf-8''a%5Cb"),
        ("a%20b", "attachment; filename*=utf-8''a%2520b"),
        ("=?a?q?b?=", "attachment; filename*=utf-8''%3D%3Fa%3Fq%3Fb%3F%3D"),
        ("x" * 65, f'attachment; filename="{"x" * 65}"'),
        ("x" * 66, f"attachment; filename*0*=utf-8''{'x' * 57}; filename*1*={'x' * 9}"),
        (" a", "attachment; filename*=utf-8''%20a"),
        ("a ", "attachment; filename*=utf-8''a%20"),
        (
            "é" * 19,
            f"attachment; filename*0*=utf-8''{E_ACUTE * 9}%C3; filename*1*=%A9{E_ACUTE * 9}",
        ),
    ],
)
def test_a_file_name_is_spelled_like_this(filename: str, expected: str) -> None:
    content = written(attachments=[AttachmentData(filename, b"a")])
    disposition = content.split(b"Content-Disposition: ")[1].split(b"\r\n\r\n")[0].replace(b"\r\n", b"").decode()
    assert disposition == expected


def test_an_attached_message_travels_unencoded_and_readable() -> None:
    inner = b"Subject: inner\nContent-Type: text/plain\r\n\nFrom a\r.\n--=_x\nend"
    message = parsed(attachments=[AttachmentData("m.eml", inner, "message/rfc822")])
    part = list(message.iter_parts())[1]
    assert part["Content-Transfer-Encoding"] == "7bit"
    assert part.get_content_type() == "message/rfc822"
    assert part.get_content()["Subject"] == "inner"
    assert body_of(part.get_content()) == "From a\n.\n--=_x\nend"
    assert part.get_filename() == "m.eml"


@pytest.mark.parametrize(
    "inner",
    [b"Subject: \xc3\xbc\n\nx", b"a: b\n\n" + b"x" * 999, b"a: b\n\n\x00", b"a: b\n\n" + b"x" * 200_000],
    ids=["8bit", "long line", "NUL", "long slice"],
)
@pytest.mark.parametrize(("filename", "arrives"), [("m.EML", "m.EML"), ("mail", "mail.eml")])
def test_an_attached_message_that_cannot_travel_unencoded_is_a_file(inner: bytes, filename: str, arrives: str) -> None:
    part = attached(inner, filename, "Message/RFC822")
    assert part.get_content_type() == "application/octet-stream"
    assert part.get_filename() == arrives
    assert part.get_payload(decode=True) == inner


def test_a_long_attached_message_travels_unencoded_in_slices() -> None:
    inner = b"Subject: inner\r\n\r\n" + b"line\r\n" * 60_000 + b"x" * 998 + b"\n"
    part = attached(inner, "m.eml", "message/rfc822")
    assert part["Content-Transfer-Encoding"] == "7bit"
    assert part.get_content().get_payload() == inner.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n").decode().replace(
        "\n", "\r\n"
    )


@pytest.mark.parametrize("before", [0, 262_090, 262_110, 262_130, 262_150, 600_000])
def test_an_attached_message_cannot_hold_the_boundary(before: int) -> None:
    """Someone who knows the message id could otherwise end the part from inside."""
    boundary = re.findall(rb'boundary="([^"]+)"', written(attachments=[FILE]))[0]
    inner = (
        b"Subject: inner\r\n\r\n"
        + b"\r\n" * (before // 2)
        + b"--"
        + boundary
        + b"\r\nContent-Type: text/html\r\n\r\nevil\r\n"
    )
    message = parsed(attachments=[AttachmentData("m.eml", inner, "message/rfc822")])
    assert shape(message) == ("multipart/mixed", ["text/plain", ("message/rfc822", ["text/plain"])])


# Headers


@unhurried
@given(HEADER_TEXT)
@example("=?utf-8?q?x=0D=0ABcc=3A_evil=40x.test?=")
@example("=?utf-8?q?x=0D=0ABcc=3A_evil=40x.test?= é")
@example("=?")
@example(" leading")
@example("trailing ")
@example("a  b   c" * 30)
@example("word " * 40 + "end")
@example("é" * 300)
@example("x" * 300)
@example("x" * 69)
@example("x" * 70)
@example("日本語のとても長い件名" * 20)
@example("😀" * 100)
@example("e\u0301" * 80)
@example("\u202eright to left\u2066")
def test_any_subject_arrives_as_it_was_and_adds_nothing(subject: str) -> None:
    content = written(subject=subject)
    message = parsed(subject=subject)
    assert message["Subject"] == subject
    assert list(message.keys()) == list(parsed(subject="x").keys())
    raw = header_lines(content, "Subject")
    assert max(map(len, raw)) <= 78
    assert not any(line.isspace() for line in raw)
    for line in raw:
        for word in re.findall(r"=\?[^ ]*\?=", line):
            assert len(word) <= 75
            assert len(line) <= 76


@unhurried
@given(HEADER_TEXT)
def test_no_encoded_word_splits_a_character(subject: str) -> None:
    for word in re.findall(r"=\?utf-8\?[qb]\?[^?]*\?=", unfolded(written(subject=f"é{subject}"), "Subject")):
        (raw, charset), *more = email.header.decode_header(word)
        assert more == []
        assert charset == "utf-8"
        raw.decode()


@pytest.mark.parametrize(
    ("subject", "raw"),
    [
        ("", [""]),
        ("plain", ["plain"]),
        ("x" * 69, ["x" * 69]),
        ("x" * 70, [f"=?utf-8?q?{'x' * 55}?=", f" =?utf-8?q?{'x' * 15}?="]),
        (f"{'a' * 20} {'x' * 68}", ["a" * 20, " " + "x" * 68]),
        (f"a {'x' * 69}", [f"=?utf-8?q?a_{'x' * 53}?=", f" =?utf-8?q?{'x' * 16}?="]),
        ("x" * 118, [f"=?utf-8?q?{'x' * 55}?=", f" =?utf-8?q?{'x' * 63}?="]),
        ("x" * 119, [f"=?utf-8?q?{'x' * 55}?=", f" =?utf-8?q?{'x' * 63}?=", " =?utf-8?q?x?="]),
        ("日" * 13, [f"=?utf-8?b?{'5pel' * 13}?="]),
        ("日" * 29, [f"=?utf-8?b?{'5pel' * 13}?=", f" =?utf-8?b?{'5pel' * 15}?=", " =?utf-8?b?5pel?="]),
        ("é" * 5, ["=?utf-8?b?w6nDqcOpw6nDqQ==?="]),
        ("café", ["=?utf-8?b?Y2Fmw6k=?="]),
        ("a_b = c?é", ["=?utf-8?b?YV9iID0gYz/DqQ==?="]),
        ("=?utf-8?q?a?=", ["=?utf-8?b?PT91dGYtOD9xP2E/PQ==?="]),
        (" a", ["=?utf-8?q?_a?="]),
        ("a ", ["=?utf-8?q?a_?="]),
        (f"{'a' * 40} {'b' * 40}  {'c' * 60}", ["a" * 40, " " + "b" * 40, "  " + "c" * 60]),
        ("w " * 35 + "end", ["w " * 34 + "w", " end"]),
    ],
)
def test_a_subject_is_spelled_like_this(subject: str, raw: list[str]) -> None:
    assert header_lines(written(subject=subject), "Subject") == [f"Subject: {raw[0]}", *raw[1:]]


@unhurried
@given(
    st.lists(st.tuples(HEADER_TEXT, st.from_regex(r"[a-z]{1,30}@[a-z]{1,20}", fullmatch=True)), min_size=1, max_size=5)
)
@example([("=?utf-8?q?evil=40x.test=2C_?=", "a@x")])
@example([('"', "a@x"), ("\\", "b@x"), ("a, b", "c@x"), ("<a@b>", "d@x"), ("a@b", "e@x")])
@example([("x" * 60, "a@x"), ("x" * 61, "a@y"), ("é" * 60, "a@z")])
@example([("(comment)", "a@x"), ("a:b;", "b@x"), ("a  b", "c@x"), ("Mr. X", "d@x")])
def test_any_names_arrive_as_they_were_with_their_addresses(pairs: list[tuple[str, str]]) -> None:
    addresses = []
    expected = []
    for name, spec in pairs:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        addresses.append(f'"{escaped}" <{spec}>')
        expected.append((name.strip(" "), spec))
    content = written(recipients=addresses, cc=addresses, sender=addresses[0], reply_to=addresses)
    message = parsed(recipients=addresses, cc=addresses, sender=addresses[0], reply_to=addresses)
    unique = list(dict.fromkeys(expected))
    for field in ("To", "Cc", "Reply-To"):
        assert [each.addr_spec for each in message[field].addresses] == [spec for _, spec in unique]
        # The standard library's newer parser puts a space between two encoded words of a name; the older does not.
        pairs_read = email.utils.getaddresses([unfolded(content, field)])
        assert [
            (str(email.header.make_header(email.header.decode_header(name))), spec) for name, spec in pairs_read
        ] == (unique)
        raw = header_lines(content, field)
        assert max(map(len, raw)) <= 76
        assert "".join(raw).isascii()
    assert [each.addr_spec for each in message["From"].addresses] == [expected[0][1]]


@pytest.mark.parametrize(
    ("address", "raw"),
    [
        ("a@b.c", "a@b.c"),
        ("Ann Lee <a@b.c>", "Ann Lee <a@b.c>"),
        ("Ann Q. Lee <a@b.c>", '"Ann Q. Lee" <a@b.c>'),
        ('"A  B" <a@b.c>', '"A  B" <a@b.c>'),
        (r'"A \"B\" \\" <a@b.c>', r'"A \"B\" \\" <a@b.c>'),
        (f"{'x' * 60} <a@b.c>", f"{'x' * 60} <a@b.c>"),
        (f"{'x' * 61} <a@b.c>", f"=?utf-8?q?{'x' * 60}?= =?utf-8?q?x?= <a@b.c>"),
        (f'"{"," * 60}" <a@b.c>', f'"{"," * 60}" <a@b.c>'),
        ('"' + '\\"' * 30 + '" <a@b.c>', '"' + '\\"' * 30 + '" <a@b.c>'),
        ('"' + '\\"' * 31 + '" <a@b.c>', f"=?utf-8?b?{'IiIi' * 10}Ig==?= <a@b.c>"),
        ('"=?x?=" <a@b.c>', "=?utf-8?b?PT94Pz0=?= <a@b.c>"),
        (formataddr(("Müller", "a@b.c")), "=?utf-8?q?M=C3=BCller?= <a@b.c>"),
        (("=?utf-8?q?M=C3=BCller?=", "a@b.c"), "=?utf-8?b?PT91dGYtOD9xP009QzM9QkNsbGVyPz0=?= <a@b.c>"),
        (("Costa, Ana", "a@b.c"), '"Costa, Ana" <a@b.c>'),
        ("Zoë <a@bücher.example>", "=?utf-8?q?Zo=C3=AB?= <a@xn--bcher-kva.example>"),
        ('"a..b"@b.c', '"a..b"@b.c'),
        ("a@[127.0.0.1]", "a@[127.0.0.1]"),
    ],
)
def test_an_address_is_spelled_like_this(address: AddressLike, raw: str) -> None:
    assert unfolded(written(recipients=[address]), "To") == raw


def test_many_addresses_are_folded_between_them() -> None:
    recipients = [f"recipient-{number}@example.com" for number in range(200)]
    raw = header_lines(written(recipients=recipients), "To")
    assert max(map(len, raw)) <= 76
    assert len(raw) < 120
    assert [each.addr_spec for each in parsed(recipients=recipients)["To"].addresses] == recipients


@unhurried
@given(HEADER_TEXT)
def test_any_value_of_an_own_header_arrives_as_it_was(value: str) -> None:
    headers = {"Message-ID": "<1@example.com>", "X-Own-Header": value}
    assert parsed(headers=headers)["X-Own-Header"] == value
    assert max(map(len, header_lines(written(headers=headers), "X-Own-Header"))) <= 400


@pytest.mark.parametrize("value", ["\U0001f600" * 30, "\U0001f600a" * 30, "=?" + "a" * 100])
def test_the_longest_header_name_leaves_room_for_a_character(value: str) -> None:
    name = "X" * 50
    raw = header_lines(written(headers={name: value}), name)
    assert max(map(len, raw)) <= 76
    assert "??=" not in "".join(raw).replace("?=?=", "")
    assert parsed(headers={name: value})[name] == value


def test_a_long_word_of_an_own_header_is_for_programs_and_stays() -> None:
    value = '{"a": "' + "x" * 900 + '"}'
    assert unfolded(written(headers={"X-Data": value}), "X-Data") == value
    longest = "x" * (998 - len("X-Data: "))
    assert header_lines(written(headers={"X-Data": longest}), "X-Data") == [f"X-Data: {longest}"]
    assert parsed(headers={"X-Data": f"{longest}x"})["X-Data"] == f"{longest}x"
    assert max(map(len, header_lines(written(headers={"X-Data": f"{longest}x"}), "X-Data"))) <= 76


def test_references_are_folded_between_ids_and_urls_never_encoded() -> None:
    references = " ".join(f"<{number}.{'x' * 30}@mail.example.com>" for number in range(40))
    url = f"<https://example.com/unsubscribe?token={'t' * 300}>, <mailto:unsubscribe@example.com?subject=a=?b>"
    content = written(headers={"References": references, "List-Unsubscribe": url, "In-Reply-To": "<a..b@c>"})
    assert unfolded(content, "References") == references
    assert max(map(len, header_lines(content, "References"))) <= 78
    assert unfolded(content, "List-Unsubscribe") == url
    assert unfolded(content, "In-Reply-To") == "<a..b@c>"


def test_the_header_sender_is_written_as_an_address() -> None:
    assert unfolded(written(headers={"Sender": "Büro <a@bücher.example>"}), "Sender") == (
        "=?utf-8?b?QsO8cm8=?= <a@xn--bcher-kva.example>"
    )


# Envelope, size and threads


async def test_the_envelope_has_what_smtp_is_told() -> None:
    message = prepared(cc=["C <c@bücher.example>"], bcc=["b@example.com"], envelope_sender="")
    sent = await serialise_message(message, max_message_bytes=10_000)
    assert sent.envelope.sender == ""
    assert sent.envelope.recipients == ("to@example.com", "c@xn--bcher-kva.example", "b@example.com")
    assert not sent.envelope.smtputf8
    assert sent.size == len(b"".join(sent.content))
    assert sent.prepared is message
    assert sent.message_id == "<1@example.com>"


@pytest.mark.parametrize(
    "values",
    [
        {"recipients": ["ü@example.com"]},
        {"cc": ["ü@example.com"]},
        {"bcc": ["ü@example.com"]},
        {"reply_to": ["ü@example.com"]},
        {"sender": "ü@example.com"},
        {"envelope_sender": "ü@example.com"},
        {"headers": {"Sender": "ü@example.com"}},
    ],
)
async def test_an_international_local_part_anywhere_needs_smtputf8(values: dict[str, Any]) -> None:
    message = await serialise_message(prepared(**values), max_message_bytes=10_000)
    assert message.envelope.smtputf8


def test_an_international_address_stands_in_the_header_as_utf_8() -> None:
    assert unfolded(written(recipients=["Zoë <用户@example.com>"]), "To") == "=?utf-8?q?Zo=C3=AB?= <用户@example.com>"


@pytest.mark.parametrize("size", [10, 100_000, 300_000, 1_000_000])
async def test_large_and_small_messages_are_the_same_as_serialised(size: int) -> None:
    message = prepared(html="é" * size, attachments=[AttachmentData("a.bin", b"x" * size)])
    sent = await serialise_message(message, max_message_bytes=20_000_000)
    assert tuple(sent.content) == tuple(serialise(message))
    assert max(map(len, sent.content)) <= 330_000
    assert b"\r\n\r\n" in sent.content[0]


async def test_a_message_too_large_is_refused_naming_its_largest_part() -> None:
    attachments = [AttachmentData("small.bin", b"x" * 1000), AttachmentData("big.bin", b"x" * 3_000)]
    with pytest.raises(InvalidMessage) as caught:
        await serialise_message(prepared(html="h" * 500, attachments=attachments), max_message_bytes=4_000)
    assert 'EMAIL["max_message_bytes"] (4,000)' in str(caught.value)
    assert "the largest part is attachment 'big.bin' with 4,104 bytes" in str(caught.value)


@pytest.mark.parametrize(("values", "name"), [({"text": "x" * 5_000}, "text"), ({"html": "x" * 5_000}, "html")])
async def test_a_body_too_large_is_named(values: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidMessage, match=f"the largest part is {name} with 5,000 bytes"):
        await serialise_message(prepared(**values), max_message_bytes=4_000)


async def test_the_limit_is_on_the_encoded_message_to_the_byte() -> None:
    message = prepared(attachments=[AttachmentData("a.bin", b"x" * 1_000)])
    size = sum(map(len, serialise(message)))
    assert (await serialise_message(message, max_message_bytes=size)).size == size
    with pytest.raises(InvalidMessage, match=f"^message: {size:,} bytes are more than"):
        await serialise_message(message, max_message_bytes=size - 1)


async def test_a_message_that_is_all_header_can_be_too_large_as_well() -> None:
    with pytest.raises(InvalidMessage, match=r"the largest part is the header"):
        await serialise_message(prepared(text="", subject="x" * 20_000), max_message_bytes=10_000)


async def test_attachments_are_not_encoded_to_find_that_they_are_too_large() -> None:
    message = prepared(attachments=[AttachmentData("a.bin", bytes(20_000_000))])
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage):
            await serialise_message(message, max_message_bytes=20_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


async def test_the_same_message_can_go_to_some_of_its_recipients() -> None:
    message = await serialise_message(
        prepared(recipients=["a@b.c", "d@e.f"], envelope_sender=""), max_message_bytes=10_000
    )
    rest = message.for_recipients(("d@e.f",))
    assert rest.envelope.recipients == ("d@e.f",)
    assert rest.envelope.sender == ""
    assert (rest.content, rest.size, rest.prepared) == (message.content, message.size, message.prepared)


async def test_an_attached_message_is_measured_as_it_travels() -> None:
    """Unencoded it is a quarter smaller than base64 would be."""
    inner = b"Subject: inner\r\n\r\n" + b"line of text\r\n" * 1000
    message = prepared(attachments=[AttachmentData("m.eml", inner, "message/rfc822")])
    assert (await serialise_message(message, max_message_bytes=len(inner) + 1000)).size < len(inner) + 1000


async def test_a_large_attachment_is_never_there_encoded_as_a_whole() -> None:
    content = bytes(10_000_000)
    message = prepared(attachments=[AttachmentData("a.bin", content)])
    tracemalloc.start()
    try:
        sent = await serialise_message(message, max_message_bytes=20_000_000)
        assert sum(map(len, sent.content)) == sent.size
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert sent.size > 13_000_000


# build_message


def test_build_message_is_a_standard_message_of_the_same_bytes() -> None:
    data = EmailMessageData(
        ["Zoë <zoe@example.com>"],
        "Größe",
        text="text",
        html="<p>html</p>",
        bcc=["secret@example.com"],
        attachments=[FILE, LOGO],
        sender="Shop <shop@example.com>",
    )
    message = build_message(data)
    assert type(message) is EmailMessage
    assert message["Subject"] == "Größe"
    assert message["To"].addresses[0].display_name == "Zoë"
    assert message["Bcc"] is None
    assert [part.get_filename() for part in message.iter_attachments()] == ["a.pdf"]
    html = message.get_body(("html",))
    assert html is not None
    assert html.get_content() == "<p>html</p>\r\n"
    assert b"secret" not in message.as_bytes()


@unhurried
@given(subject=HEADER_TEXT, name=HEADER_TEXT, text=BODY_TEXT)
@example("=?utf-8?q?x=0D=0ABcc=3A_evil=40x.test?=", "=?utf-8?q?x=0D=0ABcc=3A_evil=40x.test?=", "")
def test_build_message_writes_the_bytes_that_it_was_made_from(subject: str, name: str, text: str) -> None:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    data = EmailMessageData(
        [f'"{escaped}" <a@example.com>'],
        subject,
        text=text,
        html=text,
        sender="shop@example.com",
        headers={"Message-ID": "<1@example.com>"},
        attachments=[FILE],
    )
    message = build_message(data)
    again = email.message_from_bytes(message.as_bytes(), policy=email.policy.default)
    assert again["Subject"] == subject
    assert again.keys() == message.keys()
    data_bytes = b"".join(serialise(check_message(data, default_sender=None, now=message["Date"].datetime)))
    assert message.as_bytes() == data_bytes


def test_build_message_keeps_international_addresses() -> None:
    message = build_message(EmailMessageData(["用户@example.com"], "x", text="x", sender="a@b.c"))
    assert message["To"].addresses[0].addr_spec == "用户@example.com"
    assert "用户@example.com".encode() in message.as_bytes()


def test_build_message_needs_a_sender() -> None:
    with pytest.raises(InvalidMessage, match=r"^sender: build_message reads no settings"):
        build_message(EmailMessageData(["a@b.c"], "x", text="x"))


def test_hostile_200_kb_of_header_are_judged_at_once() -> None:
    for hostile in ("é" * 200_000, "=?" * 100_000, "=?a?q?" * 33_000, " " * 200_000, "a " * 100_000, "\x00" * 200_000):
        started = time.thread_time()
        for values in (
            {"subject": hostile},
            {"headers": {"X-Own": hostile}},
            {"headers": {"References": hostile}},
            {"headers": {hostile: "x"}},
            {"attachments": [AttachmentData(hostile, b"")]},
            {"attachments": [AttachmentData("a", b"", hostile)]},
            {"attachments": [AttachmentData("a", b"", content_id=hostile)]},
        ):
            with pytest.raises(InvalidMessage):
                prepared(**values)
        assert time.thread_time() - started < 10


@pytest.mark.parametrize("unit", ["é", "=?", "a ", " ", "a  ", "x", "=?a?q?b?= "])
def test_the_longest_header_is_written_at_once(unit: str) -> None:
    value = (unit * 32_000)[:31_990] + "x"
    started = time.thread_time()
    written(subject=value, headers={"X-Own": value})
    assert time.thread_time() - started < 10


def test_the_chunks_that_are_encoded_hold_whole_lines_only() -> None:
    """A large attachment is mostly such chunks; those with headers or text are never among them."""
    large = AttachmentData("film.bin", bytes(range(256)) * 4096, "application/octet-stream")
    shown = AttachmentData("photo.png", b"\r\n" * 200_000, "image/png", content_id="photo", inline=True)
    content = serialise(prepared(html="<p>h</p>", attachments=[large, shown]))
    assert isinstance(content, Content)
    encoded = [chunk for chunk, literal in zip(content, content.literal(), strict=True) if literal is None]
    assert sum(map(len, encoded)) > 0.99 * sum(map(len, content))
    for chunk in encoded:
        *lines, rest = chunk.split(b"\r\n")
        assert {len(line) for line in lines} == {76}
        assert len(rest) <= 76
        assert not any(b"\r" in line or b"\n" in line for line in (*lines, rest))
    assert sum(not chunk.endswith(b"\r\n") for chunk in encoded) == 2  # the last ones of each


@pytest.mark.parametrize("size", [196_000, 29_184 * 7 - 1, 29_184 * 7, 29_184 * 7 + 1, 29_184 * 7 + 58, 1_000_000])
def test_content_can_be_gone_through_again_and_tells_its_lengths_without_encoding(size: int) -> None:
    data = random.Random(size).randbytes(size)
    content = serialise(prepared(attachments=[AttachmentData("a.bin", data)]))
    assert isinstance(content, Content)
    assert list(content.lengths) == [len(chunk) for chunk in content]
    assert b"".join(content) == b"".join(content) == b"".join([content[number] for number in range(len(content))])
    (part,) = [part for part in email.message_from_bytes(b"".join(content)).walk() if part.get_filename()]
    assert part.get_payload(decode=True) == data


def test_late_content_is_made_once_when_it_is_first_read() -> None:
    made: list[int] = []

    def make() -> list[bytes]:
        made.append(1)
        return [b"Subject: x\r\n", b"\r\nText\r\n"]

    content = LateContent(make)
    assert made == []
    assert (len(content), list(content.lengths), content.in_file, content[1]) == (2, [12, 8], False, b"\r\nText\r\n")
    assert b"".join(content) == b"Subject: x\r\n\r\nText\r\n"
    assert made == [1]
    with pytest.raises(AttributeError):
        content.chunks  # noqa: B018


@given(text=BODY_TEXT, html=st.none() | BODY_TEXT, subject=HEADER_TEXT, name=HEADER_TEXT, cc=st.booleans())
@example("\n" * 2000, "\r" * 2000, "\U0001f40d" * 300, "\U0001f40d" * 300, True)
@unhurried
def test_what_is_serialised_later_has_the_same_bytes_and_is_within_the_limit(
    text: str, html: str | None, subject: str, name: str, cc: bool
) -> None:
    recipient = (name, "to@example.com")
    message = prepared(
        text=text, html=html, subject=subject, recipients=[recipient], cc=[(name, "cc@example.com")] if cc else []
    )
    limit = next(limit for limit in itertools.count(4096, 64) if serialise_later(message, max_message_bytes=limit))
    now, later = (
        serialise_message_sync(message, max_message_bytes=limit),
        serialise_later(message, max_message_bytes=limit),
    )
    assert later is not None
    assert b"".join(later.content) == b"".join(now.content)
    assert later.envelope == now.envelope
    assert later.size == len((text + (html or "")).encode())


@pytest.mark.parametrize(
    "values",
    [
        {"attachments": [AttachmentData("a.txt", b"x")]},
        {"recipients": ["b\u00fccher@example.com"]},
        {"reply_to": ["b\u00fccher@example.com"]},
        {"headers": {"Message-ID": "<1@example.com>", "Sender": "b\u00fccher@example.com"}},
        {"text": "\ud800"},
        {"html": "x" * 100_000},
    ],
)
def test_what_only_the_bytes_show_is_not_left_for_later(values: dict[str, Any]) -> None:
    assert serialise_later(prepared(**values), max_message_bytes=1_000_000) is None
