"""How mail leaves: the mailer of each event loop, the way of each message, and what is told of both."""

from openviper.core.email.delivery.current import (
    apart_from_other_requests,
    current_mailer,
    open_mailer,
    serving_event_loop,
    serving_loop,
    stay_with,
    using_mailer,
)
from openviper.core.email.delivery.description import Ways, current_ways, describe_ways
from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.mode import choose_way
from openviper.core.email.delivery.submission import submit

__all__ = [
    "Mailer",
    "Ways",
    "apart_from_other_requests",
    "choose_way",
    "current_mailer",
    "current_ways",
    "describe_ways",
    "open_mailer",
    "serving_event_loop",
    "serving_loop",
    "stay_with",
    "submit",
    "using_mailer",
]
