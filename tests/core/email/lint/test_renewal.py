"""The vendored data on mail clients is what its script makes of the npm package."""

import json
from typing import Any

from scripts.client_support import DATA, NOTICE, cut, data_text, notice_text


def test_the_files_are_as_the_script_writes_them() -> None:
    """But for the data itself, with which only npm's package can be compared."""
    text, notice = DATA.read_text(encoding="utf-8"), NOTICE.read_text(encoding="utf-8")
    made = json.loads(text)
    assert text == data_text(made)
    licence = notice[notice.index("MIT License\n\nCopyright ©") :]
    assert notice == notice_text(made, licence)
    assert f"data of Can I email (caniemail.com) of {made['date']}" in notice
    assert "caniemail 2.0.2" in notice
    assert "Copyright (c) 2019 HTeuMeuLeu" in notice


def cut_one(versions: dict[str, str], notes: dict[str, str] | None = None) -> dict[str, Any]:
    feature = {
        "slug": "css-x",
        "title": " x ",
        "last_test_date": "2026-04-01",
        "stats": {"gmail": {"ios": versions}},
        "notes_by_num": notes,
    }
    names = {"family": {"gmail": "Gmail"}, "platform": {"ios": "iOS"}}
    whole = {"last_update_date": "2026-05-13 14:45:41 +0000", "nicenames": names, "data": [feature]}
    made = cut(whole, "2.0.2")
    assert (made["date"], made["clients"]) == ("2026-05-13", ["gmail.ios"])
    return dict(made["features"]["css-x"])


def test_the_test_of_the_newest_version_counts() -> None:
    assert cut_one({"2022-07": "n", "2021-03": "y"})["support"] == "n"
    assert cut_one({"2019-10": "y", "16.80": "n"})["support"] == "n"
    assert cut_one({"9": "n", "10": "y"})["support"] == "y"


def test_the_notes_are_those_of_the_support_that_is_told() -> None:
    notes = {"1": "Partial. See [a page](https://x.example/) on `x`.", "2": "Old."}
    kept = {"title": "x", "tested": "2026-04-01"}
    assert cut_one({"2019-10": "n #2", "2020-10": "a #1"}, notes) == {
        **kept,
        "support": "a",
        "notes": [("Partial. See a page on x.", [0])],
    }
    assert cut_one({"2020-10": "y #1"}, notes) == {**kept, "support": "y"}
