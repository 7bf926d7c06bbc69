"""The address grammar: what is one address, what it becomes, and what is refused by name."""

import pickle
import re
import time
from email.headerregistry import Address as StandardAddress
from email.utils import formataddr
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openviper.core.email.addresses import Address, AddressLike, parse_address, parse_addresses, read_address
from openviper.core.email.errors import InvalidAddress, InvalidMessage

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refusal(value, field="recipients"):
    with pytest.raises(InvalidAddress) as caught:
        parse_address(value, field=field)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "display_name", "local_part", "domain"),
    [
        ("a@b.c", "", "a", "b.c"),
        ("  a@b.c  ", "", "a", "b.c"),
        ("<a@b.c>", "", "a", "b.c"),
        ("Alice <a@b.c>", "Alice", "a", "b.c"),
        ("Alice<a@b.c>", "Alice", "a", "b.c"),
        ("Alice Q. Public <a@b.c>", "Alice Q. Public", "a", "b.c"),
        ("O'Neill & Söhne <a@b.c>", "O'Neill & Söhne", "a", "b.c"),
        ("山田太郎 <a@b.c>", "山田太郎", "a", "b.c"),
        ("محمد <a@b.c>", "محمد", "a", "b.c"),
        ('"Alice, Inc. <x@y.z>" <a@b.c>', "Alice, Inc. <x@y.z>", "a", "b.c"),
        (r'"A \"B\" \\ C" <a@b.c>', r'A "B" \ C', "a", "b.c"),
        ('"" <a@b.c>', "", "a", "b.c"),
        ('" " <a@b.c>', "", "a", "b.c"),
        ('"Alice"<a@b.c>', "Alice", "a", "b.c"),
        ("=?utf-8?q?evil=40x.test=2C_?= <a@b.c>", "evil@x.test,", "a", "b.c"),
        ('"=?utf-8?q?evil=40x.test=2C_?=" <a@b.c>', "=?utf-8?q?evil=40x.test=2C_?=", "a", "b.c"),
        ("=?ISO-8859-1*de?Q?M=FCller?= <a@b.c>", "Müller", "a", "b.c"),
        ("=?utf-8?b?8J+QjQ==?= =?utf-8?q?_Ana?= X <a@b.c>", "🐍 Ana X", "a", "b.c"),
        ("Ana  =?utf-8?q?=C3=BC?=  B <a@b.c>", "Ana  ü  B", "a", "b.c"),
        ("=?iso-2022-jp?B?GyRCOzNFRBsoQg==?= <a@b.c>", "山田", "a", "b.c"),
        ("=?x <a@b.c>", "=?x", "a", "b.c"),
        ("first.last+tag@example.com", "", "first.last+tag", "example.com"),
        ("!#$%&'*+-/=?^_`{|}~@example.com", "", "!#$%&'*+-/=?^_`{|}~", "example.com"),
        ("a?=b@example.com", "", "a?=b", "example.com"),
        ("a@Xn-b.Example", "", "a", "Xn-b.Example"),
        ("a@localhost", "", "a", "localhost"),
        ("a@Example.COM", "", "a", "Example.COM"),
        ("A@b.c", "", "A", "b.c"),
        ("a@b--c.example", "", "a", "b--c.example"),
        ("a@1und1.de", "", "a", "1und1.de"),
        ("a@[127.0.0.1]", "", "a", "[127.0.0.1]"),
        ("a@[IPv6:2001:DB8:0::1]", "", "a", "[IPv6:2001:db8::1]"),
        ("a@[ipv6:::1]", "", "a", "[IPv6:::1]"),
        ('"a..b"@b.c', "", '"a..b"', "b.c"),
        ('".a"@b.c', "", '".a"', "b.c"),
        ('"a,b:c;d"@b.c', "", '"a,b:c;d"', "b.c"),
        ('Name <"a..b"@b.c>', "Name", '"a..b"', "b.c"),
        ('"a.b"@b.c', "", "a.b", "b.c"),
        ("user@bücher.example", "", "user", "xn--bcher-kva.example"),
        ("user@BÜCHER.example", "", "user", "xn--bcher-kva.example"),
        ("user@straße.example", "", "user", "xn--strae-oqa.example"),
        ("user@例え。テスト", "", "user", "xn--r8jz45g.xn--zckzah"),
        ("user@xn--bcher-kva.example", "", "user", "xn--bcher-kva.example"),
        ("user@XN--Bcher-KVA.example", "", "user", "xn--bcher-kva.example"),
        ("bücher@example.com", "", "bücher", "example.com"),
        ("bu\u0308cher@example.com", "", "bücher", "example.com"),
        ("用户@例え.テスト", "", "用户", "xn--r8jz45g.xn--zckzah"),
    ],
)
def test_an_accepted_form_gives_these_three_values(written, display_name, local_part, domain):
    assert parse_address(written, field="to") == Address(display_name, local_part, domain)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("alice", "has no '@'"),
        ("Alice <alice>", "has no '@'"),
        ("<>", "has no '@'"),
        ("Alice <>", "has no '@'"),
        ("@b.c", "nothing before '@'"),
        ("<@relay.example:a@b.c>", "routes are not supported"),
        ("a@", "a label that is empty"),
        ("a@b..c", "a label that is empty"),
        ("a@.b", "a label that is empty"),
        ("a@b.c.", "a label that is empty"),
        ("a@-b.c", "not made of letters"),
        ("a@b-.c", "not made of letters"),
        ("a@b_c.d", "not made of letters"),
        ("a@b.c/d", "not made of letters"),
        ("a@b.c%00", "not made of letters"),
        ("a@127.0.0.1", "write an IP address as [192.0.2.1]"),
        ("a@\uff12.\uff12.\uff12.\uff12", "write an IP address as [192.0.2.1]"),
        ("a@[127.0.0.01]", "an address literal that is not"),
        ("a@[127.1]", "an address literal that is not"),
        ("a@[127.0.0.1", "an address literal that is not"),
        ("a@[]", "an address literal that is not"),
        ("a@[", "an address literal that is not"),
        ("a@[::1]", "an address literal that is not"),
        ("a@[IPv6:::1", "an address literal that is not"),
        ("a@[IPv6:127.0.0.1]", "an address literal that is not"),
        ("a@[IPv6:fe80::1%eth0]", "an address literal that is not"),
        ("a@[127.0.0.1].evil.example", "an address literal that is not"),
        ("a@[x.y]", "an address literal that is not"),
        ("a@b@c.d", "has '@' in its domain"),
        ("a b@c.d", "has ' ' in its local part"),
        ("a@b c.d", "has ' ' in its domain"),
        ("a(comment)@b.c", "has '(' in its local part"),
        ("a@b.c (comment)", "has ' ' in its domain"),
        ("a@b.c(comment)", "has '(' in its domain"),
        ("a@(comment)b.c", "has '(' in its domain"),
        ("(comment) <a@b.c>", "has '(' in its name"),
        ("Friends: a@b.c, d@e.f;", "has ':' in its local part"),
        ("Friends: <a@b.c>", "has ':' in its name; put the name in double quotes"),
        ("a:b@c.d", "has ':' in its local part"),
        ("a\\b@c.d", "has '\\\\' in its local part"),
        ("a[b@c.d", "has '[' in its local part"),
        (".a@b.c", "a dot at the start or end of its local part"),
        ("a.@b.c", "a dot at the start or end of its local part"),
        ("a..b@c.d", "two in a row"),
        ("é..b@c.d", "two in a row"),
        ("a@b.c, d@e.f", "contains several addresses; this takes one address"),
        ("a@b.c,d@e.f", "contains several addresses; this takes one address"),
        ("a@b.c;d@e.f", "contains several addresses; this takes one address"),
        ("a,d@e.f", "contains several addresses; this takes one address"),
        ("A <a@b.c>, D <d@e.f>", "contains more than one '<...>'; this takes one address"),
        ('"A" <a@b.c>, "D" <d@e.f>', "contains more than one '<...>'; this takes one address"),
        ("a@b.c, D <d@e.f>", "several addresses or an unquoted name"),
        ("Doe, John <a@b.c>", "an unquoted name; this takes one address: put its name in double quotes"),
        ("x@y.z <a@b.c>", "has '@' in its name; put the name in double quotes"),
        ('Bob "B" <a@b.c>', "has '\"' in its name"),
        ('"Bob" B <a@b.c>', "the whole name in one pair of quotes"),
        ('"Bob" a@b.c>', "between the quoted name and '<'"),
        ('"Bob <a@b.c>', "an opening quote without a closing one"),
        ('"Bob\\" <a@b.c>', "an opening quote without a closing one"),
        ('"Bob\\', "has a quoted local part that is not followed by '@'"),
        ("a@b.c>", "has '>' without '<'"),
        ("<a@b.c", "has '<' in its local part"),
        ("<<a@b.c>>", "contains more than one '<...>'"),
        ("A <<a@b.c>", "has '<' in its local part"),
        ('"a b"@c.d', "has a quoted local part with a space"),
        ('"a@b"@c.d', "has a quoted local part with a space, '@'"),
        ('"a<b"@c.d', "has a quoted local part with"),
        ('"a>b"@c.d', "has a quoted local part with"),
        ('"a\\"b"@c.d', "has a quoted local part that is not followed by '@'"),
        ('"a\\b"@c.d', "has a quoted local part with"),
        ('"ü..x"@c.d', "beyond ASCII"),
        ('""@c.d', "has a quoted local part with"),
        ('"a"b@c.d', "has a quoted local part that is not followed by '@'"),
        ('"a"', "has a quoted local part that is not followed by '@'"),
        ('"a', "has a quoted local part that is not followed by '@'"),
        ('"bob" bob@c.d', "has a quoted local part that is not followed by '@'"),
        ("=?utf-8?q?evil=40x.test?=@b.c", "has an encoded word in its local part"),
        ("a@=?utf-8?q?b?=.c", "not made of letters"),
        ("a@xn--a.example", "not valid (IDNA 2008)"),
        ("a@XN--A.example", "not valid (IDNA 2008)"),
        ("ü(b@c.d", "has '(' in its local part"),
        ("a@☃.example", "not valid (IDNA 2008)"),
        ("a@b\u200b.ü\u2060-", "IDNA 2008"),
        ("a\uff20b.c", "has no '@'"),
        ("a\uff20evil.example@b.c", "U+FF20 in its local part, which may be taken for a delimiter"),
        ("a﹐b@c.d", "U+FE50 in its local part"),
        ("a\u00a0b@c.d", "the invisible character U+00A0"),
        ("a\u3000b@c.d", "the invisible character U+3000"),
        ("a\u202eb@c.d", "the invisible character U+202E"),
        ("a\u200bb@c.d", "the invisible character U+200B"),
        ("a\ufeffb@c.d", "the invisible character U+FEFF"),
        ("a\ue000b@c.d", "the invisible character U+E000"),
        (
            "=?utf-8?q?=0D=0ABcc=3A_x=40y.z?= <a@b.c>",
            "in its name that hides CR; give the name as plain text",
        ),
        ("=?utf-8?b?AA==?= <a@b.c>", "that hides NUL; give the name as plain text"),
        ("=?utf-8?q?=E2=80=A8?= <a@b.c>", "that hides the character U+2028"),
        (
            "=?utf-8?q?a?==?utf-8?q?b?= <a@b.c>",
            "that is malformed; give the name as plain text",
        ),
        ("x=?utf-8?q?a?= <a@b.c>", "that is malformed"),
        ("=?utf-8?q?a=?= <a@b.c>", "that cannot be decoded"),
        ("=?utf-8?q?a=4?= <a@b.c>", "that cannot be decoded"),
        ("=?utf-8?q?=C3?= <a@b.c>", "that cannot be decoded"),
        ("=?utf-8?b?w7w?= <a@b.c>", "that cannot be decoded"),
        ("=?utf-8?b?w7*8?= <a@b.c>", "that cannot be decoded"),
        ("=?utf-8?q?a b?= <a@b.c>", "that is malformed"),
        ("=?utf-8?q??= <a@b.c>", "that is malformed"),
        ("=?utf-8?x?a?= <a@b.c>", "that is malformed"),
        ("=?utf-8?q?a <a@b.c>", "that is malformed"),
        ("=?utf-7?q?+AAo-?= <a@b.c>", "a character set that mail does not use"),
        ("=?unicode_escape?q?=5Cn?= <a@b.c>", "a character set that mail does not use"),
        ("a\r\nb@c.d", "contains CR, which no address may contain"),
        ("a@b.c\nBcc: d@e.f", "contains LF"),
        ("A\x00 <a@b.c>", "contains NUL"),
        ("\ta@b.c", "contains tab"),
        ("A\x7f <a@b.c>", "contains the character U+007F"),
        ("A\x85 <a@b.c>", "contains the character U+0085"),
        ("A\u2028 <a@b.c>", "contains the character U+2028"),
        ("A\u2029 <a@b.c>", "contains the character U+2029"),
        ("A\ud800 <a@b.c>", "contains the character U+D800"),
    ],
)
def test_anything_else_is_refused_with_its_reason(written, reason):
    assert reason in refusal(written)


