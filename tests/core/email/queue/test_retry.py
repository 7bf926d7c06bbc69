"""What follows from an attempt."""

import time
from typing import Any

import pytest

from openviper.core.email import (
    AuthenticationFailed,
    ConnectionFailed,
    EmailSettings,
    MessageRefused,
    RecipientsRefused,
    Refusal,
)
from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.retry import (
    Decision,
    DispatcherPolicy,
    Done,
    GiveUp,
    InlinePolicy,
    QueuePolicy,
    Retry,
    after_attempt,
    retry_delay,
)
from openviper.exceptions import ImproperlyConfigured


def settings(**given: Any) -> EmailSettings:
    return EmailSettings(**given)


def after(progress: Progress, outcome: DeliveryReport | Exception, settings: EmailSettings) -> Decision:
    return after_attempt(progress, outcome, QueuePolicy(settings), now=time.time())


def fresh(age: float = 0) -> Progress:
    return Progress(since=time.time() - age)


def test_everybody_has_it() -> None:
    assert isinstance(after(fresh(), DeliveryReport(("a@x.test",)), settings()), Done)


def test_only_those_refused_for_now_are_tried_again() -> None:
    report = DeliveryReport(
        ("a@x.test",), {"b@x.test": Refusal(451, "later"), "c@x.test": Refusal(550, "no such user")}
    )
    outcome = after(fresh(), report, settings())
    assert isinstance(outcome, Retry)
    assert outcome.progress.pending == ("b@x.test",)
    assert outcome.progress.refused == {"c@x.test": "550 no such user"}


def test_who_was_refused_for_good_is_kept_when_all_others_have_it() -> None:
    first = after(
        fresh(), DeliveryReport((), {"c@x.test": Refusal(550, "no"), "b@x.test": Refusal(451, "")}), settings()
    )
    assert isinstance(first, Retry)
    last = after(first.progress, DeliveryReport(("b@x.test",)), settings())
    assert isinstance(last, GiveUp)
    assert last.progress.restart(now=0).pending == ("c@x.test",)


def test_a_refusal_of_all_is_judged_by_each_reply() -> None:
    error = RecipientsRefused("no", accepted=(), refused={"a@x.test": Refusal(451, ""), "b@x.test": Refusal(550, "")})
    outcome = after(fresh(), error, settings())
    assert isinstance(outcome, Retry)
    assert outcome.progress.pending == ("a@x.test",)
    assert isinstance(after(fresh(), error, settings(allow_partial=False)), GiveUp)


def test_a_5xx_is_tried_once() -> None:
    assert isinstance(after(fresh(), MessageRefused("no", code=554), settings()), GiveUp)


@pytest.mark.parametrize(
    "error",
    [AuthenticationFailed("wrong password", code=535), ConnectionFailed("the certificate is not trusted")],
    ids=["password", "certificate"],
)
def test_a_connection_that_is_refused_for_good_loses_no_mail(error: ConnectionFailed) -> None:
    """It says nothing about the message, and would else empty the whole queue into the failed ones."""
    assert not error.temporary
    assert isinstance(after(fresh(), error, settings()), Retry)


def test_a_wrong_setting_of_the_worker_loses_no_mail() -> None:
    assert isinstance(after(fresh(), ImproperlyConfigured('EMAIL["host"]: ...'), settings()), Retry)


def test_uncertain_mail_is_tried_again_or_held_as_the_setting_says() -> None:
    error = ConnectionFailed("cut", temporary=True, uncertain=True)
    again = after(fresh(), error, settings())
    assert isinstance(again, Retry)
    assert again.progress.uncertain
    given_up = after(fresh(), error, settings(on_uncertain="hold"))
    assert isinstance(given_up, GiveUp)
    assert given_up.uncertain


def cut(*recipients: str) -> dict[str, Refusal]:
    return dict.fromkeys(recipients, Refusal(451, "cut; the message may or may not have been accepted", uncertain=True))


def test_of_a_report_those_who_may_have_it_are_held_and_the_others_tried_again() -> None:
    report = DeliveryReport(
        ("a@x.test",), cut("b@x.test") | {"c@x.test": Refusal(451, "later"), "d@x.test": Refusal(550, "no")}
    )
    again = after(fresh(), report, settings(on_uncertain="hold"))
    assert isinstance(again, Retry)
    assert again.progress.pending == ("c@x.test",)
    assert list(again.progress.unconfirmed) == ["b@x.test"]
    assert list(again.progress.refused) == ["d@x.test"]
    stored = Progress.from_json(again.progress.to_json())
    assert stored == again.progress
    failed = after(stored, DeliveryReport(("c@x.test",)), settings(on_uncertain="hold"))
    assert isinstance(failed, GiveUp)
    assert failed.uncertain
    assert failed.reason.startswith("1 recipient perhaps has it: 451 cut")
    assert "1 recipient refused: 550 no" in failed.reason
    assert failed.progress.restart(now=0) == Progress(0, pending=("d@x.test", "b@x.test"))


