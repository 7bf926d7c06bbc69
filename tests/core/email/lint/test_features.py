"""Each feature of the data on mail clients is found where it is used, and only there."""

import re

import pytest
from support.documents import ROOT

from openviper.core.email.lint.support import DETECTED, WITHOUT_DETECTOR, WITHOUT_EFFECT, load_support
from openviper.core.email.lint.uses import find_uses
from openviper.core.email.settings.mail_clients import DEFAULT_CLIENTS, MAIL_CLIENTS
from scripts import client_features

FILE = ROOT / "tests" / "data" / "client_support" / "features.txt"
FIXTURES = {
    slug: (with_it, without)
    for slug, with_it, without in (
        line.split(" | ") for line in FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    )
}


def found(html: str) -> set[str]:
    return {use.feature for use in find_uses(html, {})}


@pytest.mark.parametrize("slug", FIXTURES)
def test_a_feature_is_found_where_it_is_used_and_not_where_html_looks_like_it(slug: str) -> None:
    with_it, without = FIXTURES[slug]
    assert slug in found(with_it)
    assert slug not in found(without)


def test_every_feature_has_fixtures_or_is_listed_without_a_detector() -> None:
    assert set(FIXTURES) == DETECTED
    assert set(load_support().features) == {*DETECTED, *WITHOUT_DETECTOR}
    assert DETECTED.isdisjoint(WITHOUT_DETECTOR)
    assert set(WITHOUT_EFFECT) <= DETECTED


def test_the_settings_know_the_clients_of_the_data() -> None:
    assert set(load_support().clients) == MAIL_CLIENTS
    assert set(DEFAULT_CLIENTS) <= set(load_support().families)


@pytest.mark.parametrize(
    ("html", "slugs"),
    [
        ("<svg><style>a{color:red}</style><a width=1 style='float:left'></a></svg>", {"html-svg"}),
        ("<!--[if mso]><video></video><![endif]-->", {"html-comments"}),
        ("<p style='colour: red", set()),
        ("<style>.a{color:red", {"html-style", "css-selector-class"}),
        ("<style>a{}</style><style><!-- .b{float:left} --></style>", {"html-style", "css-selector-type"}),
        ("<textarea><video></textarea>", {"html-textarea"}),
        ("<p style='float:left' style='clear:both'>", {"html-p", "css-float"}),
    ],
)
def test_html_is_read_as_clients_read_it(html: str, slugs: set[str]) -> None:
    extra = {"css-selector-class", "css-float"} if "<!-- .b" in html else set()
    assert found(html) == slugs | extra


def test_images_that_are_attached_are_known_by_their_type() -> None:
    uses = find_uses('<img src="cid:photo%40shop" alt="A">', {"photo@shop": "image/webp"})
    assert {use.feature for use in uses} == {"html-img", "image-webp"}


def test_the_page_of_the_features_is_that_of_the_data() -> None:
    """``scripts/client_features.py`` writes it."""
    assert client_features.PAGE.read_text(encoding="utf-8") == client_features.page()


def test_the_page_of_the_clients_names_them_all() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| (.+) \|$", (ROOT / "docs" / "client-support.md").read_text(), re.MULTILINE
    )
    named = {family: set(re.findall(r"`([^`]+)`", clients)) for family, clients in rows}
    assert set(named) == set(load_support().families)
    assert set().union(*named.values()) == MAIL_CLIENTS