@pytest.mark.parametrize("special", '()[]:@\\"')
def test_each_special_character_of_a_name_asks_for_quotes(special: str) -> None:
    assert f"has {special!r} in its name; put the name in double quotes" in refusal(f"A {special} <a@b.c>")


@pytest.mark.parametrize("special", '()<>[]:\\" ')
def test_each_special_character_is_named_in_local_part_and_domain(special: str) -> None:
    assert f"has {special!r} in its local part" in refusal(f"a{special}b@c.d")
    assert f"has {special!r} in its domain" in refusal(f"a@b{special}c.d")


def test_the_error_names_the_field_and_keeps_the_address():
    with pytest.raises(InvalidAddress) as caught:
        parse_address("nobody", field="cc")
    assert str(caught.value) == "cc: 'nobody' has no '@'"
    assert caught.value.address == "nobody"
    assert isinstance(caught.value, InvalidMessage)
    assert isinstance(caught.value, ValueError)


def test_a_long_address_is_shortened_in_the_error_but_not_in_its_attribute():
    written = "x" * 200
    with pytest.raises(InvalidAddress) as caught:
        parse_address(written, field="to")
    assert str(caught.value) == f"to: '{'x' * 80}'... has no '@'"
    assert caught.value.address == written


@pytest.mark.parametrize("value", [None, 5, b"a@b.c", ["a@b.c"], Address("", "a", "b.c"), ["x"] * 100_000])
def test_only_a_str_is_an_address(value):
    text = refusal(value)
    assert f"must be a str, not {type(value).__name__}" in text
    assert len(text) < 120


