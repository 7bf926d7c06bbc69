"""Check that the links of ``unsubscribe=True`` can be made, are for https, are answered, and stop mail."""

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

from openviper.core.email.delivery.checks.lookup import is_reserved
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import in_thread, remaining
from openviper.core.email.message.unsubscribe import UNSUBSCRIBE_PATH
from openviper.core.email.settings import EmailSettings

__all__ = ["check_unsubscribe"]

_NAME = "unsubscribe"
_SIGNED = ("list-unsubscribe", "list-unsubscribe-post")


async def check_unsubscribe(settings: EmailSettings, deadline: float) -> AsyncIterator[CheckResult]:
    """Yield what keeps one-click unsubscribe from working; nothing if neither of its settings is given.

    The endpoint is asked for a page, until ``deadline`` (loop time), unless its host is one of examples and tests.
    """
    site_url, keys = settings.site_url, len(settings.unsubscribe_keys)
    if site_url is None and not keys:
        return
    if site_url is None:
        found = 'EMAIL["site_url"]: is not set, so unsubscribe=True is refused'
        yield CheckResult.failed(_NAME, found, "set the base URL of its links, such as https://shop.example")
        return
    if not keys:
        found = 'EMAIL["unsubscribe_keys"]: is empty, so unsubscribe=True is refused'
        yield CheckResult.failed(_NAME, found, "give a list with the result of secrets.token_hex(32)")
        return
    link = f"{site_url}{UNSUBSCRIBE_PATH}/..."
    problems = list(_problems(settings, site_url))
    asked = await _ask(site_url, deadline)
    if asked.startswith("answers"):
        problems.append(
            (asked, "mount UnsubscribeEndpoint() there, outside middleware that redirects or requires a login")
        )
    for found, remedy in problems:
        yield CheckResult.warning(_NAME, f"{link}: {found}", remedy)
    if not problems:
        yield CheckResult.ok(_NAME, f"{link}, {keys} key{'' if keys == 1 else 's'}{asked and f'; {asked}'}")


async def _ask(site_url: str, deadline: float) -> str:
    """Return what is wrong with the endpoint's answer, or why it was not asked; "" if it answers as it should."""
    host = urlsplit(site_url).hostname or ""
    if is_reserved(host):
        return f"not asked: {host} is reserved for examples and tests"
    lifetime = remaining(deadline)

    def ask() -> str:
        import httpx  # heavy

        try:
            answer = httpx.get(f"{site_url}{UNSUBSCRIBE_PATH}/check", timeout=lifetime, follow_redirects=False)
        except httpx.HTTPError as error:
            return f"could not be asked: {type(error).__name__}"
        if answer.status_code != 200 or "List-Unsubscribe" not in answer.text:
            return f"answers {answer.status_code}, instead of the page of UnsubscribeEndpoint"
        return ""

    try:
        return await in_thread(ask, deadline)
    except TimeoutError:
        return "could not be asked in time"


def _problems(settings: EmailSettings, site_url: str) -> Iterator[tuple[str, str]]:
    if not site_url.startswith("https:"):
        yield "mailbox providers follow https links only (RFC 8058)", 'set EMAIL["site_url"] in production'
    if settings.suppress is None:
        remedy = 'set EMAIL["suppress"], such as to "openviper.db.find_suppressed"'
        yield "no setting keeps mail from readers who have unsubscribed", remedy
    if any(name.lower() in _SIGNED for name in settings.dkim_unsigned):
        remedy = 'take List-Unsubscribe and List-Unsubscribe-Post out of EMAIL["dkim_unsigned"]'
        yield "mailbox providers ignore headers that DKIM does not sign (RFC 8058)", remedy
