"""What a reader gets from real newsletters: each text was read and approved once."""

from pathlib import Path

import pytest

from openviper.core.email.message.plaintext import html_to_text

_FOLDER = Path(__file__).parents[4] / "data" / "newsletters"
_DOCUMENTS = sorted(_FOLDER.glob("*.html"))


def test_there_are_documents_of_several_origins() -> None:
    assert len(_DOCUMENTS) >= 40
    assert len({document.name.partition("-")[0] for document in _DOCUMENTS}) >= 5


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda document: document.stem)
def test_the_text_of_a_newsletter_is_the_approved_one(document: Path) -> None:
    """When it differs for a reason: read ``scripts/newsletters.py``, which shows and approves differences."""
    approved = document.with_suffix(".txt").read_text(encoding="utf-8")
    assert html_to_text(document.read_text(encoding="utf-8")) == approved.removesuffix("\n")
