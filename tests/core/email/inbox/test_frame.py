"""The framed copy of an HTML part: themes, inline images, links."""

import time

import pytest

from openviper.core.email.inbox.frame import framed_html


def framed(html: str, *, theme: str = "light", remote: bool = False) -> str:
    return framed_html(html, images="/_mail/k/inline/", theme=theme, remote=remote)


QUERY = "<style>@media ( Prefers-Color-Scheme : DARK ) {p{color:#fff}} @media screen and (prefers-color-scheme:light){}"


@pytest.mark.parametrize(
    ("theme", "dark", "light"), [("dark", "(min-width: 0px)", "(max-width: 0px)"),
                                 ("light", "(max-width: 0px)", "(min-width: 0px)")],
)  # fmt: skip
def test_what_asks_for_the_preferred_colours_is_answered(theme: str, dark: str, light: str) -> None:
    document = framed(QUERY, theme=theme)
    assert f"@media {dark} {{p" in document
    assert f"screen and {light}{{" in document
    assert "prefers" not in document.lower()


@pytest.mark.parametrize(
    "declared",
    [
        '<meta name="color-scheme" content="light dark">',
        "<meta name=color-scheme content='dark light'>",
        "<style>:root{color-scheme: light dark}</style>",
        '<html style="color-scheme:light dark">',
        '<meta name="supported-color-schemes" content="light dark">',
    ],
)
def test_a_message_that_can_be_dark_is_shown_in_the_chosen_colours(declared: str) -> None:
    assert "color-scheme:only dark" in framed(declared, theme="dark")
    assert "color-scheme:only light" in framed(declared, theme="light")


@pytest.mark.parametrize("html", ["<p>color-scheme</p>", '<meta name="color-scheme" content="light">', QUERY])
def test_one_that_does_not_say_so_keeps_its_colours(html: str) -> None:
    assert "color-scheme:only dark" not in framed(html, theme="dark")


@pytest.mark.parametrize("before", ["", "\n ", "<!-- made by hand -->\n", "<!-- a --><!-- b -->"])
def test_the_doctype_stays_first(before: str) -> None:
    """Before it, anything but a comment would change how the browser lays the message out."""
    assert framed(f"{before}<!DOCTYPE html><p>x").startswith(f'{before}<!DOCTYPE html><base target="_blank"><p>')


def test_inline_images_lead_to_the_message() -> None:
    html = "<img src=cid:a@b><p style=\"background:url('CID:c?d')\">"
    assert framed(html).count("/_mail/k/inline/") == 2
    assert "url('/_mail/k/inline/c%3Fd')" in framed(html)


def test_elements_that_connect_elsewhere_are_disarmed_until_allowed() -> None:
    html = '<LINK rel=preconnect href="//t.example"><link/rel=dns-prefetch href="//t.example">'
    assert "<link" not in framed(html).lower()
    assert framed(html, remote=True).lower().count("<link") == 2


@pytest.mark.parametrize("name", ["iframe", "FRAME", "object", "embed"])
@pytest.mark.parametrize("remote", [False, True])
def test_frames_in_the_message_are_disarmed_always(name: str, remote: bool) -> None:
    assert f"<{name}" not in framed(f'<{name} src="//t.example">', remote=remote)


@pytest.mark.parametrize(
    "html",
    ["<!-- x -->" * 20_000, "<!--" * 50_000, "(" * 200_000, "cid:" * 50_000, "color-scheme " * 20_000,
     "(prefers-color-scheme " * 10_000, " " * 200_000, "color-scheme  content" * 10_000],
)  # fmt: skip
def test_hostile_html_is_framed_in_time(html: str) -> None:
    begun = time.thread_time()
    framed(html)
    assert time.thread_time() - begun < 10


def test_framing_an_ordinary_newsletter_holds_the_interpreter_for_milliseconds() -> None:
    """Patterns hold it to their end, and with it the event loop, whichever thread they run in."""
    row = '<tr><td style="color:#333"><a href="https://shop.example/x"><img src="cid:a" alt=""></a></td></tr>'
    html = f"<style>:root{{color-scheme:light dark}}</style><table>{row * 10_000}</table>"
    begin = time.thread_time()
    framed = framed_html(html, images="/x/", theme="dark", remote=False)
    assert time.thread_time() - begin < 2
    assert "color-scheme:only dark" in framed
