"""The pages say what is so: their programs run, their output is the real one, their links lead somewhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.documents import ROOT, Block, blocks, normalised, pages, run, run_tests

from scripts.settings_reference import PAGE, WITHOUT_EFFECT, page

DOCS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
PYTHON = [block for name in DOCS for block in blocks(name)]
TESTS = [block for block in PYTHON if "def test_" in block.code]
PROGRAMS = [block for block in PYTHON if block not in TESTS]


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
def test_a_program_of_the_pages_runs_and_prints_what_they_show(block: Block, tmp_path: Path) -> None:
    ran = run(block, tmp_path)
    if block.printed is not None:
        assert normalised(ran.output) == normalised(block.printed)
    if block.awaits and "send_email(" in block.code:
        assert ran.sent, "no mail was sent"


@pytest.mark.parametrize("block", TESTS, ids=lambda block: block.name)
def test_a_test_of_the_pages_passes(block: Block, tmp_path: Path) -> None:
    count = block.code.count("def test_")
    assert f"{count} passed" in run_tests(block, tmp_path)


@pytest.mark.parametrize("name", DOCS)
def test_a_block_says_which_language_it_is(name: str) -> None:
    """A block without one would be tested by nobody."""
    opening = (ROOT / name).read_text().split("\n```")[1::2]
    assert all(re.match(r"[a-z]+\n", block) for block in opening)


def the_block(name: str, words: str) -> Block:
    (found,) = [block for block in PYTHON if block.page == name and words in block.code]
    return found


def test_the_markdown_template_gives_subject_text_and_html(tmp_path: Path) -> None:
    (message,) = run(the_block("docs/messages.md", "welcome.md"), tmp_path).sent
    assert message["subject"] == "Welcome, Alice"
    assert "Hello Alice" in message["text"]
    assert "<h1>Welcome to the shop</h1>" in message["html"]
    assert '<a href="https://shop.example/in">sign in</a>' in message["html"]


def test_every_form_of_an_attachment_is_attached(tmp_path: Path) -> None:
    (message,) = run(the_block("docs/messages.md", "content_b64"), tmp_path).sent
    assert message["attachments"] == [
        ["export.csv", "text/csv", 23],
        ["export.csv", "text/csv", 23],
        ["hello.txt", "text/plain", 6],
        ["orders.csv", "text/csv", 23],
        ["attachment-5.bin", "application/octet-stream", 6],
        ["again.csv", "text/csv", 23],
        ["head.csv", "text/csv", 12],
        ["hello.bin", "application/octet-stream", 5],
        ["notes.txt", "text/plain", 5],
    ]


def test_the_headers_and_the_return_path_are_as_written(tmp_path: Path) -> None:
    (message,) = run(the_block("docs/messages.md", "envelope_sender"), tmp_path).sent
    assert message["headers"]["List-Unsubscribe"] == "<https://shop.example/out/7>"
    assert message["envelope_sender"] == "bounces@shop.example"


def test_a_broken_program_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no such setting"):
        run(Block("sample", 1, "python", 'EMAIL = {"hots": "smtp.example.com"}\n'), tmp_path)


def test_the_settings_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run scripts/settings_reference.py"


def test_a_setting_without_effect_is_said_to_have_none() -> None:
    source = "".join(file.read_text() for file in (ROOT / "openviper").rglob("*.py"))
    keys = re.findall(r"^\| `(\w+)` \| `", page(), re.MULTILINE)
    unread = {key for key in keys if key.islower() and not re.search(rf"\.{key}\b", source)}
    assert unread == WITHOUT_EFFECT


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if urlsplit(target).scheme:
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    linked = set(re.findall(r"\((docs/[\w-]+\.md)", readme))
    assert linked == set(DOCS)


def test_toml_of_the_pages_is_valid() -> None:
    found = [block for name in DOCS for block in blocks(name, "toml")]
    assert found
    for block in found:
        tomllib.loads(block.code)


def test_commands_of_the_pages_exist() -> None:
    text = "".join(path.read_text() for path in pages())
    commands = set(re.findall(r"viperctl (\w+)", text)) - {"and"}
    assert commands
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "openviper.cli", "viperctl", command, "--help"], capture_output=True, timeout=60
        )
        assert done.returncode == 0, command
