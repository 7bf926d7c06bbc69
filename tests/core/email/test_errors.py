"""The public errors as values: they survive pickle and copy with all that they say."""

import copy
import pickle

import pytest

from openviper.core import email
from openviper.core.email.errors import (
    AttachmentRefused,
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    EmailError,
    InvalidAddress,
    InvalidMessage,
    MessageRefused,
    PoolTimeout,
    QueueUnavailable,
    RecipientsRefused,
    Refusal,
    TemplateFailed,
)

REFUSED = {"a@x.test": Refusal(451, "cut", uncertain=True), "b@x.test": Refusal(550, "no")}


def telling_apart() -> ConnectionFailed:
    error = ConnectionFailed("cut", temporary=True, uncertain=True)
    error.refused = dict(REFUSED)
    return error


ERRORS: list[EmailError] = [
    EmailError("general"),
    InvalidMessage("wrong"),
    InvalidAddress("wrong", address="a b"),
    AttachmentRefused("a.txt", "too large"),
    TemplateFailed("hi.txt", "missing"),
    DeliveryError("no", temporary=True, code=451),
    telling_apart(),
    AuthenticationFailed("no", code=535),
    DeliveryTimeout("late", temporary=True, uncertain=True),
    PoolTimeout("late", temporary=True),
    MessageRefused("no", code=554),
    RecipientsRefused("no", accepted=["c@x.test"], refused=REFUSED),
    QueueUnavailable("down"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickle_and_copy(error: EmailError) -> None:
    for one in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(one) is type(error)
        assert (str(one), one.args, vars(one)) == (str(error), error.args, vars(error))


def test_every_public_error_is_tried() -> None:
    public = {value for value in vars(email).values() if isinstance(value, type) and issubclass(value, EmailError)}
    assert public == {type(error) for error in ERRORS} & public
    assert public >= {RecipientsRefused, QueueUnavailable, DeliveryTimeout}


def test_refused_recipients_are_uncertain_when_one_of_them_is() -> None:
    assert RecipientsRefused("no", accepted=(), refused=REFUSED).uncertain
    assert not RecipientsRefused("no", accepted=(), refused={"b@x.test": REFUSED["b@x.test"]}).uncertain
