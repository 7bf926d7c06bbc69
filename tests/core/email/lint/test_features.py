"""Each feature of the data on mail clients is found where it is used, and only there."""

import re

import pytest
from support.documents import ROOT

from openviper.core.email.lint.html_features import srcset_addresses
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


# HTML, and the features that it uses beside those of the elements p and style.
LOOK_ALIKES = [
    ('<p style="/* float: left */ color: red">', "css-comments"),
    ("<p style=\"font-family: 'float: left'\">", ""),
    ('<p style="background: url(float:left;clear)">', "css-background css-background-image"),
    ('<p style="my-float: left; --FLOAT: left">', "css-variables"),
    ('<p class="float display-flex" title="float: left" data-style="float: left">', ""),
    ("<!--[if mso]><style>p { float: left }</style><![endif]-->", "html-comments"),
    ('<!--[if gte mso 9]><v:rect style="float: left"><v:fill/></v:rect><![endif]-->', "html-comments"),
    (
        "<!--[if !mso]><!--><style>p { float: left }</style><!--<![endif]-->",
        "html-comments css-float css-selector-type",
    ),
    ("<style>@supports (display: grid) { p { clear: both } }</style>", "css-at-supports css-clear css-selector-type"),
    ("<style>@IMPORT 'display.css' screen; p { clear: both }</style>", "css-at-import css-clear css-selector-type"),
    (
        "<style>@media (hover) { @media print { p { clear: both } } }</style>",
        "css-at-media css-at-media-hover css-clear css-selector-type",
    ),
    (
        "<style>@-ms-viewport { width: device-width } @page { margin: 1cm } @font-face { height: 1px }</style>",
        "css-at-font-face",
    ),
    ("<p style=\"list-style: square url('a.x')\">", "css-list-style css-list-style-image"),
    ('<p style="list-style: square inside">', "css-list-style"),
    ('<p style="-webkit-box-shadow: inset red; -moz-float: left; -ms-clear: both">', "css-box-shadow"),
    ('<p style="background: -webkit-linear-gradient(red, blue)">', "css-background css-linear-gradient"),
    ('<p style="outline: 0; box-shadow: none; opacity: 1.0; border-radius: 0; transition: none">', ""),
    (
        '<p style="outline: 1px; opacity: .1; border-radius: 0 1px">',
        "css-outline css-opacity css-border-radius css-unit-px",
    ),
    ('<P STYLE="FLOAT: LEFT; WIDTH: 1E3PX">', "css-float css-width css-unit-px"),
    ('<p style="float&colon; left; quotes: &quot;; clear: both&quot;">', "css-float"),
    ("<p style=float:left/>", "css-float"),
    ("<b><p style='float: left'></b></p></i>", "css-float"),
    ("<p style='color: red!important; quotes: \"!important\"'>", "css-important"),
    ("<svg role=none><g style='float: left'/><style>p { float: left }</style></svg>", "html-svg"),
    ('<html amp4email><amp-img src="a.webp"></amp-img><amp-form></amp-form>', ""),
    ("<style type='text/template'>p { float: left }</style>", ""),
    ("<style type=' TEXT/CSS '>p { float: left }</style>", "css-float css-selector-type"),
    (r"<style>.sm\:hover, .w-1\/2 { clear: both }</style>", "css-clear css-selector-class css-selector-grouping"),
    (r"<style>.\31 0px:hover { clear: both }</style>", "css-clear css-selector-class css-pseudo-class-hover"),
    ("<style>a[title=':hover .a > #b'] { clear: both }</style>", "css-clear css-selector-attribute css-selector-type"),
    ("<title><p style='float: left'></title><script>'<p style=float:left>'</script>", ""),
    ("<input type=email>", "html-input-text"),
    ("<input type=x>", "html-input-text"),
    ("<input type=image src=a.x alt=Go>", "html-input-submit"),
    ("<input type=button><input type=file><button type=button>Go</button>", ""),
    ("<button type=x>Go</button>", "html-button-submit"),
]


@pytest.mark.parametrize(("html", "slugs"), LOOK_ALIKES)
def test_a_feature_is_told_from_its_look_alikes(html: str, slugs: str) -> None:
    assert found(html) - {"html-p", "html-style"} == set(slugs.split())


@pytest.mark.parametrize(
    ("srcset", "addresses"),
    [
        ("", []),
        (" , ", []),
        ("a.png", ["a.png"]),
        ("a.png 1x,b.png 2x , c.png", ["a.png", "b.png", "c.png"]),
        ("a.png, b,c.png 2x", ["a.png", "b,c.png"]),
        ("data:image/png;base64,AA== 1x, b.png 600w", ["data:image/png;base64,AA==", "b.png"]),
    ],
)
def test_the_addresses_of_a_srcset_are_read_as_browsers_read_them(srcset: str, addresses: list[str]) -> None:
    assert srcset_addresses(srcset) == addresses


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