def test_the_error_shows_what_was_given_instead_of_a_str() -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_address(5, field="to")  # type: ignore[arg-type]
    assert caught.value.address == "5"


def test_local_part_and_address_have_their_greatest_lengths():
    assert parse_address("a" * 64 + "@b.c", field="to").local_part == "a" * 64
    assert "more than 64 octets" in refusal("a" * 65 + "@b.c")
    assert "more than 64 octets" in refusal("ü" * 33 + "@b.c")
    assert parse_address("ü" * 32 + "@b.c", field="to").needs_smtputf8
    assert parse_address(f'"{"," * 62}"@b.c', field="to").local_part == f'"{"," * 62}"'
    assert "more than 64 octets" in refusal(f'"{"," * 63}"@b.c')
    label = "d" * 63
    domain = f"{label}.{label}.{label}.{'e' * 50}"
    longest = f"{'a' * (254 - 1 - len(domain))}@{domain}"
    assert parse_address(longest, field="to").addr_spec == longest
    assert "more than 254 octets" in refusal(f"a{longest}")
    assert "too long" in refusal(f"a@{'d' * 64}.c")
    assert "a domain that is too long" in refusal(f"a@{'d.' * 127}c")


def test_a_value_over_a_thousand_characters_is_refused_whatever_it_is():
    fits = f"{'n' * 993} <a@b.c>"[-1000:]
    assert parse_address(fits, field="to").addr_spec == "a@b.c"
    assert "longer than 1000 characters" in refusal(f"n{fits}")


