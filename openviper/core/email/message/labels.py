"""Check what describes a message for those who watch it: tags, a reference, metadata, its stream."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message.model import MUST_MAILER, MUST_SENSITIVE, MUST_STREAM, EmailMessageData
from openviper.core.email.message.validation import checked_headers
from openviper.text import control_character, shown

__all__ = ["MailerLabels", "checked_labels", "checked_stream", "label_headers"]

_LONGEST = 200  # characters of a tag, a reference, or a value: they travel with the message and stand in log lines
_MOST = 50  # tags, or entries of metadata
_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class MailerLabels(Protocol):
    """The settings of a mailer that concern labels, and where errors name its settings; see ``EmailSettings``."""

    @property
    def stream(self) -> str | None: ...
    @property
    def tag_header(self) -> str | None: ...
    @property
    def ref_header(self) -> str | None: ...
    @property
    def metadata_header(self) -> str | None: ...
    def path(self, name: str, /) -> str: ...


def label_headers(
    extra: Mapping[str, Any], labels: MailerLabels, headers: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Return the headers by which a mail service reads tags, reference and metadata, as the mailer names them.

    One that the application gave among ``headers`` stays as it is.
    """
    given = {name.lower() for name, _ in headers}
    found = (
        (labels.tag_header, ", ".join(extra.get("tags", ()))),
        (labels.ref_header, extra.get("ref", "")),
        (labels.metadata_header, json.dumps(extra["metadata"]) if extra.get("metadata") else ""),
    )
    values = {name: value for name, value in found if name is not None and value and name.lower() not in given}
    return checked_headers(values) if values else ()


def checked_labels(data: EmailMessageData, stream: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what goes to ``extra`` and to ``must`` of the prepared message; ``stream`` may be the mailer's.

    Raises:
        InvalidMessage: a value has another type, a control character, or is too long; the text names the field.
    """
    extra: dict[str, Any] = {}
    if data.tags:
        extra["tags"] = _tags(data.tags)
    if data.ref is not None:
        extra["ref"] = _text(data.ref, "ref")
    if data.metadata:
        extra["metadata"] = _metadata(data.metadata)
    must: dict[str, Any] = {}
    if stream is not None:
        must[MUST_STREAM] = checked_stream(stream)
    if data.mailer is not None and data.mailer != "default":
        must[MUST_MAILER] = data.mailer
    if data.sensitive is not False:
        must[MUST_SENSITIVE] = _flag(data.sensitive, "sensitive")
    return extra, must


def _tags(value: Sequence[str]) -> list[str]:
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
        raise InvalidMessage(f"tags: must be a list of strings, not {type(value).__name__}")
    if len(value) > _MOST:
        raise InvalidMessage(f"tags: {len(value)} tags are too many; give at most {_MOST}")
    return [_text(each, "tags") for each in value]


def _metadata(value: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidMessage(f"metadata: must be a dict of strings, not {type(value).__name__}")
    if len(value) > _MOST:
        raise InvalidMessage(f"metadata: {len(value)} entries are too many; give at most {_MOST}")
    return {_text(key, "metadata"): _text(item, "metadata") for key, item in value.items()}


def checked_stream(value: object) -> str:
    """Return the name of a stream.

    Raises:
        InvalidMessage: it is no name.
    """
    if not isinstance(value, str) or not _STREAM.fullmatch(value):
        raise InvalidMessage(
            f"stream: {shown(value)} is not a name of letters, digits, '.', '_' and '-', at most 64 characters"
        )
    return value


def _flag(value: object, field: str) -> bool:
    if value is not True:
        raise InvalidMessage(f"{field}: must be True or False, not {shown(value)}")
    return True


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidMessage(f"{field}: must be a string, not {type(value).__name__}")
    if not value or len(value) > _LONGEST or control_character(value):
        raise InvalidMessage(
            f"{field}: {shown(value)} is empty, longer than {_LONGEST} characters, or has a control character"
        )
    return value
