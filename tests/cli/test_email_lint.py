"""``viperctl email lint``: all templates of a project, for CI."""

import json
from pathlib import Path

import pytest
from support.commands import Cli
from support.documents import ROOT

BAD = '<p>Hi <a href="/shop">shop</a> <img src="https://cdn.example/a.webp"></p>'


@pytest.fixture
def mails(project: Path) -> Path:
    """The sample project with templates: one on a layout, one with a problem, one that cannot be rendered."""
    folder = project / "templates" / "mail"
    folder.mkdir(parents=True)
    (folder / "layout.html").write_text("<div>{% block content %}{% endblock %}</div>")
    (folder / "fine.html").write_text('{% extends "mail/layout.html" %}{% block content %}Hi {{ name }}{% endblock %}')
    return project


def test_notes_fail_only_if_wished_and_layouts_are_checked_within_others(cli: Cli, mails: Path) -> None:
    for name in ("note", "twin"):
        (mails / "templates" / "mail" / f"{name}.html").write_text('<p style="display: flex">Hi</p>')
    done = cli.run("email", "lint", "--project", mails, "--fail-on", "note")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[:3] == [
        "mail/fine: no findings",
        "mail/note",
        "  note    display:flex: not supported by Outlook [css-display-flex]",
    ]
    assert done.stdout.splitlines()[-2:] == [
        "mail/twin: same findings as mail/note (1)",
        "0 problems and 2 notes in 3 templates",
    ]
    assert done.stderr == "Checked only within other templates: mail/layout\n"


def test_the_page_shows_the_real_output(cli: Cli, project: Path) -> None:
    folder = project / "templates" / "emails"
    folder.mkdir(parents=True)
    style = "background-image: linear-gradient(#036, #069); color: #fff"
    (folder / "sale.html").write_text(f'<p style="{style}">Sale</p>')
    done = cli.run("email", "lint", "--project", project, EMAIL_TARGET_CLIENTS="outlook.windows,outlook.windows-mail")
    shown = (ROOT / "docs" / "client-support.md").read_text().partition("```text\n")[2].partition("```")[0]
    assert done.stdout == shown


def test_problems_and_templates_with_errors_fail(cli: Cli, mails: Path) -> None:
    (mails / "templates" / "mail" / "bad.html").write_text(BAD)
    (mails / "templates" / "mail" / "broken.html").write_text("{% if %}")
    done = cli.run("email", "lint", "--project", mails, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [each["template"] for each in found["templates"]] == ["mail/bad", "mail/broken", "mail/fine"]
    bad, broken, fine = ([finding["check"] for finding in each["findings"]] for each in found["templates"])
    assert bad[:3] == ["link-relative", "image-without-alt", "image-webp"]
    assert broken == ["template-error"]
    assert fine == []
    assert found["problems"] == 4
    assert found["data"]["package"] == "caniemail"


PREVIEWS = """
from openviper.core.email import preview

@preview(variants={"long name": {"name": "x" * 50}})
def welcome(name="Ana"):
    return {"subject": "Hi", "html": f"<p>Hi {name}", "sender": "s@shop.example"}

@preview
def other():
    raise ValueError("is not asked for")
"""


def test_only_what_is_named_is_checked_for_the_targeted_clients(cli: Cli, mails: Path) -> None:
    (mails / "templates" / "mail" / "bad.html").write_text(BAD)
    (mails / "templates" / "mail" / "note.html").write_text('<p style="display: flex; opacity: .5">Hi</p>')
    (mails / "greetings.py").write_text(PREVIEWS)
    (mails / "settings.py").write_text('EMAIL = {"mails": ["greetings"]}\n')
    names = ("greetings.welcome", "mail/note")
    done = cli.run("email", "lint", *names, "--project", mails, EMAIL_TARGET_CLIENTS="apple-mail,gmail.ios")
    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if not line.startswith(" " * 10)] == [
        "mail/note",
        "  note    display:flex: supported in part by Gmail [css-display-flex]",
        "greetings.welcome: no findings",
        "greetings.welcome (long name): no findings",
        "0 problems and 1 note in 1 template and 2 previews",
    ]


def test_a_project_without_templates_is_an_error(cli: Cli, project: Path) -> None:
    done = cli.run("email", "lint", "--project", project)
    assert done.returncode == 1
    assert "there are no templates: set TEMPLATES_DIR" in done.stderr