def test_the_key_ignores_case_in_the_domain_only():
    assert parse_address("A@B.c", field="to").key == parse_address("X <A@b.C>", field="to").key
    assert parse_address("A@b.c", field="to").key != parse_address("a@b.c", field="to").key


def test_only_a_local_part_beyond_ascii_needs_smtputf8():
    assert not parse_address("Ünal <a@bücher.example>", field="to").needs_smtputf8
    assert parse_address("ü@example.com", field="to").needs_smtputf8


@pytest.mark.parametrize("written", ["a@b.c", '"A \\"B\\" \\\\ C, D" <a@b.c>', '"Ü" <"a..b"@b.c>'])
def test_str_gives_back_what_parses_to_the_same_address(written):
    address = parse_address(written, field="to")
    assert str(address) == written
    assert parse_address(str(address), field="to") == address


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ([], []),
        ("a@b.c", ["a@b.c"]),
        (["a@b.c", "d@e.f"], ["a@b.c", "d@e.f"]),
        (("a@b.c",), ["a@b.c"]),
        ((each for each in ["a@b.c"]), ["a@b.c"]),
        (["a@b.c", "a@b.c"], ["a@b.c", "a@b.c"]),
    ],
)
def test_one_address_or_a_list_of_them_is_parsed(value, expected):
    assert [address.addr_spec for address in parse_addresses(value, field="to")] == expected


