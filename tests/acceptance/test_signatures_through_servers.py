"""DKIM signatures hold behind a real Postfix and a real Exim, at dkimpy and at OpenDKIM, and break by any change.

A message with two signatures passes at OpenDKIM by its RSA signature. ``benchmarks/signing.py --long`` is the same for
500 messages of each server.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exim import Exim
from support.postfix import Postfix
from support.signed_mail import verify_through

_COUNT = 24
_SEED = 7


@pytest.fixture(params=[Postfix, Exim])
def server(request: pytest.FixtureRequest) -> Iterator[Postfix | Exim]:
    with request.param() as started:
        yield started


async def test_messages_of_all_shapes_verify_and_none_does_after_a_change(
    server: Postfix | Exim, tmp_path: Path
) -> None:
    found = await verify_through(server, _COUNT, _SEED, tmp_path)
    assert found.messages >= _COUNT
    assert found.dkimpy == found.messages
    assert 0 < found.with_rsa < found.messages
    assert found.opendkim == found.with_rsa
    assert (found.changed, found.changed_but_valid) == (found.messages, 0)
