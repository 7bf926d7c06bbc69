"""A message as end-to-end tests read it from the inbox page's JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from openviper.testing.codes import codes_in, matches_of
from openviper.testing.links import Link, labelled_links, links_in
from openviper.text import counted, shown

__all__ = ["InboxMessage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxMessage:
    """A message on the inbox page of a running server.

    Addresses have the form of headers. ``url`` is the message's page in the inbox, for viewing or a screenshot.
    ``attachments`` are file names. ``text`` and ``html`` are None if the message has no such body. If it was sent with
    ``sensitive=True``, a server without ``DEBUG`` gives a notice in place of the content.
    """

    key: str
    url: str
    message_id: str
    date: datetime
    sender: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    recipients: tuple[str, ...]
    subject: str
    state: str
    mode: str
    mailer: str
    sensitive: bool
    attachments: tuple[str, ...]
    text: str | None = field(repr=False)
    html: str | None = field(repr=False)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], url: str) -> "InboxMessage":
        """Make a message from the API's JSON."""
        return cls(
            key=values["key"],
            url=url,
            message_id=values["message_id"],
            date=datetime.fromisoformat(values["date"]),
            sender=values["from"],
            to=tuple(values["to"]),
            cc=tuple(values["cc"]),
            recipients=tuple(values["recipients"]),
            subject=values["subject"],
            state=values["state"],
            mode=values["mode"],
            mailer=values["mailer"],
            sensitive=values["sensitive"],
            attachments=tuple(part["filename"] for part in values["attachments"]),
            text=values["text"],
            html=values["html"],
        )

    def links(self) -> list[str]:
        """Return the HTML's absolute links and then the text's URLs, each once."""
        return links_in(self.html, self.text)

    def link(self, label: str | re.Pattern[str] | None = None) -> str:
        """Return the URL of the link that has ``label`` in its text; None means the message's only link.

        Case is ignored, and a link whose whole text is ``label`` is preferred. The label of an image is its ``alt``
        text. If no link in the HTML matches, the lines before the URLs in the text part are the labels.

        Raises:
            AssertionError: no link matches, or several with different URLs.
        """
        __tracebackhide__ = True
        kinds = labelled_links(self.html, self.text)
        found = next(filter(None, (_matching(links, label) for links in kinds)), [])
        if len(found) == 1:
            return found[0]
        wanted = "link" if label is None else f"link {shown(_pattern_text(label))}"
        if found:
            raise AssertionError(
                f"{len(found)} different links match {wanted} in {self._name}; give more of the link's text"
            )
        raise AssertionError(f"there is no {wanted} in {self._name}, which has {counted(len(self.links()), 'link')}")

    def code(self, pattern: str | re.Pattern[str] | None = None) -> str:
        """Return the code in the message: 4 to 8 digits, or a match of ``pattern`` (its group, if it has one).

        Without ``pattern``, numbers next to words such as "code" or "PIN" come first, then numbers on a line by
        themselves; a blank or hyphen between digits is removed. The text part is searched first, then the subject.

        Raises:
            AssertionError: there is no code, or several different ones.
        """
        __tracebackhide__ = True
        compiled = re.compile(pattern) if isinstance(pattern, str) else pattern
        for part in (self.text or "", self.subject):
            found = codes_in(part) if compiled is None else matches_of(compiled, part)
            if len(found) == 1:
                return found[0]
            if found:
                raise AssertionError(f"{len(found)} different codes match in {self._name}; give a pattern of the code")
        wanted = "code of 4 to 8 digits" if compiled is None else f"match of {shown(compiled.pattern)}"
        raise AssertionError(f"there is no {wanted} in {self._name}")

    @property
    def _name(self) -> str:
        """Return the message's subject and recipients, and what may hide its content."""
        hint = " (it was sent with sensitive=True: a server without DEBUG does not show its content)"
        return f"{shown(self.subject)} to {', '.join(self.recipients)}{hint if self.sensitive else ''}"


def _matching(links: list[Link], label: str | re.Pattern[str] | None) -> list[str]:
    """Return the URLs of the links with ``label``, each once; those whose whole text it is, if there are any."""
    if label is None:
        urls = [link.url for link in links]
    elif isinstance(label, re.Pattern):
        urls = [link.url for link in links if label.search(link.label)]
    else:
        wanted = " ".join(label.casefold().split())
        urls = [link.url for link in links if link.label.casefold() == wanted]
        urls = urls or [link.url for link in links if wanted in link.label.casefold()]
    return list(dict.fromkeys(urls))


def _pattern_text(label: str | re.Pattern[str]) -> str:
    return label if isinstance(label, str) else label.pattern
