"""Choose how each message is delivered, deliver it, and describe that choice."""

from openviper.core.email.delivery.current import (
    apart_from_other_requests,
    current_mailer,
    current_settings,
    mailer_if_open,
    serving_event_loop,
    serving_loop,
    stay_with,
    using_mailer,
)
from openviper.core.email.delivery.deadline import Deadline
from openviper.core.email.delivery.description import DeliveryModes, current_modes, describe_modes
from openviper.core.email.delivery.health import Health, HealthProblem, health
from openviper.core.email.delivery.held import HeldMessage
from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.mode import choose_mode
from openviper.core.email.delivery.submission import cancel, deliver_inline, failed, submit
from openviper.core.email.delivery.transport import Transport, using_transport
from openviper.core.email.delivery.verification import Verification, verify

__all__ = [
    "Deadline",
    "DeliveryModes",
    "Health",
    "HealthProblem",
    "HeldMessage",
    "Mailer",
    "Transport",
    "Verification",
    "apart_from_other_requests",
    "cancel",
    "choose_mode",
    "current_mailer",
    "current_modes",
    "current_settings",
    "deliver_inline",
    "describe_modes",
    "failed",
    "health",
    "mailer_if_open",
    "serving_event_loop",
    "serving_loop",
    "stay_with",
    "submit",
    "using_mailer",
    "using_transport",
    "verify",
]