@pytest.mark.parametrize("value", [b"a@b.c", {"a@b.c": 1}, 5, bytearray(b"a@b.c")])
def test_what_is_no_list_of_addresses_is_refused(value):
    with pytest.raises(InvalidAddress, match=r"cc: must be an address or a list of addresses, not "):
        parse_addresses(value, field="cc")


def test_an_empty_string_is_not_an_empty_list():
    with pytest.raises(InvalidAddress, match=r"is empty"):
        parse_addresses("", field="cc")
    with pytest.raises(InvalidAddress, match=r"is empty"):
        parse_addresses(["a@b.c", ""], field="cc")


def test_one_wrong_address_in_a_list_is_the_one_named():
    with pytest.raises(InvalidAddress) as caught:
        parse_addresses(["a@b.c", "wrong", "d@e.f"], field="bcc")
    assert caught.value.address == "wrong"


def test_a_refusal_is_repeated_for_another_field():
    """The parsed values are kept, the refusals are not mixed up."""
    assert refusal("wrong", field="to").startswith("to: ")
    assert refusal("wrong", field="cc").startswith("cc: ")


@unhurried
@given(st.text(max_size=300))
def test_any_text_is_parsed_or_refused_and_nothing_else(text):
    try:
        address = parse_address(text, field="to")
    except InvalidAddress:
        return
    assert "\n" not in str(address)
    assert address.addr_spec.count("@") == 1
    assert parse_address(address.addr_spec, field="to").key == address.key


@unhurried
@given(st.text(alphabet='ab.@<>"\\ ,;:()[]=?é\r', max_size=30))
def test_whatever_is_accepted_is_one_mailbox_to_the_standard_library_too(text):
    try:
        address = parse_address(text, field="to")
    except InvalidAddress:
        return
    if not address.needs_smtputf8:
        standard = StandardAddress(addr_spec=address.addr_spec)
        assert standard.domain == address.domain


@unhurried
@given(
    name=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=100).map(
        lambda text: text.strip(" ")
    ),
    local=st.from_regex(r"[a-z0-9!#$%&'*+/^_`{|}~-]{1,20}(\.[a-z0-9]{1,5}){0,3}", fullmatch=True),
    domain=st.from_regex(r"[a-z]{1,10}(\.[a-z][a-z0-9]{0,10}){0,3}", fullmatch=True),
)
def test_any_display_name_in_quotes_comes_back(name, local, domain):
    address = Address(name, local, domain)
    assert parse_address(str(address), field="to") == address


