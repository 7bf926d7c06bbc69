"""The newsletter goes by a mailer of its own, and each message has the footer."""

import re

import pytest
from support.shopping import Shop

FOOTER = "Viper Supplies, 1 Garden Lane, Exampleton"


async def test_the_newsletter_goes_to_its_readers_by_its_own_mailer(shop: Shop) -> None:
    async with shop.visited() as visitor:
        for email in ("ana@example.com", "bob@example.com", "ana@example.com"):
            assert (await visitor.post("/newsletter", {"email": email})).headers["location"] == "/newsletter"
        assert "2 readers." in (await visitor.get("/staff")).text
        answer = await visitor.post("/staff/newsletter", {"subject": "June", "text": "Ink is back."})
        assert answer.headers["location"] == "/staff?sent=2"
        assert "On its way to 2 readers, by the mailer <code>bulk</code>" in (await visitor.get("/staff?sent=2")).text
    assert sorted(mail.envelope.recipients for mail in shop.mail) == [("ana@example.com",), ("bob@example.com",)]
    for mail in shop.mail:
        assert (mail.mailer, mail.prepared.must["stream"]) == ("bulk", "news")
        assert mail.prepared.sender.addr_spec == "news@shop.example"
        assert "Ink is back." in (mail.prepared.text or "")


async def test_a_reader_leaves_by_the_link_in_the_newsletter(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.post("/newsletter", {"email": "ana@example.com"})
        await visitor.post("/staff/newsletter", {"subject": "June", "text": "Ink is back."})
    (mail,) = shop.mail
    link = re.search(r"No more of this: (\S+)", mail.prepared.text or "")
    assert link is not None
    headers = dict(mail.prepared.headers)
    assert headers["List-Unsubscribe"] == f"<{link[1]}>"
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    path = link[1].removeprefix("http://127.0.0.1:8000")
    one_click = {"List-Unsubscribe": "One-Click"}
    async with shop.visited() as visitor:
        assert "Do you want to stop receiving these emails?" in (await visitor.get(path)).text
        assert (await visitor.post(path[:-1], one_click)).status_code == 200
        assert "1 reader." in (await visitor.get("/staff")).text, "neither a look nor another link removes anybody"
        for _ in range(2):
            assert "You are unsubscribed" in (await visitor.post(path, one_click)).text
        assert "0 readers." in (await visitor.get("/staff")).text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_wrong_input_sends_nothing(shop: Shop) -> None:
    async with shop.visited() as visitor:
        answer = await visitor.post("/newsletter", {"email": "no address"})
        assert (answer.status_code, "This is not an email address" in answer.text) == (422, True)
        answer = await visitor.post("/staff/newsletter", {"subject": "a\x00b", "text": "x"})
        assert (answer.status_code, "without control characters" in answer.text) == (422, True)
        assert "0 readers." in answer.text
    async with shop.open(host="203.0.113.9") as visitor_from:
        assert (await visitor_from().post("/staff/newsletter", {"subject": "a", "text": "x"})).status_code == 403
    assert not shop.mail


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_each_message_ends_with_the_footer_in_both_bodies(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook")
        await visitor.check_out()
        await visitor.post("/staff/orders/1/ship")
    assert [mail.mailer for mail in shop.mail] == ["default", "default"]
    for mail in shop.mail:
        assert (mail.prepared.text or "").endswith(f"\n-- \n{FOOTER}\n")
        assert (mail.prepared.html or "").count(FOOTER) == 1
        assert (mail.prepared.text or "").count(FOOTER) == 1
