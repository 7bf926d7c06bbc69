"""The pages say what is so: their programs run, their output is the real one, their links lead somewhere."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import icalendar
import pytest
from click.testing import CliRunner
from support.documents import ROOT, Block, blocks, normalised, pages, run, run_tests
from support.patience import PATIENCE

import openviper.core.email
import openviper.db
import openviper.testing
from openviper.cli import viperctl
from openviper.core.email import DeliveryMode
from openviper.core.email.settings import EmailSettings
from scripts import api_reference, write_examples
from scripts.settings_reference import PAGE, page

DOCS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
PYTHON = [block for name in DOCS for block in blocks(name)]
TESTS = [block for block in PYTHON if "def test_" in block.code]
EXAMPLES = sorted(path for path in ROOT.glob("docs/examples/*/**/*") if path.is_file() and path.suffix != ".pyc")
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
    (message,) = run(the_block("docs/attachments.md", "content_b64"), tmp_path).sent
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


def test_streams_functions_and_messages_are_attached(tmp_path: Path) -> None:
    (message,) = run(the_block("docs/attachments.md", "make_report"), tmp_path).sent
    assert [each[:2] for each in message["attachments"]] == [
        ["rows.csv", "text/csv"],
        ["report.pdf", "application/pdf"],
        ["attachment-3.eml", "message/rfc822"],
        ["dot.gif", "image/gif"],
    ]


def test_an_invitation_an_update_and_a_cancellation_are_of_one_event(tmp_path: Path) -> None:
    sent = run(the_block("docs/invitations.md", "CANCELLED"), tmp_path).sent
    calendars = [icalendar.Calendar.from_ical(message["calendar"]) for message in sent]
    assert [calendar["method"] for calendar in calendars] == ["REQUEST", "REQUEST", "CANCEL"]
    events = [event for calendar in calendars for event in calendar.events]
    assert {str(event["uid"]) for event in events} == {"fitting-7@shop.example"}
    assert [event["sequence"] for event in events] == [0, 1, 2]
    assert [event.start.day for event in events] == [7, 8, 8]
    assert [str(event["status"]) for event in events] == ["CONFIRMED", "CONFIRMED", "CANCELLED"]


def test_the_headers_and_the_return_path_are_as_written(tmp_path: Path) -> None:
    (message,) = run(the_block("docs/messages.md", "envelope_sender"), tmp_path).sent
    assert message["headers"]["List-Unsubscribe"] == "<https://shop.example/out/7>"
    assert message["envelope_sender"] == "bounces@shop.example"


LOOK_INTO_THE_INBOX = """
import httpx
from asgi_lifespan import LifespanManager

async with LifespanManager(app, startup_timeout=None, shutdown_timeout=None) as started:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(started.app), base_url="http://localhost") as client:
        await client.get("/order")
        print("Your order" in (await client.get("/_mail")).text)
        waited = await client.get("/_mail/api/messages/wait", params={"to": "alice@example.com", "timeout": 60})
        print(waited.json()["subject"])
        print((await client.get("http://shop.example/_mail")).status_code)
"""


def test_the_inbox_page_is_where_the_page_says_and_guarded(tmp_path: Path) -> None:
    block = blocks("docs/inbox.md")[0]
    assert run(block, tmp_path, then=LOOK_INTO_THE_INBOX).output == "True\nYour order\n403\n"


SHIP_A_PARCEL = """
from openviper.conf import settings
from openviper.db import create_tables, transaction

settings.configure(
    DATABASE_URL="sqlite:///parcels.sqlite3",
    EMAIL={"backend": "MemoryBackend", "default_sender": "orders@shop.example"},
)
await create_tables(Parcel.metadata)
async with transaction() as session:
    session.add(parcel := Parcel(email="alice@example.com", status="packed"))
async with transaction() as session:
    (await session.merge(parcel)).email = "bob@example.com"
async with transaction() as session:
    (await session.merge(parcel)).status = "shipped"
"""


def test_the_hook_sends_when_the_status_changes_and_only_then(tmp_path: Path) -> None:
    ran = run(the_block("docs/transactions.md", "on_change"), tmp_path, then=SHIP_A_PARCEL)
    assert [message["subject"] for message in ran.sent] == ["Parcel 1 is on its way"]


SEND_IN_A_FAILING_TRANSACTION = """
import asyncio
from openviper.core.email import InvalidAddress


async def attempt(address, **options):
    try:
        async with transaction():
            await send_email(address, "Hello", text="Hello", **options)
            raise LookupError
    except (LookupError, InvalidAddress) as error:
        print(type(error).__name__)


