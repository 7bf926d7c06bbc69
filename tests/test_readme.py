"""The README does what it says, block by block."""

from pathlib import Path

from support.documents import ROOT, Block, blocks, normalised, run

README = (ROOT / "README.md").read_text()


def block_with(words: str) -> Block:
    (found,) = [block for block in blocks("README.md") if words in block.code]
    return found


def test_the_first_program_prints_exactly_what_the_readme_shows(tmp_path: Path) -> None:
    first = blocks("README.md")[0]
    assert first.printed is not None
    assert normalised(run(first, tmp_path).output) == normalised(first.printed)


def test_the_first_program_has_ten_lines() -> None:
    assert len(blocks("README.md")[0].code.splitlines()) == 10


def test_the_first_screen_has_all_that_a_newcomer_needs() -> None:
    screen = README.splitlines()[:50]
    for line in ("pip install openviper-email", "./scripts/shop", "./scripts/test"):
        assert line in screen
    assert all((ROOT / script).is_file() for script in ("scripts/shop", "scripts/test"))


def test_the_application_sends_the_mail_of_its_handler(tmp_path: Path) -> None:
    (message,) = run(block_with("FastAPI()"), tmp_path).sent
    assert (message["recipients"], message["subject"]) == (["alice@example.com"], "Your order")


def test_the_wrapped_application_sends_the_mail_of_its_handler(tmp_path: Path) -> None:
    (message,) = run(block_with("Litestar("), tmp_path).sent
    assert (message["from"], message["text"]) == ("orders@shop.example", "Thank you!")


PREPARE = """
import asyncio
from openviper.conf import settings
from openviper.core.email.backends.memory import sent
from openviper.db import create_tables

settings.configure(
    DATABASE_URL="sqlite:///orders.sqlite3",
    EMAIL={"backend": "MemoryBackend", "default_sender": "orders@shop.example"},
)
await create_tables(Order.metadata)
"""


def test_a_committed_order_is_mailed(tmp_path: Path) -> None:
    ran = run(block_with("transaction()"), tmp_path, then=f"{PREPARE}\nawait checkout('bob@example.com')")
    (message,) = ran.sent
    assert (message["recipients"], message["subject"]) == (["bob@example.com"], "Order 1")
    assert (tmp_path / "orders.sqlite3").is_file()


ROLL_BACK = """
try:
    async with transaction() as session:
        session.add(Order(email="bob@example.com"))
        await session.flush()
        print("inserted")
        raise LookupError
except LookupError:
    print("rolled back")
"""


def test_an_order_that_was_rolled_back_is_not_mailed(tmp_path: Path) -> None:
    ran = run(block_with("transaction()"), tmp_path, then=PREPARE + ROLL_BACK)
    assert ran.output == "inserted\nrolled back\n"
    assert ran.sent == []


def test_the_settings_block_is_valid(tmp_path: Path) -> None:
    """Checked by EmailSettings.load, as every EMAIL in a block is."""
    block = block_with("EMAIL = {")
    assert "checked" in run(block, tmp_path, then='print("checked")').output


def test_every_python_block_of_the_readme_has_its_test() -> None:
    assert len(blocks("README.md")) == 5


def test_the_readme_names_the_distribution_that_it_excludes() -> None:
    text = README.replace("\n> ", " ")
    assert "the distribution `openviper`: you cannot install both in one environment" in text
