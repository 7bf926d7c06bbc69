"""Decide at each attempt who is mailed: not those who are suppressed, and perhaps others in their place."""

from typing import NamedTuple, Self

from openviper.core.email.delivery.redirect import Redirect
from openviper.core.email.delivery.suppression import Suppression
from openviper.core.email.settings import EmailSettings

__all__ = ["RecipientRules"]


class RecipientRules(NamedTuple):
    """The rules of the settings; each is None where a setting asks for nothing."""

    suppression: Suppression | None
    redirect: Redirect | None

    @classmethod
    def from_settings(cls, settings: EmailSettings) -> Self | None:
        """Return the rules; None if there is none, so that most messages pay nothing for them.

        Raises:
            ImproperlyConfigured: ``suppress`` is no function.
        """
        rules = cls(Suppression.from_settings(settings), Redirect.from_settings(settings))
        return None if rules == (None, None) else rules
