"""What is a problem in a mail client, what is a note, and for whom."""

import time

import pytest
from support.documents import ROOT

from openviper.core.email.lint import LintFinding, lint_client_support
from openviper.core.email.lint.partial import LIMITS
from openviper.core.email.lint.support import load_support

EIGHT = ("apple-mail", "gmail", "outlook", "yahoo", "aol", "samsung-email", "thunderbird", "protonmail")


def finding(html: str, check: str, *targets: str) -> LintFinding | None:
    return next((each for each in lint_client_support(html, targets or EIGHT, {}) if each.check == check), None)


def level(html: str, check: str, *targets: str) -> str | None:
    each = finding(html, check, *targets)
    return None if each is None else each.level


PROBLEMS = {
    "a video with nothing in its place": ("<video src=a.mp4></video>", "html-video"),
    "an audio element that is never closed": ("<p><audio src=a.mp3>", "html-audio"),
    "a drawing": ("<svg><path/></svg>", "html-svg"),
    "an image in a format that Outlook lacks": ('<img src="https://cdn.example/a.webp" alt="A">', "image-webp"),
    "an image without alternative text": ('<img src="https://cdn.example/a.webp">', "image-webp"),
    "an image as data": ('<img src="data:image/png;base64,AA" alt="A">', "image-base64"),
    "links in an image": ('<map name=m><area href="https://shop.example/"></map>', "html-image-maps"),
    "a form's field": ("<form><input name=a></form>", "html-input-text"),
    "a text made by a style": ("<style>.new::before{content:'New'}</style>", "css-pseudo-element-before"),
    "an attribute shown by a style": ("<style>a:after{content:attr(href)}</style>", "css-pseudo-element-after"),
    "text that an animation shows": ("<style>p{opacity:0;animation:x 1s forwards}</style>", "css-animation"),
    "a panel that a check box opens": (
        "<style>.a{display:none}#x:checked~.a{display:block}</style>",
        "css-pseudo-class-checked",
    ),
    "white text on a gradient": ('<a style="color:#fff;background:linear-gradient(red,blue)">x', "css-linear-gradient"),
    "white text inside a gradient": (
        '<table><tr><td style="background-image:linear-gradient(red,blue)"><p style="color:white">x',
        "css-linear-gradient",
    ),
    "white text on a picture": ("<td style=\"color:#FFFFFF;background:url('a.png')\">x", "css-background-image"),
    "white text on a variable": ("<style>.b{color:white;background:var(--b)}</style>", "css-variables"),
    "text of a variable on black": ('<p style="background:#000;color:var(--t)">x', "css-variables"),
    "white text on translucent black": ('<p style="color:#fff;background-color:rgba(0,0,0,.8)">x', "css-rgba"),
    "white text on a picture by attribute": ('<td background="a.png" style="color:#fff">x', "html-background"),
    "white text on a picture of the body": ('<body background="a.png" style="color:#fff">x', "html-background"),
    "a picture that shows through transparent text": (
        '<h1 style="background:url(a.png);-webkit-background-clip:text;color:transparent">x',
        "css-background-image",
    ),
    "a colour that shows through transparent text": (
        "<style>h1{background:#036;background-clip:text;color:TRANSPARENT}</style>",
        "css-background-clip",
    ),
    "an image that has only a choice of sizes": ('<img srcset="https://cdn.example/a.png 2x" alt="A">', "html-srcset"),
    "a form that cannot be sent": ("<form action=https://x.example/><button>Go</button></form>", "html-form"),
    "a field of another type": ("<input type=email>", "html-input-text"),
    "white text on a picture around it": (
        '<table><tr><td style="background:url(a.png)"><p>&nbsp;</p><p style="color:#fff">x',
        "css-background-image",
    ),
    "a panel inside a hidden one": (
        "<div class='a b' style='display:none'>x</div><style>#x:checked + * .b{display:block}</style>",
        "css-pseudo-class-checked",
    ),
    "a meter without its value": ("<meter value=.4></meter>", "html-meter"),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_lost_content_and_unreadable_text_are_problems(kind: str) -> None:
    html, check = PROBLEMS[kind]
    assert level(html, check) == "problem"


NOTES = {
    "a video with a link in its place": (
        '<video src=a.mp4><a href="https://x.example/">Film</a></video>',
        "html-video",
    ),
    "an object with a text in its place": ("<object data=a.pdf>Report</object>", "html-object"),
    "a decoration": ("<svg aria-hidden=true></svg>", "html-svg"),
    "a decorative image": ('<img src="https://cdn.example/a.webp" alt="">', "image-webp"),
    "a better image for some": (
        '<picture><source srcset="a.webp"><img src="https://cdn.example/a.png" alt="A"></picture>',
        "image-webp",
    ),
    "an arrow made by a style": (r"<style>a::after{content:'\2192'}</style>", "css-pseudo-element-after"),
    "an animation of what is visible": ("<style>p{animation:x 1s}</style>", "css-animation"),
    "another colour while hovering": ("<style>.a{display:none}a:hover{color:red}</style>", "css-pseudo-class-hover"),
    "a block that nothing hides": ("<style>#x:checked~.a{display:block}</style>", "css-pseudo-class-checked"),
    "dark text on a gradient": ('<p style="color:#222;background:linear-gradient(red,blue)">x', "css-linear-gradient"),
    "a plain colour before the gradient": (
        '<p style="color:#fff;background:#036;background:linear-gradient(red,blue)">',
        "css-linear-gradient",
    ),
    "a plain colour as attribute": (
        '<td bgcolor="#003366" style="color:#fff;background-image:url(a.png)">',
        "css-background-image",
    ),
    "a picture on a dark table": (
        '<table bgcolor=black><tr><td style="color:#fff;background-image:url(a.png)">',
        "css-background-image",
    ),
    "a plain colour inside the gradient": (
        '<td style="background-image:linear-gradient(red,blue)"><p style="background:#000;color:#fff">',
        "css-linear-gradient",
    ),
    "a colour of text whose fallback is readable": (
        '<p style="background:var(--b);color:white;color:oklch(98% 0 0)">',
        "css-modern-color",
    ),
    "a picture of the body behind dark text": ('<body background="a.png" style="color:#222">', "html-background"),
    "transparent text with a colour for other clients": (
        '<h1 style="background:url(a.png);background-clip:text;color:#036;-webkit-text-fill-color:transparent">',
        "css-background-clip",
    ),
    "a decoration that has only a choice of sizes": (
        '<img srcset="https://cdn.example/a.png 2x" alt="">',
        "html-srcset",
    ),
    "a choice of sizes beside an image": ('<img src="a.png" srcset="b.png 2x" alt="A">', "html-srcset"),
    "an empty form": ("<form></form><button>Go</button>", "html-form"),
    "a dark background whose texts have their own colour": (
        '<td style="background:#036 url(a.png)"><p style="color:#fff">x',
        "css-background-image",
    ),
    "a dark background of a rule": ("<style>.a{background:#036 url(a.png)}</style>", "css-background-image"),
    "a picture behind no text": (
        '<td style="color:#fff;background:url(a.png)">&nbsp;<img src="b.png" alt=""></td>',
        "css-background-image",
    ),
    "a block that the same selector hides": (
        "<style>i[a]~.b{display:none}i:checked~.b{display:block}</style><p class=b>x",
        "css-pseudo-class-checked",
    ),
    "another block than the hidden one": (
        "<style>.a{display:none}i:checked~.b,i~.a{display:block}</style><p class=b>x",
        "css-pseudo-class-checked",
    ),
    "a block that only some screens hide": (
        "<style>@media screen{.b{display:none}i:checked~.b{display:block}}</style>",
        "css-pseudo-class-checked",
    ),
    "a hidden field": ('<input type=checkbox style="display:none!important">', "html-input-checkbox"),
    "a hidden image": ('<img src="https://cdn.example/a.webp" alt="A" style="display:none">', "image-webp"),
    "columns": ('<div style="display:flex">', "css-display-flex"),
}


@pytest.mark.parametrize("kind", NOTES)
def test_what_is_only_less_fine_is_a_note(kind: str) -> None:
    html, check = NOTES[kind]
    assert level(html, check) == "note"


def test_templates_of_other_projects_have_no_problem() -> None:
    """They were tried in mail clients by many, so that a problem would be a wrong one."""
    documents = sorted((ROOT / "tests" / "data" / "newsletters").glob("*.html"))
    assert len(documents) > 40
    for document in documents:
        found = lint_client_support(document.read_text(encoding="utf-8"), EIGHT, {})
        assert [(document.name, each.title) for each in found if each.level == "problem"] == []


def test_colours_end_with_their_element() -> None:
    html = '<td style="background-image:linear-gradient(red,blue)">x</td><p style="color:#fff">white on white</p>'
    assert level(html, "css-linear-gradient") == "note"


def test_only_the_targeted_clients_count() -> None:
    html = "<video src=a.mp4></video>"
    assert level(html, "html-video", "apple-mail.macos") is None
    assert level(html, "html-video", "apple-mail") == "note"  # in part on iOS
    assert level(html, "html-video", "gmail.ios") == "problem"
    assert lint_client_support(html, (), {}) == []


def test_a_finding_names_clients_their_notes_the_date_and_the_lines() -> None:
    html = "<div>\n<p style='display:flex'>\n\n<p style='display:inline-flex'></div>"
    each = finding(html, "css-display-flex", "outlook", "gmail")
    assert each == LintFinding(
        "note",
        "css-display-flex",
        "display:flex: not supported by Outlook",
        "Not supported by Outlook (Windows, Windows Mail). In part by Gmail (Android, iOS). "
        "Not supported with non Google accounts. Tested 2021-11-02.",
        (2, 4),
    )


def test_a_problem_names_only_the_lines_where_something_is_lost() -> None:
    each = finding("<video>Film</video>\n<video></video>", "html-video", "gmail.ios")
    assert each is not None
    assert each.lines == (2,)
    assert each.explanation.startswith("The video is lost, and there is nothing in its place: put an image")


def test_what_outlook_does_not_read_is_not_held_against_it() -> None:
    html = "<!--[if !mso]><!--><p style='display:flex'></p><!--<![endif]-->"
    assert level(html, "css-display-flex", "outlook.windows") is None
    assert level(f"{html}<p style='display:flex'>", "css-display-flex", "outlook.windows") == "note"
    assert level("<![if !mso]><p style='display:flex'><![endif]>", "css-display-flex", "outlook.windows") is None


def test_vml_gives_outlook_a_background() -> None:
    cell = '<td style="background:url(a.png)">{}<p style="color:white">x</p>{}</td><p>'
    vml = cell.format(
        '<!--[if gte mso 9]><v:rect fill="true"><v:fill src="a.png"/><v:textbox><![endif]-->',
        "<!--[if gte mso 9]></v:textbox></v:rect><![endif]-->",
    )
    assert level(vml, "css-background-image", "outlook.windows") == "note"
    assert level(vml, "css-background-image", "outlook.windows-mail") == "problem"
    assert level(cell.format("", ""), "css-background-image", "outlook.windows") == "problem"
    assert level(vml + cell.format("", ""), "css-background-image", "outlook.windows") == "problem"
    other = cell.format("<!--[if !mso]><v:rect><![endif]-->", "")
    assert level(other, "css-background-image", "outlook.windows") == "problem"


@pytest.mark.parametrize(
    ("within", "beyond", "check"),
    [
        ('<p style="text-align:center">', '<p style="text-align:start">', "css-text-align"),
        ('<p style="font-size:16px">', '<p style="font-size:1rem">', "css-font-size"),
        ('<p style="color:rgb(1, 2, 3)">', '<p style="color:rgb(1 2 3)">', "css-rgb"),
        ('<td style="width:10px">', '<div style="width:10px">', "css-width"),
        ('<td style="padding:10px">', '<p style="padding:10px">', "css-padding"),
        ('<p style="padding:0 0px">', "<style>p{padding:1px}</style>", "css-padding"),
        ('<td style="border:8px solid">', '<td style="border:10px solid">', "css-border"),
        ('<p style="border:none">', '<p style="border:1px solid">', "css-border"),
        ('<p style="line-height:1.5">', '<p style="line-height:24px">', "css-line-height"),
        (
            '<p style="line-height:24px;mso-line-height-rule:exactly">',
            "<style>p{line-height:2em}</style>",
            "css-line-height",
        ),
        ('<p style="text-transform:uppercase">', '<p style="text-transform:lowercase">', "css-text-transform"),
        ('<p style="letter-spacing:1px">', '<p style="letter-spacing:-1px">', "css-letter-spacing"),
        ('<p style="margin:0 0 16px">', '<p style="margin:-1px">', "css-margin"),
        ("<style>p{margin:1em calc(1px - 2px)}</style>", '<table style="margin:0 auto">', "css-margin"),
        ('<img src="a.png" alt="" width="600">', '<img src="a.png" alt="" width="100%">', "html-width"),
        ('<td height="50%">', '<img src="a.png" alt="" height="50%">', "html-height"),
        ('<table align="center"><tr align="right">', '<table align="right">', "html-align"),
        ('<p dir="ltr">', '<p dir="rtl">', "html-dir"),
        ('<table style="max-width:10px">', "<style>table{max-width:10px}</style>", "css-max-width"),
        ("<ol><li>a</ol>", "<ol reversed><li>a</ol>", "html-lists"),
        ('<a href="mailto:a@x.example">', '<a href="mailto:a@x.example?bcc=b@x.example">', "html-mailto-links"),
    ],
)
def test_partial_support_is_noted_only_where_its_limits_are_passed(within: str, beyond: str, check: str) -> None:
    assert level(within, check) is None
    assert level(beyond, check) == "note"
    assert level(within + beyond, check) == "note"


def test_a_limit_counts_for_the_clients_that_have_it() -> None:
    negative, auto = '<p style="margin:-1px">', '<p style="margin:auto">'
    assert level(negative, "css-margin", "gmail") == "note"
    assert level(auto, "css-margin", "gmail") is None
    assert level(auto, "css-margin", "outlook.windows") == "note"
    in_sheet, upper, close = (
        f"<style>p{{color:red{mark}}}</style>" for mark in (" !important", " !IMPORTANT", "!important")
    )
    assert level(in_sheet, "css-important", "gmail", "yahoo", "outlook.windows") is None
    assert level(in_sheet, "css-important", "protonmail.ios") == "note"
    assert level(upper, "css-important", "gmail") == "note"
    assert level(close, "css-important", "outlook.windows") == "note"
    assert level('<p style="color:red !important">', "css-important", "outlook.windows") == "note"
    image = '<p style="background-image:url(a){}">'
    assert level(image.format("!important"), "css-important", "yahoo") == "note"
    assert level(image.format(" !important"), "css-important", "yahoo") is None
    block, contents = '<p style="display:block">', '<p style="display:contents">'
    assert level(block, "css-display", "gmail", "yahoo", "aol") is None
    assert level(block, "css-display", "outlook.windows") == "note"
    assert level(contents, "css-display", "yahoo") == "note"
    plain = "<p style=\"background:#fff url('a,b/c.png') rgb(1, 2, 3)\">"
    size, two = '<p style="background:url(a) 0 / 2px">', '<p style="background:url(a), url(b)">'
    assert [level(each, "css-background", "yahoo") for each in (plain, size, two)] == [None, "note", "note"]
    assert level('<p style="background:#fff">', "css-background", "outlook.windows") is None
    assert level(plain, "css-background", "outlook.windows") == "note"
    assert level(plain, "css-background-image", "yahoo") is None
    assert level('<p style="background-image:url(a),url(b)">', "css-background-image", "yahoo") == "note"
    assert level('<ul style="list-style:none">', "css-list-style", "gmail", "yahoo", "outlook.windows") is None
    assert level('<ul style="list-style:url(a)">', "css-list-style", "gmail") == "note"
    assert level('<ul style="list-style:inside">', "css-list-style", "outlook.windows") == "note"
    assert level('<p style="text-indent:1em">', "css-text-indent", "gmail", "yahoo") is None
    assert level('<p style="text-indent:-1em">', "css-text-indent", "gmail") == "note"
    picture = '<td background="a.png" style="color:white">x'
    assert level(picture, "html-background", "outlook.windows") == "problem"
    assert level(picture, "html-background", "gmail.ios") == "note"
    assert level('<body background="a.png" style="color:white">x', "html-background", "outlook.windows") is None
    gif, png = (f'<img alt="A" src="data:image/{kind};base64,AA">' for kind in ("gif", "png"))
    assert level(gif, "image-base64", "outlook.windows") == "problem"
    assert level(png, "image-base64", "outlook.windows") is None


def test_style_sheets_that_gmail_ignores_are_told_apart() -> None:
    rules = "p{color:red}"
    starts = {
        f"<head><style>{rules}</style></head><p>x": "Not supported by",
        f"<body><p>x<style>{rules}</style>": "It stands inside the body",
        f"<p>x</p><style>{rules}</style>": "It stands inside the body",
        f"<title>x</title><style>{rules * 1400}</style>": "It is longer than 16 kB",
    }
    for html, start in starts.items():
        each = finding(html, "html-style")
        assert each is not None
        assert each.level == "note"
        assert each.explanation.startswith(start)
    in_the_head = next(iter(starts))
    assert level(in_the_head, "html-style", "gmail.desktop-webmail") is None
    each = finding(in_the_head, "html-style", "gmail.ios")
    assert each is not None
    assert "<body>" not in each.explanation
    only = finding(next(reversed(starts)), "html-style", "outlook.windows")
    assert only is not None
    assert only.explanation.startswith("In part by Outlook (Windows)")


def test_each_limit_is_a_note_of_the_data() -> None:
    """A renewal of the data may word it anew."""
    features = load_support().features
    assert [
        (slug, limit) for slug, limits in LIMITS.items() for limit in limits if not features[slug].limited(limit)
    ] == []


def test_outlook_shows_transparent_text() -> None:
    html = '<h1 style="background:linear-gradient(red,blue);background-clip:text;color:transparent">x'
    assert level(html, "css-linear-gradient", "outlook.windows") == "note"
    assert level(html, "css-linear-gradient", "outlook.outlook-com") == "problem"


def test_features_without_an_effect_for_readers_are_not_reported() -> None:
    html = '<!doctype html><!-- a --><a href="https://x.example/" target=_blank>x</a>'
    assert lint_client_support(html, EIGHT, {}) == []


HOSTILE = {
    "blocks": "<style>" + "{" * 10_000,
    "nesting": "<style>" + "a{" * 5_000,
    "selectors": "<style>" + "a " * 10_000 + "{}",
    "pseudo": "<style>" + ":not(" * 5_000 + "{}",
    "brackets": "<style>" + "[" * 10_000 + "{}",
    "values": "<p style='width:" + "calc(" * 5_000 + "'>",
    "colours": "<p style='color:" + "rgb(1," * 5_000 + "'>",
    "calls": "<p style='background:" + "a(" * 5_000 + "'>",
    "comments": "<style>" + "/*" * 10_000,
    "strings": "<p style='quotes:" + '"' * 10_001 + "'>",
    "uses": "<p style='color:red'>" * 4_000,
    "videos": "<video>" * 4_000 + "x</video>" * 4_000,
    "unclosed videos": "<video>x" * 4_000,
    "elements": "<div>" * 5_000 + "</b>" * 5_000,
    "addresses": "<p style='background:" + "url(" * 5_000 + "'>",
    "sources": "<img srcset='" + "a.webp," * 5_000 + "'>",
    "VML": "<!--[if mso]" + "<v:rect" * 10_000 + "-->",
    "open conditions": "<!--" + "[if" * 20_000 + "-->",
    "commas": "<p style='background:" + "a," * 10_000 + "'><p style='background:" + "a(" * 10_000 + "'>",
    "quotes": '<p style="background:' + "'/" * 10_001 + '">',
    "panels": "<style>"
    + "i:checked~.b{display:block}" * 2_000
    + "</style>"
    + "<p style='display:none' class='a b'>" * 2_000,
    "conditions": "<!--[if !" + " " * 10_000 + "-->",
    "blanks": "display:" + " " * 10_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_html_is_judged_in_time(kind: str) -> None:
    begun = time.thread_time()
    lint_client_support(HOSTILE[kind], EIGHT, {})
    assert time.thread_time() - begun < 5
