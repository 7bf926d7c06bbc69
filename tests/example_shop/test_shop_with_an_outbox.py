"""The shop with its mail in its own database until it is delivered, by a setting alone."""

import logging

import pytest
from support.shopping import Shop
from support.smtpd import SmtpServer

from openviper.conf import override


async def test_the_staff_page_counts_the_mail_that_the_outbox_keeps(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    with SmtpServer() as smtp:
        email = smtp.settings(default_sender="Viper Supplies <orders@shop.example>", outbox="database")
        gate = smtp.hold("body")
        with override(EMAIL=email):
            async with shop.visited() as visitor:
                await visitor.add("Field notebook")
                assert (await visitor.check_out()).status_code == 303
                await gate.reached()
                assert "until it is delivered: 1 waiting, 0 failed." in (await visitor.get("/staff")).text
                gate.release()
                await smtp.arrive(1)
            async with shop.visited() as visitor:
                assert "until it is delivered: 0 waiting, 0 failed." in (await visitor.get("/staff")).text
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_without_the_setting_the_staff_page_says_nothing_of_it(shop: Shop) -> None:
    async with shop.visited() as visitor:
        assert "until it is delivered" not in (await visitor.get("/staff")).text
