"""The table of delivery modes."""

from typing import NamedTuple

import pytest

from openviper.core.email import (
    DeliveryMode,
)
from openviper.core.email.delivery import choose_mode

INLINE, DEFERRED, QUEUED = DeliveryMode.INLINE, DeliveryMode.DEFERRED, DeliveryMode.QUEUED


class Broker(NamedTuple):
    """A transport with a queue, or without."""

    queue: object | None


def mode_of(
    background: bool | None,
    setting: bool | None,
    *,
    broker: bool,
    can_defer: bool,
    in_transaction: bool = False,
) -> DeliveryMode:
    transport = Broker(object() if broker else None)
    return choose_mode(background, setting, in_transaction=in_transaction, transport=transport, can_defer=can_defer)


@pytest.mark.parametrize("use_background_worker", [None, True, False])
@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("in_request", [True, False])
def test_background_false_is_inline_whatever_else_holds(
    use_background_worker: bool | None, broker: bool, in_request: bool
) -> None:
    mode = mode_of(False, use_background_worker, broker=broker, can_defer=in_request)
    assert mode is INLINE


@pytest.mark.parametrize(
    ("background", "setting", "broker", "in_request_mode", "elsewhere_mode"),
    [
        (None, None, True, QUEUED, QUEUED),
        (None, True, True, QUEUED, QUEUED),
        (None, False, True, DEFERRED, INLINE),
        (None, None, False, DEFERRED, INLINE),
        (None, True, False, DEFERRED, INLINE),
        (None, False, False, DEFERRED, INLINE),
        (True, None, True, QUEUED, QUEUED),
        (True, True, True, QUEUED, QUEUED),
        (True, False, True, QUEUED, QUEUED),
        (True, None, False, DEFERRED, INLINE),
        (True, True, False, DEFERRED, INLINE),
        (True, False, False, DEFERRED, INLINE),
    ],
)
def test_the_table_of_modes(
    background: bool | None,
    setting: bool | None,
    broker: bool,
    in_request_mode: DeliveryMode,
    elsewhere_mode: DeliveryMode,
) -> None:
    for in_request, expected in ((True, in_request_mode), (False, elsewhere_mode)):
        mode = mode_of(background, setting, broker=broker, can_defer=in_request)
        assert mode is expected


def test_without_room_a_request_delivers_inline() -> None:
    mode = mode_of(None, None, broker=False, can_defer=False)
    assert mode is INLINE
