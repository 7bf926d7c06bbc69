"""What visitors may send that was not meant."""

import html

import pytest
from support.shopping import Shop

from openviper.conf import override

NAMES = [
    "<b>Bold</b><script>alert(1)</script>",
    "[click](http://evil.example)",
    "![x](http://evil.example/p.png)",
    "{{ order.token }} {% raw %}",
    """O'Brien "the\\" <ana@evil.example>""",
    "*Ana* _Costa_ `code` # 1. | a | b |",
    "Ana 👩‍👩‍👧 Costa 🐍",
    "\u202eatsoC anA\u202c שלום مرحبا",
    "&lt;i&gt; &amp; &#x3C;",
    "=?utf-8?q?x=0D=0ABcc=3A_evil=40x.test?=",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_name_appears_literally_on_every_page_and_in_every_mail(shop: Shop, name: str) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook")
        answer = await visitor.check_out(name=name, address=f"{name}\r\nLisboa")
        pages = [await visitor.get(answer.headers["location"]), await visitor.get("/staff")]
        await visitor.post("/staff/orders/1/ship")
        for page in pages:
            assert name in html.unescape(page.text)
            assert "<b>" not in page.text
            assert "<script" not in page.text
    confirmation, notice = shop.mail
    for mail in (confirmation, notice):
        assert mail.envelope.recipients == ("ana@example.com",)
        assert name in (mail.prepared.text or "")
        shown = mail.prepared.html or ""
        assert name in html.unescape(shown)
        assert shown.count("<img") == shown.count('<img src="cid:logo"')
        for harm in ("<b>", "<script", "<em>", "<code>", 'href="http://evil'):
            assert harm not in shown
    invoice = notice.prepared.attachments[-1].content.decode()
    assert name in html.unescape(invoice)
    assert "<script" not in invoice


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
    ],
)
async def test_a_form_from_another_site_is_refused(shop: Shop, headers: dict[str, str]) -> None:
    async with shop.visited() as visitor:
        assert (await visitor.post("/cart", {"product": "1", "add": "1"}, headers=headers)).status_code == 403
        assert (await visitor.post("/staff/orders/1/ship", headers=headers)).status_code == 403


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_origin_decides_for_a_browser_without_fetch_metadata(shop: Shop) -> None:
    fields = {"product": "1", "add": "1"}
    async with shop.visited() as visitor:
        for origin, status in (("http://127.0.0.1:8000", 303), ("http://127.0.0.1:9000", 403), ("null", 403)):
            answer = await visitor.client.post("/cart", data=fields, headers={"Origin": origin})
            assert answer.status_code == status, origin


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "x",
        "1",
        "1:0",
        "0:1",
        "1:-1",
        "1:1e3",
        "999999999:1",
        "99999999999999999999:1",
        "1:٣",
        "1:1;2:2",
        "1:1." * 3000,
    ],
)
async def test_any_cart_cookie_gives_a_page(shop: Shop, cookie: str) -> None:
    async with shop.visited() as visitor:
        answer = await visitor.client.get("/cart", headers={b"Cookie": f"cart={cookie}".encode()})
        assert answer.status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_cart_holds_no_more_than_its_limits(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook")
        await visitor.post("/cart", {"product": "1", "quantity": "999999999"})
        assert 'value="20"' in (await visitor.get("/cart")).text
        await visitor.post("/cart", {"product": "1", "quantity": "3", "remove": "1"})
        assert "Your cart is empty" in (await visitor.get("/cart")).text
    async with shop.visited() as visitor:
        assert 'value="20"' in (await visitor.client.get("/cart", headers={"Cookie": "cart=1:99"})).text
        many = ".".join(f"{product}:1" for product in range(100, 120))
        page = (await visitor.client.get("/cart", headers={"Cookie": f"cart={many}.1:1"})).text
        assert "Your cart is empty" in page


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"product=1&add=" + b"1" * 20_000, "application/x-www-form-urlencoded", 413),
        (b"product=1&add=1&" + b"a=1&" * 100, "application/x-www-form-urlencoded", 400),
        (b"product=%ff&add=1", "application/x-www-form-urlencoded", 400),
        (b"product=\xff&add=1", "application/x-www-form-urlencoded", 400),
        (b"product=one&add=1", "application/x-www-form-urlencoded", 400),
        (b'{"product": 1}', "application/json", 415),
    ],
)
async def test_what_is_not_a_form_of_ours_is_refused(shop: Shop, content: bytes, media_type: str, status: int) -> None:
    async with shop.visited() as visitor:
        answer = await visitor.client.post("/cart", content=content, headers={"Content-Type": media_type})
        assert answer.status_code == status
        assert "Back to the shop" in answer.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_forged_host_header_does_not_reach_the_mail(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook")
        fields = {"name": "Ana", "email": "ana@example.com", "address": "Lisboa", "token": await visitor.form_token()}
        cookie = f"cart={visitor.client.cookies['cart']}"
        await visitor.post("/checkout", fields, headers={"Host": "evil.example", "Cookie": cookie})
    [mail] = shop.mail
    assert "https://shop.example/orders/" in (mail.prepared.text or "")
    assert b"evil" not in b"".join(mail.content)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_an_unknown_page_or_order_is_not_found(shop: Shop) -> None:
    async with shop.visited() as visitor:
        for path in ("/nothing", "/orders/1001", "/orders/" + "A" * 22):
            assert (await visitor.get(path)).status_code == 404


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_every_page_forbids_scripts_and_foreign_content(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook")
        for path in ("/", "/cart", "/checkout", "/staff", "/nothing"):
            policy = (await visitor.get(path)).headers["content-security-policy"]
            assert policy.startswith("default-src 'none';")
            assert "script-src" not in policy


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_inbox_is_linked_only_in_debug_mode(shop: Shop) -> None:
    async with shop.visited() as visitor:
        assert 'href="/_mail"' in (await visitor.get("/")).text
    with override(DEBUG=False):
        async with shop.visited() as visitor:
            assert 'href="/_mail"' not in (await visitor.get("/")).text
            assert (await visitor.get("/_mail")).status_code == 404
