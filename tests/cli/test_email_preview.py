"""``viperctl email preview``: a template as it would be sent, to a file or to standard output."""

import json
from pathlib import Path

import pytest
from support.commands import Cli


@pytest.fixture
def mails(project: Path) -> Path:
    """The sample project with templates."""
    folder = project / "templates" / "mail"
    folder.mkdir(parents=True)
    (folder / "hi.txt").write_text("{% block subject %}Hi {{ name }}{% endblock %}Dear {{ name }}\n")
    (folder / "hi.html").write_text("<p>Dear {{ name }}, größer</p>\n", encoding="utf-8")
    (folder / "page.html").write_text('<h1>News</h1><a href="https://shop.example/">Shop</a>')
    (folder / "plain.txt").write_text("only text")
    return project


def context(folder: Path, **values: object) -> Path:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return file


def test_the_html_goes_to_a_file_that_browsers_read_as_utf_8(cli: Cli, mails: Path, tmp_path: Path) -> None:
    """Both paths are relative to where the command is called."""
    context(tmp_path, name="Ann <b>")
    done = cli.run("email", "preview", "mail/hi", "--project", mails, "--context", "values.json", "-o", "out.html")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out.html").read_bytes()
    assert written == b"\xef\xbb\xbf" + "<p>Dear Ann &lt;b&gt;, größer</p>".encode()
    assert done.stdout == ""
    assert "Subject: Hi Ann <b>\n" in done.stderr


def test_standard_output_has_the_result_alone(cli: Cli, mails: Path, tmp_path: Path) -> None:
    values = context(tmp_path, name="Ann")
    done = cli.run("email", "preview", "mail/hi", "--project", mails, "--context", values, "--text")
    assert done.stdout == "Dear Ann\n"
    assert done.stderr == "Subject: Hi Ann\n"


def test_without_values_samples_stand_in_and_are_named(cli: Cli, mails: Path) -> None:
    done = cli.run("email", "preview", "mail/hi", "--project", mails)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<p>Dear ")
    assert "Made up: name" in done.stderr
    (mails / "templates" / "mail" / "hi.sample.json").write_text('{"name": "Zoë"}')
    done = cli.run("email", "preview", "mail/hi", "--project", mails)
    assert "Dear Zoë" in done.stdout
    assert "Made up" not in done.stderr


def test_text_is_made_from_html_as_for_a_message(cli: Cli, mails: Path) -> None:
    done = cli.run("email", "preview", "mail/page", "--project", mails, "--text")
    assert done.returncode == 0, done.stderr
    assert "https://shop.example/" in done.stdout
    assert "<h1>" not in done.stdout
    assert "no subject block" in done.stderr


def test_a_template_without_html_says_so(cli: Cli, mails: Path) -> None:
    done = cli.run("email", "preview", "mail/plain.txt", "--project", mails)
    assert done.returncode == 1
    assert "--text" in done.stderr


@pytest.mark.parametrize("name", ["mail/absent", "../settings"])
@pytest.mark.parametrize("given", [True, False])
def test_a_template_that_is_not_there_is_named(cli: Cli, mails: Path, tmp_path: Path, name: str, given: bool) -> None:
    options = ["--context", str(context(tmp_path))] if given else []
    done = cli.run("email", "preview", name, "--project", mails, *options)
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'])
def test_a_context_that_is_no_object_is_a_usage_error(cli: Cli, mails: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "values.json").write_text(text)
    done = cli.run("email", "preview", "mail/hi", "--project", mails, "--context", "values.json")
    assert done.returncode == 2
    assert "values.json" in done.stderr


def test_a_file_that_cannot_be_written_is_named(cli: Cli, mails: Path, tmp_path: Path) -> None:
    done = cli.run("email", "preview", "mail/page", "--project", mails, "-o", "absent/out.html")
    assert done.returncode == 1
    assert "absent/out.html" in done.stderr
    assert "Traceback" not in done.stderr
