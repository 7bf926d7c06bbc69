"""Who may import whom, as pyproject.toml's import-linter contracts say."""

import subprocess
import sys
from pathlib import Path

from support.patience import PATIENCE

ROOT = Path(__file__).parent.parent


def test_imports_go_downwards() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
