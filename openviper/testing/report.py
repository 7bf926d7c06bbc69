"""Describe mail for failed assertions: the criteria, and what was sent instead, the nearest first."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from openviper.testing.criteria import Criteria, Verdict, check, describe_criterion
from openviper.testing.message import SentMessage

__all__ = ["describe_criteria", "describe_mail", "describe_message"]

_SHOWN_MESSAGES = 5
_SHOWN_TEXT = 300  # characters


def describe_criteria(criteria: Criteria) -> str:
    """Return the criteria on one line."""
    return ", ".join(f"{name}={_wanted(value)}" for name, value in criteria.items()) or "anything"


def describe_mail(
    sent: Sequence[SentMessage],
    criteria: Criteria,
    *,
    held: Sequence[SentMessage] = (),
    failed: Sequence[tuple[SentMessage, str]] = (),
) -> str:
    """List the sent messages with the criteria that each of them fails, then those held or failed."""
    held_by = "held by an open transaction: {}; commit it, or await mailbox.commit_held()"
    lines = [*_describe_sent(sent, criteria), *(held_by.format(describe_message(message)) for message in held)]
    lines += [f"not delivered: {describe_message(message)}: {reason}" for message, reason in failed]
    return "\n".join(lines)


def describe_message(message: SentMessage) -> str:
    """Return a message's subject, recipients and delivery mode on one line."""
    to = ", ".join(message.to or message.recipients)
    return f"{message.subject!r} to {to} ({message.mode})"


def _describe_sent(sent: Sequence[SentMessage], criteria: Criteria) -> Iterator[str]:
    if not sent:
        yield "nothing was sent"
        return
    checked = sorted(((message, check(message, criteria)) for message in sent), key=_distance)
    yield "1 message was sent:" if len(sent) == 1 else f"{len(sent)} messages were sent, the nearest first:"
    for message, verdicts in checked[:_SHOWN_MESSAGES]:
        yield f"  {describe_message(message)}"
        for verdict in verdicts:
            yield from (f"    {line}" for line in _difference(verdict))
    if len(checked) > _SHOWN_MESSAGES:
        yield f"  ... and {len(checked) - _SHOWN_MESSAGES} more"


def _distance(checked: tuple[SentMessage, list[Verdict]]) -> tuple[int, float]:
    missed = [verdict for verdict in checked[1] if not verdict.met]
    similarity = sum(_similarity(verdict) for verdict in missed)
    return len(missed), -similarity


def _similarity(verdict: Verdict) -> float:
    if not isinstance(verdict.wanted, str) or verdict.found is None:
        return 0.0
    found = verdict.found if isinstance(verdict.found, list) else [str(verdict.found)[:2000]]
    return max((difflib.SequenceMatcher(None, verdict.wanted, one).ratio() for one in found), default=0.0)


def _difference(verdict: Verdict) -> Iterator[str]:
    if verdict.met:
        yield f"ok      {verdict.name}: {_wanted(verdict.wanted)}"
        return
    yield f"differs {verdict.name}: wanted {_wanted(verdict.wanted)}"
    if verdict.name in ("text_contains", "html_contains"):
        yield from _nearest_line(verdict)
    else:
        yield f"        {' ' * len(verdict.name)}  found  {verdict.found!r}"


def _nearest_line(verdict: Verdict) -> Iterator[str]:
    body: str | None = verdict.found
    if body is None:
        yield "        the message has no such body"
        return
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    if isinstance(verdict.wanted, str) and (near := difflib.get_close_matches(verdict.wanted, lines, n=1, cutoff=0.4)):
        yield f"        the nearest line is {near[0][:_SHOWN_TEXT]!r}"
    else:
        more = "..." if len(body) > _SHOWN_TEXT else ""
        yield f"        found {body[:_SHOWN_TEXT]!r}{more}"


def _wanted(wanted: Any) -> str:
    if isinstance(wanted, dict):
        return "{" + ", ".join(f"{name!r}: {describe_criterion(value)}" for name, value in wanted.items()) + "}"
    return describe_criterion(wanted)