@pytest.mark.parametrize(
    "hostile",
    [
        "a" * 200_000,
        "a@" * 100_000,
        "@" * 200_000,
        "(" * 200_000,
        '"' * 200_000,
        '"\\' * 100_000,
        "<" * 200_000,
        "a@" + "b." * 100_000,
        "a@" + "ü" * 200_000,
        "é" * 200_000 + "@b.c",
        "." * 200_000 + "@b.c",
        " " * 200_000,
        "\x00" * 200_000,
        '"' + "a " * 100_000 + '" <a@b.c>',
        "a@b.c," * 33_000,
        "=?utf-8?q?" * 20_000 + "@b.c",
    ],
)
def test_hostile_200_kb_are_judged_at_once(hostile):
    started = time.thread_time()
    refusal(hostile)
    assert time.thread_time() - started < 10


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("a@b.c, d@e.f", "contains several addresses; pass a list"),
        ("a@b.c;d@e.f", "contains several addresses; pass a list"),
        ("A <a@b.c>, D <d@e.f>", "contains more than one '<...>'; pass a list"),
        ("Doe, John <a@b.c>", "an unquoted name; pass a list, or put the name in double quotes"),
    ],
)
def test_where_a_list_is_taken_it_is_the_remedy_for_several_addresses(value: str, remedy: str) -> None:
    for addresses in (value, ["x@b.c", value]):
        with pytest.raises(InvalidAddress, match=f"^recipients: .*{re.escape(remedy)}$"):
            parse_addresses(addresses, field="recipients")


