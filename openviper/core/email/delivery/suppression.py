"""Ask ``EMAIL["suppress"]`` who must not be mailed: at each attempt, because a day of retries may lie before it."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from openviper.core.email.errors import SuppressionUnavailable
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.model import MUST_STREAM
from openviper.core.email.settings import EmailSettings
from openviper.db.errors import DatabaseMisuse
from openviper.db.hashing import hash_with
from openviper.exceptions import ImproperlyConfigured, MissingDependency
from openviper.loops import accepts, call_function
from openviper.network import mail_hash, mail_key
from openviper.text import error_origin, function_name, shown

__all__ = ["Suppression", "describe_failure", "suppress_address"]


async def suppress_address(address: str, reason: str, stream: str) -> None:
    """Add ``address`` to the table of ``openviper.db`` that :func:`find_suppressed` asks.

    Raises:
        DatabaseMisuse: there is no table, or no ``DATABASE_URL``.
        MissingDependency: SQLAlchemy is not installed.
    """
    # SQLAlchemy's import takes a fifth of a second.
    table = await asyncio.to_thread(_import_table)
    await table.add_suppression(address, reason, stream)


def _import_table() -> Any:
    from openviper import db

    db.add_suppression  # noqa: B018 - imports SQLAlchemy, or says how to get it
    return db


class Suppression:
    """Calls ``suppress(addresses, stream)``, an async function or a plain one, which runs in a thread.

    It returns those of ``addresses`` that must not be mailed, or a mapping of them to the stream of the suppression:
    None stops every stream but those in ``always_streams``. Case does not count, and a domain in Unicode is its ASCII
    form (IDNA).
    """

    def __init__(self, suppress: Callable[..., Any], *, always_streams: Sequence[str], timeout: float) -> None:
        """``timeout``: seconds for one call."""
        self._suppress = suppress
        self._always_streams = frozenset(always_streams)
        self._timeout = timeout

    @classmethod
    def from_settings(cls, settings: EmailSettings) -> Self | None:
        """Return what the settings ask for; None without ``suppress``.

        Raises:
            ImproperlyConfigured: ``suppress`` is no function, or takes other arguments.
        """
        function = settings.function("suppress")
        if function is None:
            return None
        if not accepts(function, 2):
            raise ImproperlyConfigured(
                f'EMAIL["suppress"]: {function_name(function)}() is called with two arguments; write it as '
                "(addresses: list[str], stream: str | None)"
            )
        return cls(function, always_streams=settings.always_streams, timeout=settings.timeout)

    async def find(self, message: OutgoingMessage) -> tuple[str, ...]:
        """Return the recipients of ``message``'s envelope that are suppressed.

        Raises:
            SuppressionUnavailable: the function failed, took too long, or returned something else.
        """
        recipients = message.envelope.recipients
        stream = message.prepared.must.get(MUST_STREAM)
        failure: str
        try:
            async with asyncio.timeout(self._timeout) as timeout:
                found = await call_function(self._suppress, list(recipients), stream)
            suppressed = self._read(found, stream)
            return tuple([address for address in recipients if mail_key(address) in suppressed])
        except TimeoutError:
            failure = f"did not return within {self._timeout:g} s" if timeout.expired() else "raised TimeoutError"
        except Exception as error:  # noqa: BLE001 - the function is the user's code
            failure = describe_failure(error)
        # Outside any except block: the original error may hold an address, or a password of the database.
        text = f'EMAIL["suppress"]: {function_name(self._suppress)} {failure}; nothing was sent'
        raise SuppressionUnavailable(text, temporary=True, summary=text)

    def _read(self, found: object, stream: str | None) -> frozenset[str]:
        if isinstance(found, Mapping):
            always = stream in self._always_streams
            found = [address for address, of_stream in found.items() if not (always and of_stream is None)]
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise _WrongResultError(f"returned a {type(found).__name__}; return a list of addresses")
        addresses = list(found)
        wrong = next((each for each in addresses if not isinstance(each, str)), None)
        if wrong is not None:
            raise _WrongResultError(f"returned {shown(type(wrong).__name__)} in its list; return addresses as text")
        return frozenset([mail_key(address) for address in addresses])


def describe_failure(error: Exception) -> str:
    """Return what is said of an error of an application's function; its text only where it names nobody."""
    if isinstance(error, _WrongResultError):
        return str(error)
    if isinstance(error, DatabaseMisuse | ImproperlyConfigured | MissingDependency):
        return f"failed: {error}"
    return f"raised {error_origin(error)}"


class _WrongResultError(Exception):
    pass


def _hash(address: str) -> str | None:
    key = EmailSettings.from_settings().journal_key
    return None if key is None else mail_hash(address, key.get_secret_value())


hash_with(_hash)
