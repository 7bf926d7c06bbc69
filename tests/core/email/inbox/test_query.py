"""The search syntax: what is typed, what it means, and hints about probable mistakes."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email.inbox.query import Term, parse_moment, parse_query

NAMES = ["from", "to", "cc", "bcc", "subject", "mailer", "template"]
VALUES = {"has": ["attachment"], "is": ["unread", "read"], "state": ["failed", "partly-delivered"]}
VALUES |= {"before": ["2026-11-30", "7"], "after": ["2026-11-30T14:00", "0"]}


def oracle(text: str) -> list[tuple[bool, str, str]]:
    """Read the syntax character by character: whether it excludes, the operator and the value of each part."""
    found, position = [], 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        start = position
        while position < len(text) and not text[position].isspace():
            position += 1
        word = text[start:position]
        negated = len(word) > 1 and word[0] == "-"
        rest = word[negated:]
        letters = 0
        while letters < len(rest) and rest[letters].isascii() and rest[letters].isalpha():
            letters += 1
        named = 0 < letters < len(rest) - 1 and rest[letters] == ":"
        name, value = (rest[:letters], rest[letters + 1 :]) if named else ("", rest)
        if value.startswith('"'):
            opened = start + negated + (letters + 1 if named else 0)
            closed = text.find('"', opened + 1)
            end = len(text) if closed < 0 else closed
            value, position = text[opened + 1 : end], end + 1
        found.append((negated, name, value))
    return found


# Without these letters no text has the name of an operator.
unnamed = st.sampled_from('ab-:" \n\u00a0') | st.characters(exclude_characters="cfmstCFMST")


@given(st.text(alphabet=unnamed, max_size=30))
def test_every_text_is_read_as_the_oracle_reads_it(text: str) -> None:
    read = [(negated, name, value) for negated, name, value in oracle(text) if name or value]
    expected = [Term("", f"{name}:{value}" if name else value, negated) for negated, name, value in read]
    assert parse_query(text).terms == tuple(dict.fromkeys(expected))


@given(st.text(alphabet=unnamed, max_size=30), st.sampled_from(NAMES), st.booleans())
def test_an_operator_takes_what_stands_behind_its_colon(text: str, name: str, negated: bool) -> None:
    typed = f"{'-' if negated else ''}{name.title()}:{text}"
    (_, _, value), *others = oracle(typed)
    first = Term(name, value, negated) if value.strip() and value != f"{name.title()}:" else None
    rest = [Term("", f"{own}:{word}" if own else word, minus) for minus, own, word in others if own or word]
    wanted = dict.fromkeys([*([first] if first is not None else []), *rest])
    assert parse_query(typed).terms == tuple(wanted)


words = st.text(st.characters(exclude_characters='"', exclude_categories=["Cs"]), min_size=1)
terms = st.one_of(
    st.builds(Term, st.just(""), words.filter(str.strip), st.booleans()),
    st.builds(Term, st.sampled_from(NAMES), words.filter(str.strip), st.booleans()),
    *(st.builds(Term, st.just(name), st.sampled_from(values), st.booleans()) for name, values in VALUES.items()),
)


@given(st.lists(terms, unique=True))
def test_what_is_typed_for_a_condition_means_it(wanted: list[Term]) -> None:
    query = parse_query(" ".join(map(str, wanted)))
    assert list(query.terms) == wanted
    assert query.hints == ()


@given(st.text())
def test_what_a_chip_leaves_means_the_other_conditions(text: str) -> None:
    query = parse_query(text)
    for index in range(len(query.terms)):
        assert parse_query(query.without(index)).terms == (*query.terms[:index], *query.terms[index + 1 :])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Ana Costa", ["Ana", "Costa"]),
        ('"Ana Costa" -x', ['"Ana Costa"', "-x"]),
        ('FROM:"Ana Costa" -to:bob', ['from:"Ana Costa"', "-to:bob"]),
        ('"from:ana', ['"from:ana"']),
        ('5"disk', ['5"disk']),
        ("is:UNREAD state:Failed", ["is:unread", "state:failed"]),
        ('state:"partly delivered"', ["state:partly-delivered"]),
        ("https://shop.example/", ['"https://shop.example/"']),
        ("10:30 Order: 7", ["10:30", '"Order:"', "7"]),
        ("x-order:17", ["x-order:17"]),
        ("a a", ["a"]),
        ("", []),
    ],
)
def test_the_syntax_has_no_hints_where_it_is_right(text: str, parsed: list[str]) -> None:
    query = parse_query(text)
    assert [str(term) for term in query.terms] == parsed
    assert query.hints == ()


@pytest.mark.parametrize(
    ("text", "parsed", "hint"),
    [
        ("form:ana", ['"form:ana"'], "form: is not an operator, so it was searched as text; did you mean 'from'?"),
        ("zzz:1", ['"zzz:1"'], "zzz: is not an operator, so it was searched as text; operators: from, to, cc, "),
        ("from: ana", ["ana"], "from: has no value; write it directly after the colon"),
        ('to:"" ana', ["ana"], "to: has no value"),
        (' "" -""', [], 'the phrase "" is empty, and was left out'),
        ('" " ana', ["ana"], 'the phrase "" is empty'),
        ("is:uread x", ["x"], "is: there is no 'uread' (known: unread, read); did you mean 'unread'?"),
        ("has:html", [], "has: there is no 'html' (known: attachment)"),
        ("state:bounced", [], "state: there is no 'bounced' (known: held, deferred"),
        ("before:monday", [], "before: 'monday' is not a date; write it as 2026-11-30 or 2026-11-30T14:00"),
        ("after:2026-02-30", [], "after: '2026-02-30' is not a date"),
        ("after:0001-01-01", [], "after: '0001-01-01' is not a date"),
    ],
)
def test_a_mistake_gives_a_hint(text: str, parsed: list[str], hint: str) -> None:
    query = parse_query(text)
    assert [str(term) for term in query.terms] == parsed
    assert [one.startswith(hint) for one in query.hints] == [True]


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("1796003894193693", 1796003894193693),
        ("0", 0),
        ("2026-11-30T14:00+02:00", 1796040000000000),
        ("2026-11-30T12:00:00Z", 1796040000000000),
        ("2026-11-30", int(datetime(2026, 11, 30).timestamp() * 1_000_000)),  # noqa: DTZ001 - local, as typed
        ("9" * 20, None),
        ("٣", None),
        ("tomorrow", None),
    ],
)
def test_a_moment_is_a_cursor_or_a_date(value: str, moment: Any) -> None:
    assert parse_moment(value) == moment