NAMES = [
    "Costa, Ana",
    "Ana (Sales)",
    "ana@home",
    'Ana "A" \\ B',
    "Ana: sales; <x@y.z>",
    "🐍 Ana",
    "山田太郎",
    "محمد",
    "=?utf-8?q?M=C3=BCller?=",
    "=?utf-8?q?half",
    "A" * 900,
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_works_in_a_pair(name: str) -> None:
    address = read_address((name, "ana@bücher.example"), field="sender")
    assert address == Address(name, "ana", "xn--bcher-kva.example")
    assert Address.of(name, "ana@bücher.example") == address
    assert parse_address(str(address)) == address
    assert read_address(address, field="sender") == address


@pytest.mark.parametrize("name", [name for name in NAMES if "=?" not in name])
def test_what_formataddr_makes_of_a_name_is_that_name(name: str) -> None:
    for charset in ("utf-8", "gb18030"):
        assert parse_address(formataddr((name, "a@b.c"), charset)).display_name == name
    if len(name) > 1:
        assert parse_address(formataddr((f"{name} ü", "a@b.c"))).display_name == f"{name} ü"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (("Ana", "nobody"), "('Ana', 'nobody') has no '@'"),
        (("ana@b.c", "Ana"), "has no '@' in its second part; a pair is (name, address)"),
        (("Ana", "Ana <ana@b.c>"), "has a second name in its address; give the name once, as (name, address)"),
        (("Ana\nBcc: x", "a@b.c"), "contains LF in its name, which no header may contain"),
        (("Ana\u2028", "a@b.c"), "contains the character U+2028 in its name"),
        (("Ana", "a@b.c\n"), "contains LF, which no address may contain"),
        ((None, "a@b.c"), 'with a part that is not a str; write "" for no name'),
        (("Ana", Address("", "a", "b.c")), "with a part that is not a str"),
        (("Ana",), "is a tuple, but not a pair (name, address)"),
        (("Ana", "a@b.c", "x"), "is a tuple, but not a pair (name, address)"),
        (("A" * 1001, "a@b.c"), "has a name of more than 1000 characters"),
        (("Ana", f"a@b.c{' ' * 1000}"), "has an address of more than 1000 characters"),
        (("Ana", "a@b.c, d@e.f"), "contains several addresses; this takes one address"),
        (Address("Ana\r\nBcc: x@y.z", "a", "b.c"), "contains CR in its name"),
        (Address("", "a b", "b.c"), "has ' ' in its local part"),
        (Address("", "a", "b.c> RCPT TO:<x@y.z"), "has '>' in its domain"),
        (Address("", "x <a", "b.c>"), "has parts that do not form an address; make it with Address.of(name, address)"),
        (Address("", "<a", "b.c>"), "has parts that do not form an address"),
        (Address("", " a", "b.c"), "has parts that do not form an address"),
        (Address("", "a@b", "c"), "has '@' in its domain"),
        (Address("", "", ""), "nothing before '@'"),
        (Address("", "a" * 2000, "b.c"), "is longer than 1000 characters"),
        (Address("", ["a"], "b.c"), "has a part that is not a str"),  # type: ignore[arg-type]
        (["a@b.c"], "must be a str, a pair (name, address) or an Address, not list"),
        (5, "must be a str, a pair (name, address) or an Address, not int"),
    ],
)
def test_a_wrong_pair_or_address_is_refused_with_its_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        read_address(value, field="sender")
    assert str(caught.value).startswith("sender: ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_address_made_by_hand_is_completed_as_a_parsed_one() -> None:
    assert read_address(Address(" Ana ", "a", "bücher.example"), field="to") == Address(
        "Ana", "a", "xn--bcher-kva.example"
    )
    assert read_address(Address("", '"a.b"', "b.c"), field="to") == Address("", "a.b", "b.c")


def test_a_list_takes_every_form_and_a_pair_in_it_is_always_name_and_address() -> None:
    given: list[AddressLike] = ["a@b.c", ("x@y.z", "ana@b.c"), Address.of("Bo", "bo@b.c"), "C <c@b.c>"]
    found = parse_addresses(given, field="to")
    assert [(each.display_name, each.addr_spec) for each in found] == [
        ("", "a@b.c"),
        ("x@y.z", "ana@b.c"),
        ("Bo", "bo@b.c"),
        ("C", "c@b.c"),
    ]
    assert parse_addresses(Address.of("Bo", "bo@b.c"), field="to") == (Address("Bo", "bo", "b.c"),)


def test_two_addresses_in_a_bare_tuple_stay_two_addresses() -> None:
    found = parse_addresses(("a@b.c", "Bo <d@e.f>"), field="to")
    assert [each.addr_spec for each in found] == ["a@b.c", "d@e.f"]


@pytest.mark.parametrize("pair", [("Ana", "a@b.c"), ("Costa, Ana", "a@b.c"), ("", "a@b.c"), ["Ana", "a@b.c"]])
def test_a_bare_pair_names_the_list_it_belongs_in(pair: Any) -> None:
    """A tuple is the caller's own mistake, a list may be what a customer has entered."""
    with pytest.raises(InvalidMessage) as caught:
        parse_addresses(pair, field="cc")
    assert isinstance(caught.value, InvalidAddress) is isinstance(pair, list)
    assert str(caught.value) == f"cc: {pair!r} is a bare pair; write [(name, address)]"


@pytest.mark.parametrize("pair", [("Ana", "Bo"), ("Ana", "bo at example.com"), ("Ana", "a@b.c", "d@e.f")])
def test_a_tuple_that_may_be_a_pair_says_how_one_is_written(pair: Any) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_addresses(pair, field="cc")
    assert str(caught.value) == "cc: 'Ana' has no '@'; a recipient with a name is written [(name, address)]"
    assert caught.value.address == "Ana"


@pytest.mark.parametrize("given", [["Ana", "Bo"], ("a@b.c", "Ana"), [("X", "Ana")], "Ana"])
def test_what_is_no_pair_keeps_its_own_reason(given: Any) -> None:
    with pytest.raises(InvalidAddress, match=r"^cc: [^;]* has no '@'$"):
        parse_addresses(given, field="cc")
    with pytest.raises(InvalidAddress, match=r"^cc: 'Bo' has no '@'$"):
        parse_addresses(("a@b.c", "Bo"), field="cc")


def test_a_refusal_keeps_its_reason_through_pickle() -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_address("nobody")
    assert str(caught.value) == "address: 'nobody' has no '@'"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.address, again.reason) == ("nobody", "has no '@'")


def test_the_reason_holds_nothing_for_the_programmer_alone() -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_addresses("alice at example.com", field="recipients")
    assert caught.value.reason == "has no '@'"
    assert str(caught.value).endswith("; recipients come first: send_email(recipients, subject, text)")
