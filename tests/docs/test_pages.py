"""All pages: each block is proved or says why not, names what exists, and can be read on a telephone."""

import ast
import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.documents import ROOT, all_blocks, blocks, commands, pages, unproved

from openviper.conf.sources import aliases
from openviper.core.email.inbox import failed_api
from openviper.core.email.inbox.api import Api
from openviper.core.email.inbox.api_reference import ROUTES
from openviper.core.email.settings import EmailSettings
from scripts import house, inbox_api, llms_txt

if TYPE_CHECKING:
    from collections.abc import Callable

PAGES = [str(path.relative_to(ROOT)) for path in pages()]
GENERATED = "docs/api.md"  # compared as a whole
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()


def text_of(pattern: str) -> str:
    return "".join(path.read_text() for path in sorted(ROOT.glob(pattern)))


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED])
def test_every_block_is_proved_or_says_why_not(page: str) -> None:
    assert unproved(page) == []


def test_a_block_that_nothing_proves_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.documents.ROOT", tmp_path)
    said = "<!-- not run: starts a server -->\n```console\nuvicorn app:app\n```\n"
    (tmp_path / "page.md").write_text(f"{said}\n```console\nuvicorn app:app\n```\n\n```text\nready\n```\n")
    assert unproved("page.md") == ["page.md:6", "page.md:10"]


@pytest.mark.parametrize("page", PAGES)
def test_a_block_is_at_most_80_columns_wide(page: str) -> None:
    """Wider ones scroll on a code host and on a telephone. What a program prints is shown as it is."""
    wide = [
        f"{block.name}: {line}"
        for block in all_blocks(page)
        if block.language != "text" or page == GENERATED
        for line in block.code.splitlines()
        if len(line) > 80
    ]
    assert wide == []


def test_data_of_the_pages_can_be_parsed() -> None:
    parse: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    found = [block for page in PAGES for block in all_blocks(page) if block.language in parse]
    found = [block for block in found if "\n---\n" not in block.code]  # tests/docs/test_deploy.py reads those
    assert {block.language for block in found} == set(parse)
    for block in found:
        assert parse[block.language](block.code), block.name


def test_what_the_commands_of_the_pages_name_exists() -> None:
    lines = [
        line for page in PAGES for block in all_blocks(page) if block.language == "console" for line in commands(block)
    ]
    extras = {
        extra
        for line in lines
        for found in re.findall(r"openviper-email\[([\w,]+)\]", line)
        for extra in found.split(",")
    }
    files = {found for line in lines for found in re.findall(r"(?:^\./|python )((?:scripts|benchmarks)/[\w.]+)", line)}
    assert len(extras) >= 3
    assert extras <= set(PROJECT["optional-dependencies"])
    assert len(files) >= 3
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_the_settings_that_the_pages_name_exist() -> None:
    text = text_of("*.md") + text_of("docs/*.md")
    known = {*EmailSettings.model_fields, *aliases(EmailSettings)}
    named = set(re.findall(r'EMAIL\["(\w+)"\]', text))
    assert len(named) > 10
    assert named - known == {"log_dir"}  # of openviper 0.1.1, on the page for those who come from there
    variables = {name.lower() for name in re.findall(r"\bEMAIL_([A-Z_]+)\b", text)}
    # A further mailer has its name in front: EMAIL_BULK_URL.
    unknown = {name for name in variables if name not in known and not re.fullmatch(r"(bulk|backup)_\w+", name)}
    assert unknown == {"host_user", "host_password"}  # Django's, on the page for those who come from there


def test_the_sections_that_errors_name_exist() -> None:
    named = set(re.findall(r"troubleshooting#[\w-]+", text_of("openviper/**/*.py") + text_of("openviper/**/*.html")))
    sections = re.findall(r"^## (.+)$", TROUBLESHOOTING, re.MULTILINE)
    assert len(named) >= 6
    assert named <= {f"troubleshooting#{title.lower().replace(' ', '-')}" for title in sections}


def test_the_picture_of_the_parts_shows_the_imports() -> None:
    assert house.PICTURE.read_text(encoding="utf-8") == house.picture(), "run scripts/house.py"


def test_the_list_for_language_models_has_every_page() -> None:
    listed = llms_txt.LIST.read_text(encoding="utf-8")
    assert listed == llms_txt.text(), "run scripts/llms_txt.py"
    assert sorted(re.findall(r"\]\((\S+)\.html\)", listed)) == sorted(path.stem for path in ROOT.glob("docs/*.md"))


INBOX_API = (ROOT / "docs" / "inbox-api.md").read_text()


def fields_below(heading: str) -> set[str]:
    """Return the first column of the tables between a heading of the page and the next one."""
    section = INBOX_API.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_fields_of_a_message_are_those_of_the_table() -> None:
    """The page's program prints them, and a test of all programs compares what it prints."""
    printed = blocks("docs/inbox-api.md")[0].printed
    assert printed is not None
    message = json.loads(printed)
    assert fields_below("Fields") == set(message)
    assert all(f"`{name}`" in INBOX_API for name in {**message["attachments"][0], **message["timeline"][0]})


def test_the_fields_of_failed_mail_are_those_of_the_table() -> None:
    (result,) = [
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(failed_api._summary)))
        if isinstance(node, ast.Return)
    ]
    assert isinstance(result, ast.Dict)
    assert fields_below("Failed mail") == {key.value for key in result.keys if isinstance(key, ast.Constant)}


def test_the_table_of_routes_is_the_one_that_answers() -> None:
    unused: Any = None  # the routes are made before anything is asked
    routes = [*Api(unused, unused, unused).routes, *failed_api.FailedApi(unused).routes]
    made = {(method, route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}}
    assert made == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize("name", ["inbox-api.md", "inbox.md"])
def test_the_tables_of_the_inbox_are_those_of_its_own_page(name: str) -> None:
    assert inbox_api.page(name) == (ROOT / "docs" / name).read_text(encoding="utf-8"), "run scripts/inbox_api.py"
