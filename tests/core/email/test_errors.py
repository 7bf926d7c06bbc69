"""What the public errors say of each recipient."""

from openviper.core.email.errors import RecipientsRefused, Refusal

REFUSED = {"a@x.test": Refusal(451, "cut", uncertain=True), "b@x.test": Refusal(550, "no")}


def test_refused_recipients_are_uncertain_when_one_of_them_is() -> None:
    assert RecipientsRefused("no", accepted=(), refused=REFUSED).uncertain
    assert not RecipientsRefused("no", accepted=(), refused={"b@x.test": REFUSED["b@x.test"]}).uncertain
