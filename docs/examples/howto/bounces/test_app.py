import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from app import PASSWORD, app
from fastapi.testclient import TestClient
from openviper.conf import override
from openviper.core.email import submit_email
from openviper.db import create_suppression_table, dispose
from openviper.testing import Mailbox

BOUNCE = {
    "RecordType": "Bounce",
    "Type": "HardBounce",
    "Email": "gone@example.com",
}


@pytest.fixture(autouse=True)
def database(tmp_path: Path) -> Iterator[None]:
    with override(DATABASE_URL=f"sqlite:///{tmp_path}/shop.db"):
        yield


def test_an_address_that_bounced_is_not_mailed_again(mailbox: Mailbox) -> None:
    async def use() -> None:
        await create_suppression_table()
        receipt = await submit_email("gone@example.com", "Hello", text="...")
        assert receipt.outcome == before
        await dispose()

    before = "delivered"
    asyncio.run(use())
    with TestClient(app) as client:
        answer = client.post(
            "/hooks/postmark", json=BOUNCE, auth=("postmark", PASSWORD)
        )
        assert answer.status_code == 200
        stranger = client.post(
            "/hooks/postmark", json=BOUNCE, auth=("postmark", "guess")
        )
        assert stranger.status_code == 401
    before = "suppressed"
    asyncio.run(use())
    mailbox.assert_sent(count=1)
