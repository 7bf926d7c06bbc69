"""Judge an HTML part by what the mail clients of its readers support."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from openviper.core.email.lint.findings import LintFinding
from openviper.core.email.lint.partial import LIMITS
from openviper.core.email.lint.support import WITHOUT_EFFECT, Feature, SupportData, has_any, load_support
from openviper.core.email.lint.uses import Use, find_uses

__all__ = ["lint_client_support"]

_WORD = ("outlook.windows",)  # the clients that read conditional comments
_LINES = 3
_NOTES = 2


def lint_client_support(html: str, targets: Collection[str], inline: Mapping[str, str]) -> list[LintFinding]:
    """Return a finding for each feature that a targeted client lacks, or supports in part.

    It is a problem only where content is lost or cannot be read in a client that lacks the feature. ``targets``:
    families of mail clients, or single ones (``EMAIL["target_clients"]``). ``inline`` has the MIME type of each inline
    attachment by the name in its ``cid:`` address. Reads a file at the first call: use a thread.
    """
    data = load_support()
    clients = data.matching(targets)
    if not clients:
        return []
    uses: dict[str, list[Use]] = {}
    for use in find_uses(html, inline):
        if use.feature not in WITHOUT_EFFECT:
            uses.setdefault(use.feature, []).append(use)
    lines = _LineNumbers(html)
    return [
        finding
        for slug, found in uses.items()
        if (finding := _judge(data, data.features[slug], found, clients, lines)) is not None
    ]


class _Judged(NamedTuple):
    """The clients that lack a feature and lose something, that lack it otherwise, and that support it in part.

    ``limits``: those of partial support that a use passes, by the clients that have them.
    """

    losing: list[str]
    lacking: list[str]
    partly: list[str]
    limits: Mapping[str, frozenset[str]]


def _judge(
    data: SupportData, feature: Feature, uses: Sequence[Use], clients: Sequence[str], lines: "_LineNumbers"
) -> LintFinding | None:
    judged = _judge_clients(feature, uses, clients)
    without = judged.losing + judged.lacking
    affected = without + judged.partly
    if not affected:
        return None
    if judged.losing:
        shown = [use for use in uses if use.loss]
    else:
        shown = list(uses) if without else [use for use in uses if use.limits or not use.within]
    families = _families(data, judged.losing or without or judged.partly)
    return LintFinding(
        "problem" if judged.losing else "note",
        feature.slug,
        f"{feature.title}: {'not supported' if without else 'supported in part'} by {families}",
        " ".join(f"{part.rstrip('.')}." for part in _explain(data, feature, uses, judged)),
        lines.of(shown),
    )


def _judge_clients(feature: Feature, uses: Sequence[Use], clients: Sequence[str]) -> _Judged:
    limits = {limit: feature.limited(limit) for limit in dict.fromkeys(limit for use in uses for limit in use.limits)}
    judged = _Judged([], [], [], limits)
    limited_only = feature.limited_only(LIMITS.get(feature.slug, ()))
    for client in clients:
        read = [use for use in uses if use.outlook or client not in _WORD]
        support = feature.support[client]
        if not read or support in ("y", "u"):
            continue
        if support == "a":
            passed = [use for use in read if any(client in limits[limit] for limit in use.limits)]
            if any(use.loss for use in passed):
                judged.losing.append(client)
            elif passed or (client not in limited_only and not all(use.within for use in read)):
                judged.partly.append(client)
        elif any(use.loss for use in read):
            judged.losing.append(client)
        else:
            judged.lacking.append(client)
    return judged


def _explain(data: SupportData, feature: Feature, uses: Sequence[Use], judged: _Judged) -> Iterator[str]:
    without = judged.losing + judged.lacking
    affected = without + judged.partly
    passed = [limit for limit, clients in judged.limits.items() if not clients.isdisjoint(affected)]
    if judged.losing and (loss := next((use.loss for use in uses if use.loss), "")):
        yield loss[:1].upper() + loss[1:]
    yield from filter(None, (LIMITS[feature.slug][limit] for limit in passed))
    if without:
        yield f"Not supported by {data.describe(without, feature.untested())}"
    if judged.partly:
        yield f"In part by {data.describe(judged.partly, feature.untested())}"
    yield from _notes(feature, affected, passed)
    yield f"Tested {feature.tested}"


def _notes(feature: Feature, clients: Collection[str], passed: Sequence[str]) -> list[str]:
    """Return at most two notes, those with a limit that is passed first, then those about most of the clients.

    Notes with a limit that no use passes are left out.
    """
    kept = LIMITS.get(feature.slug, {}).keys() - passed
    about = [
        (not has_any(text, passed), -sum(client in clients for client in named), text)
        for text, named in feature.notes
        if not has_any(text, kept)
    ]
    return [text for _, number, text in sorted(about, key=lambda note: note[:2])[:_NOTES] if number]


def _families(data: SupportData, clients: Collection[str]) -> str:
    names = list(dict.fromkeys(data.families[client.partition(".")[0]] for client in clients))
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


class _LineNumbers:
    """Numbers the lines of positions in a text; the time for all is proportional to the number of lines and uses."""

    def __init__(self, text: str) -> None:
        self._starts = [0]
        position = text.find("\n")
        while position >= 0:
            self._starts.append(position + 1)
            position = text.find("\n", position + 1)

    def of(self, uses: Sequence[Use]) -> tuple[int, ...]:
        """Return the first lines of ``uses``, from 1."""
        return tuple(dict.fromkeys(bisect_right(self._starts, use.position) for use in uses))[:_LINES]