await attempt("nobody")
await attempt("held@example.com")
await attempt("now@example.com", background=False)
"""


def test_inside_a_transaction_mistakes_raise_and_only_background_false_leaves_at_once(tmp_path: Path) -> None:
    preparation = the_block("docs/transactions.md", "class Order").code.partition("class Order")[0]
    block = Block("docs/transactions.md", 1, "python", preparation)
    ran = run(block, tmp_path, then=SEND_IN_A_FAILING_TRANSACTION)
    assert ran.output.splitlines() == ["InvalidAddress", "LookupError", "LookupError"]
    assert [message["recipients"] for message in ran.sent] == [["now@example.com"]]


def test_the_backend_of_the_page_delivers_to_staff(tmp_path: Path) -> None:
    then = 'await send_email("bob@shop.example", "Order 7", text="Packed.")\n'
    ran = run(the_block("docs/backends.md", "backends.StaffOnlyBackend"), tmp_path, then=then)
    assert re.search(r"^sent <\w+@shop.example> \d+ bytes: Order 7$", ran.output, re.MULTILINE)


def test_a_broken_program_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no such setting"):
        run(Block("sample", 1, "python", 'EMAIL = {"hots": "smtp.example.com"}\n'), tmp_path)


def test_the_settings_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run scripts/settings_reference.py"


def test_the_api_page_is_up_to_date() -> None:
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page(), "run scripts/api_reference.py"


def test_every_public_name_is_on_the_page_of_the_api_or_of_the_errors() -> None:
    reference = api_reference.PAGE.read_text(encoding="utf-8")
    errors = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    names = [*openviper.core.email.__all__, *openviper.db.__all__, *openviper.testing.__all__]
    assert [name for name in names if f"### {name}\n" not in reference and f"| `{name}`" not in errors] == []


@pytest.mark.parametrize("path", write_examples.pages(), ids=lambda path: path.name)
def test_the_examples_of_a_page_are_the_files_that_tests_run(path: Path) -> None:
    shown = path.read_text(encoding="utf-8")
    assert shown == write_examples.with_examples(shown), "run scripts/write_examples.py"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_is_at_most_80_columns_wide(file: Path) -> None:
    """Wider ones scroll on a code host and on a telephone."""
    assert [line for line in file.read_text(encoding="utf-8").splitlines() if len(line) > 80] == []


def test_an_example_is_written_below_the_comment_that_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "app.py").write_text("new = 1\n")
    old = "<!-- examples/app.py -->\n```python\nold = 1\n```\n\n```python\nother = 1\n```\n"
    assert write_examples.with_examples(old, tmp_path) == old.replace("old", "new")
    with pytest.raises(FileNotFoundError):
        write_examples.with_examples(old.replace("app.py", "gone.py"), tmp_path)


def test_every_setting_is_read_by_something() -> None:
    source = "".join(file.read_text() for file in (ROOT / "openviper").rglob("*.py"))
    assert [name for name in EmailSettings.model_fields if not re.search(rf"\.{name}\b", source)] == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pictures_say_what_they_show(path: Path) -> None:
    assert "![](" not in path.read_text()


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


def test_every_picture_is_shown_and_all_are_small() -> None:
    pictures = set((ROOT / "docs" / "images").iterdir())
    text = "".join(path.read_text() for path in [*pages(), ROOT / "mkdocs.yml"])
    assert [path.name for path in pictures if f"images/{path.name}" not in text] == []
    assert sum(path.stat().st_size for path in pictures) < 1_500_000


def test_the_picture_of_the_modes_names_each_of_them() -> None:
    picture = ET.parse(ROOT / "docs" / "images" / "modes.svg")
    space = "{http://www.w3.org/2000/svg}"
    drawn = [text.text for text in picture.iter(f"{space}text") if text.get("class") == "name"]
    assert set(drawn) == set(DeliveryMode)
    words = picture.findtext(f"{space}desc") or ""
    assert [mode for mode in DeliveryMode if mode not in words] == []


def test_toml_of_the_pages_is_valid() -> None:
    text = "".join((ROOT / name).read_text() for name in DOCS)
    found = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    for toml in found:
        tomllib.loads(toml)


def test_commands_of_the_pages_and_their_options_exist() -> None:
    text = "".join(path.read_text() for path in pages())
    lines = re.findall(r"^(?:[A-Z]+=\S+ )?viperctl (.*)|`viperctl ([^`]*)`", text, re.MULTILINE)
    named = {(*re.findall(r"^[a-z ]+|--[a-z-]+", line or span),) for line, span in lines} - {()}
    assert ("email failed retry ", "--all") in named
    for command, *options in sorted(named):
        shown = CliRunner().invoke(viperctl, [*command.split(), "--help"])
        assert shown.exit_code == 0, f"{command}: {shown.output}"
        assert [option for option in options if option not in shown.output] == [], command


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    groups = [*extras.values(), *project["dependency-groups"].values(), project["project"]["dependencies"]]
    wanted = {re.split(r"[\[><=]", line)[0].lower() for group in groups for line in group if isinstance(line, str)}
    reasons = {word.lower() for word in re.findall(r"[\w-]+", (ROOT / "docs/design.md").read_text())}
    assert wanted - reasons == {"openviper-email"}


def test_the_test_message_is_shown_as_the_page_says(tmp_path: Path) -> None:
    block = next(block for block in blocks("docs/command-line.md", "console") if "email send" in block.code)
    project = tmp_path / "project"
    project.mkdir()
    (project / "settings.py").write_text(block.files["settings.py"])
    arguments = block.code.split()[1:]
    done = subprocess.run(
        [sys.executable, "-m", "openviper.cli", "viperctl", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert block.printed is not None
    assert normalised(done.stdout) == normalised(block.printed)
