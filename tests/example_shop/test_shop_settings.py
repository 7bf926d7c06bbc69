"""The shop's settings, read by a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.patience import PATIENCE

PROJECT = Path(__file__).parents[2] / "example_shop"
NAMES = ("DEBUG", "DATABASE_URL", "SHOP_URL", "SHOP_STAFF_PASSWORD")


def read(**env: str) -> subprocess.CompletedProcess[str]:
    """Import the settings with nothing but ``env`` set."""
    code = f"import json, shop.settings as s; print(json.dumps({{n: getattr(s, n) for n in {NAMES!r}}}))"
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=clean | env, capture_output=True, text=True, timeout=PATIENCE
    )


def test_out_of_the_box_the_shop_is_in_debug_mode_on_a_sqlite_file_of_its_own() -> None:
    assert json.loads(read().stdout) == {
        "DEBUG": True,
        "DATABASE_URL": f"sqlite:///{PROJECT / 'shop.sqlite3'}",
        "SHOP_URL": "",
        "SHOP_STAFF_PASSWORD": "",
    }


def test_the_environment_overrides_every_setting() -> None:
    done = read(
        DEBUG="0", DATABASE_URL="postgresql://db/shop", SHOP_URL="https://shop.example/", SHOP_STAFF_PASSWORD="secret"
    )
    assert json.loads(done.stdout) == {
        "DEBUG": False,
        "DATABASE_URL": "postgresql://db/shop",
        "SHOP_URL": "https://shop.example",
        "SHOP_STAFF_PASSWORD": "secret",
    }


def test_outside_debug_mode_the_shop_must_know_its_own_address() -> None:
    done = read(DEBUG="0")
    assert done.returncode != 0
    assert "SHOP_URL: must be set outside debug mode" in done.stderr