def test_of_an_error_that_tells_recipients_apart_those_without_the_message_are_tried_again() -> None:
    error = ConnectionFailed("cut", temporary=True, uncertain=True)
    error.refused = cut("a@x.test") | {"b@x.test": Refusal(451, "not sent")}
    for partial in (True, False):
        holding = after(fresh(), error, settings(on_uncertain="hold", allow_partial=partial))
        assert isinstance(holding, Retry)
        assert holding.progress.pending == ("b@x.test",)
        assert list(holding.progress.unconfirmed) == ["a@x.test"]
        again = after(fresh(), error, settings(allow_partial=partial))
        assert isinstance(again, Retry)
        assert again.progress.pending == ("a@x.test", "b@x.test")
        assert again.progress.uncertain


def test_with_retry_those_who_may_have_it_are_tried_again() -> None:
    again = after(fresh(), DeliveryReport(("a@x.test",), cut("b@x.test")), settings())
    assert isinstance(again, Retry)
    assert again.progress.pending == ("b@x.test",)
    assert not again.progress.unconfirmed
    assert isinstance(after(again.progress, DeliveryReport(("b@x.test",)), settings()), Done)


def test_an_uncertain_attempt_is_not_forgotten_by_a_later_one_that_is_refused() -> None:
    first = after(fresh(), ConnectionFailed("cut", temporary=True, uncertain=True), settings())
    assert isinstance(first, Retry)
    for error in (
        MessageRefused("no", code=554),
        RecipientsRefused("no", accepted=(), refused={"a@x.test": Refusal(550, "")}),
    ):
        last = after(first.progress, error, settings())
        assert isinstance(last, GiveUp)
        assert last.uncertain


def test_tries_end_with_retry_max_age() -> None:
    error = ConnectionFailed("refused", temporary=True)
    assert isinstance(after(fresh(age=86401), error, settings()), GiveUp)
    last = after(Progress(since=time.time() - 86399, attempts=30), error, settings())
    assert isinstance(last, Retry)
    assert last.delay <= 1
    assert isinstance(after(fresh(), error, settings(retry_max_age=0)), GiveUp)


@pytest.mark.parametrize(("attempts", "longest"), [(1, 3), (2, 6), (3, 12), (10, 1536), (12, 3600), (400, 3600)])
def test_delays_grow_to_an_hour_with_jitter(attempts: int, longest: float) -> None:
    delays = {retry_delay(attempts) for _ in range(50)}
    assert longest / 2 <= min(delays)
    assert max(delays) <= longest
    assert len(delays) > 10


def test_the_dispatcher_retries_as_often_as_it_has_delays() -> None:
    policy, progress = DispatcherPolicy((1.0, 5.0)), Progress(since=0.0)
    delays = []
    for _ in range(2):
        decision = after_attempt(progress, ConnectionFailed("down", temporary=True), policy, now=0.0)
        assert isinstance(decision, Retry)
        delays.append(decision.delay)
        progress = decision.progress
    assert delays == [1.0, 5.0]
    assert isinstance(after_attempt(progress, ConnectionFailed("down", temporary=True), policy, now=0.0), GiveUp)


@pytest.mark.parametrize(
    "error",
    [
        MessageRefused("no", code=550),
        ConnectionFailed("the certificate has expired"),
        ImproperlyConfigured("wrong"),
        KeyError("a bug"),
    ],
)
def test_the_dispatcher_retries_temporary_errors_only(error: Exception) -> None:
    decision = after_attempt(Progress(since=0.0), error, DispatcherPolicy((1.0,)), now=0.0)
    assert isinstance(decision, GiveUp)
    assert decision.error is error


def test_the_dispatcher_does_not_repeat_a_permanent_refusal_beside_a_temporary_one() -> None:
    error = RecipientsRefused("no", accepted=(), refused={"a@x.test": Refusal(450, ""), "b@x.test": Refusal(550, "")})
    decision = after_attempt(Progress(since=0.0), error, DispatcherPolicy((1.0,)), now=0.0)
    assert isinstance(decision, Retry)
    assert decision.progress.pending == ("a@x.test",)


def test_a_report_ends_inline_mail_because_the_sender_gets_it() -> None:
    report = DeliveryReport(("a@x.test",), {"b@x.test": Refusal(451, "later"), "c@x.test": Refusal(550, "no")})
    decision = after_attempt(Progress(since=0.0), report, InlinePolicy(), now=0.0)
    assert decision == Done(report)


def test_the_dispatcher_gives_up_recipients_who_are_refused_for_now_to_the_end() -> None:
    report = DeliveryReport(("a@x.test",), {"b@x.test": Refusal(451, "later"), "c@x.test": Refusal(550, "no")})
    decision = after_attempt(Progress(since=0.0), report, DispatcherPolicy(()), now=0.0)
    assert isinstance(decision, GiveUp)
    assert decision.progress.missing == ("b@x.test", "c@x.test")
    assert decision.reason == "given up after 1 attempt: 1 recipient temporarily refused: 451 later"


def test_one_attempt_is_followed_by_none() -> None:
    error = ConnectionFailed("down", temporary=True)
    decision = after_attempt(Progress(since=0.0), error, InlinePolicy(), now=0.0)
    assert isinstance(decision, GiveUp)
    assert decision.error is error
