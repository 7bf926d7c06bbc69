"""CSS that was moved into attributes obeys the cascade as it did in the style sheet."""

import pytest

from openviper.core.email.templates import inline_css


@pytest.mark.parametrize(
    ("html", "attribute", "stays"),
    [
        (
            "<style>.x{width:600px !important}@media (max-width:9px){.x{width:100%!important}}</style><p class=x></p>",
            'style="width: 600px;"',
            "width:100%!important",
        ),
        (
            "<style>.x{color:blue!important}.x{color:green}.x:hover{color:red!important}</style><p class=x>a</p>",
            'style="color: blue;"',
            "color: red!important",
        ),
        (
            '<style>.x{width:1px!important}</style><p class=x style="color:red!important">a</p>',
            'style="width: 1px;color: red!important"',
            "",
        ),
        (
            "<style>.x{font-family:'A;b' !important}</style><p class=x>a</p>",
            "style=\"font-family: 'A;b' !important;\"",
            "",
        ),
    ],
    ids=["a rule of @media still wins", "so does :hover", "an author's own stays", "what is not understood stays"],
)
def test_importance_is_not_moved_into_attributes(html: str, attribute: str, stays: str) -> None:
    inlined = inline_css(html)
    assert attribute in inlined
    assert stays in inlined
